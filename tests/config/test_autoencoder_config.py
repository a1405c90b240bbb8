"""Flags of tools/train_wfvae.py and tools/eval_vae.py: what they give and what they refuse."""

import json

import config_files
import pytest

from mindspeed_mm.config.autoencoder import evaluation_config, training_config
from mindspeed_mm.errors import ConfigError


@pytest.fixture
def files(tmp_path):
    """--mm-model and --mm-data of a folder, and the folder."""
    for name in ("t5", "clip"):
        (tmp_path / name).mkdir()
    (tmp_path / "model.json").write_text(json.dumps({"ae": config_files.AUTOENCODER}))
    (tmp_path / "data.json").write_text(json.dumps(config_files.data_block(tmp_path)))
    return ["--mm-model", str(tmp_path / "model.json"), "--mm-data", str(tmp_path / "data.json")], tmp_path


def test_a_run_needs_the_ae_block_only_and_counts_its_batch_by_ranks(files):
    config = training_config([*files[0], "--train-iters", "7", "--micro-batch-size", "3"], world_size=2)
    assert config.global_batch_size == 6 and config.train_iters == 7
    assert config.autoencoder.latent_dim == config_files.AUTOENCODER["latent_dim"]
    assert config.optimizer.lr_decay_iters == 7 and config.optimizer.use_ema
    assert (config.loss.kl_weight, config.loss.wavelet_weight) == (1e-6, 0.1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--micro-batch-size", "2", "--global-batch-size", "3"], "not a multiple"),
        (["--lr", "1e-4", "--min-lr", "1e-3"], "must be at least --min-lr 0.001"),
        (["--lr-warmup-iters", "7"], "must be below --lr-decay-iters 7"),
        (["--ema-decay", "1"], "ema-decay"),
        (["--weights", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--trian-iters", "3"], "--trian-iters: unknown flag; did you mean '--train-iters'"),
    ],
)
def test_impossible_flags_are_refused(files, flags, message):
    with pytest.raises(ConfigError, match=message):
        training_config([*files[0], "--train-iters", "7", *flags], world_size=1)


def test_data_that_does_not_fit_the_autoencoder_is_refused_with_its_place(files):
    flags, folder = files
    data = config_files.data_block(folder)
    data["dataset_param"]["preprocess_parameters"].update(ae_stride_t=4)
    (folder / "data.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"data.json.*ae_stride_t.*compresses time by 8"):
        training_config([*flags, "--train-iters", "7"])


def test_an_evaluation_needs_weights(files):
    flags, folder = files
    with pytest.raises(ConfigError, match="from_pretrained is missing"):
        evaluation_config(flags)
    weights = folder / "vae.pt"
    weights.touch()
    assert evaluation_config([*flags, "--weights", str(weights)]).autoencoder.from_pretrained == str(weights)
