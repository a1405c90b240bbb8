"""The autoencoder's loss, its training from the command line, and what is measured of it."""

import json

import config_files
import pytest
import torch
from autoencoder_world import flags, trainer_of, write_world
from ranks import run_ranks

from mindspeed_mm.config.autoencoder import AutoencoderLossConfig, evaluation_config
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.models.wfvae.chunks import Chunk
from mindspeed_mm.schema import build, node_from_python
from mindspeed_mm.training.autoencoder_loss import AutoencoderLoss, kl_divergence

STEPS = 4


def small_autoencoder(**changes):
    config = build(WFVAEConfig, node_from_python({**config_files.AUTOENCODER, **changes}, ""))
    torch.manual_seed(0)
    return build_autoencoder(config)


def test_the_divergence_is_that_of_torchs_normal_distributions():
    mean, logvar = torch.randn(2, 3, 4).unbind(0)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, logvar), expected)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_loss_is_the_weighted_sum_of_its_parts_and_reaches_every_weight(distance):
    autoencoder = small_autoencoder()
    weights = AutoencoderLossConfig(distance=distance, kl_weight=0.5, wavelet_weight=0.25)
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    loss, parts = AutoencoderLoss(autoencoder, weights)(video, torch.randn(1, 4, 2, 2, 2))
    assert loss.item() == pytest.approx(
        (parts["reconstruction"] + 0.5 * parts["kl"] + 0.25 * parts["wavelet"]).item(), rel=1e-6
    )
    assert all(part > 0 for part in parts.values())
    loss.backward()
    assert all(weight.grad is not None for weight in autoencoder.parameters() if weight.requires_grad)
    assert not autoencoder.encoder.wavelet_transform_l1._forward_hooks  # nothing stays behind on the networks


def test_the_wavelet_part_is_the_distance_of_the_subbands():
    """A decoder whose subbands are nothing leaves the encoder's, Haar transforms of the video, as the distance."""
    autoencoder = small_autoencoder()
    for level in (autoencoder.decoder.connect_l1, autoencoder.decoder.connect_l2):
        torch.nn.init.zeros_(level[-1].weight)
        torch.nn.init.zeros_(level[-1].bias)
    video = torch.full((1, 3, 9, 16, 16), 0.5)
    _, parts = AutoencoderLoss(autoencoder, AutoencoderLossConfig())(video, torch.zeros(1, 4, 2, 2, 2))
    whole = Chunk(first=True, last=True, lookahead=0, tails={})
    first = autoencoder.encoder.wavelet_transform_in(video, whole)
    second = autoencoder.encoder.wavelet_transform_l1(first[:, :3], whole)
    third = autoencoder.encoder.wavelet_transform_l2(second[:, :3], whole)
    expected = (second.abs().sum() + third.abs().sum()) / video.numel()
    assert parts["wavelet"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_tiling_is_refused():
    with pytest.raises(ValueError, match="use_tiling"):
        AutoencoderLoss(small_autoencoder(use_tiling=True), AutoencoderLossConfig())


# --------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("autoencoder"))


def train(world, export, *more) -> dict:
    """The weights that a run exports; on every rank of `run_ranks`, which share the run."""
    trainer_of(world, "--export", export, *more).fit()
    torch.distributed.barrier()
    return torch.load(export, weights_only=True)


@pytest.fixture(scope="module")
def trained(world):
    """The weights of STEPS steps on one rank."""
    (weights,) = run_ranks(train, 1, world, world / "vae.pt", "--train-iters", STEPS)
    return weights


def largest_difference(one, other) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_two_ranks_share_the_batch_and_learn_the_same(world, trained):
    for weights in run_ranks(train, 2, world, world / "two.pt", "--train-iters", STEPS):
        assert largest_difference(weights, trained) < 1e-3 * STEPS / 2  # a step of Adam moves a weight by 1e-3
        moved = {name: (weights[name] - trained[name]).norm() / trained[name].norm() for name in trained}
        assert sorted(moved.values())[len(moved) // 2] < 1e-3


def test_a_resumed_run_ends_with_the_same_weights(world, trained, tmp_path):
    keep = ["--save", tmp_path, "--load", tmp_path]
    run_ranks(train, 1, world, tmp_path / "first.pt", "--train-iters", STEPS // 2, *keep)
    (weights,) = run_ranks(train, 1, world, tmp_path / "second.pt", "--train-iters", STEPS, *keep)
    assert largest_difference(weights, trained) == 0


def test_dropout_drops_the_same_of_a_clip_in_any_batch_on_any_rank_and_after_a_resume(world, trained, tmp_path):
    (tmp_path / "data.json").write_text((world / "data.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({"ae": {**config_files.AUTOENCODER, "dropout": 0.2}}))

    def weights_after(steps: int, ranks: int, *more):
        return run_ranks(train, ranks, tmp_path, tmp_path / "vae.pt", "--train-iters", steps, *more)[0]

    def apart(one, other) -> float:
        """The median of what tensors differ by, of their own size."""
        found = sorted(((one[name] - other[name]).norm() / other[name].norm()).item() for name in other)
        return found[len(found) // 2]

    whole = weights_after(STEPS, 1)
    differences = [
        apart(weights_after(STEPS, ranks, *more), whole) for ranks, more in ((2, ()), (1, ("--micro-batch-size", 2)))
    ]
    assert max(differences) < 0.1 * apart(trained, whole), differences  # `trained` dropped nothing
    (tmp_path / "run").mkdir()
    keep = ["--save", tmp_path / "run", "--load", tmp_path / "run"]
    weights_after(STEPS // 2, 1, *keep)
    assert largest_difference(weights_after(STEPS, 1, *keep), whole) == 0


def test_training_lowers_the_loss(world, trained):
    fresh, video = small_autoencoder(), torch.full((1, 3, 9, 32, 32), -0.6)
    learned = small_autoencoder()
    learned.load_state_dict(trained)
    (more,) = run_ranks(train, 1, world, world / "more.pt", "--train-iters", 30)
    longer = small_autoencoder()
    longer.load_state_dict(more)
    with torch.no_grad():
        errors = [
            (autoencoder.decode_unscaled(autoencoder.encode_moments(video)[0]) - video).abs().mean().item()
            for autoencoder in (fresh, learned, longer)
        ]
    assert errors[2] < 0.6 * errors[0], errors


def test_statistics_make_latents_standard_normal_per_channel(world, trained):
    from mindspeed_mm.platforms.cpu import CpuPlatform
    from mindspeed_mm.training.autoencoder_quality import measure

    config = evaluation_config(flags(world, "--weights", world / "vae.pt", "--clips", 5, "--batch-size", 3))
    found = measure(config, CpuPlatform().device(0))
    assert found.clips == 5 and 0 < found.ssim < 1 and 0 < found.psnr < 60
    assert found.comparison.shape == (9, 5 * 32, 3 * 32, 3)
    normalised = small_autoencoder(shift=list(found.shift), scale=list(found.scale))
    normalised.load_state_dict(trained)
    originals = found.comparison[:, :, :32].reshape(9, 5, 32, 32, 3).permute(1, 4, 0, 2, 3) / 127.5 - 1
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        draws = torch.stack([normalised.encode(originals, generator) for _ in range(50)])  # [50,B,C,t,h,w]
    latents = draws.movedim(2, 0).flatten(1)
    assert latents.mean(1).abs().max() < 0.05
    assert (latents.std(1) - 1).abs().max() < 0.05
