"""Flags and JSON of adapters: what they become, and mistakes in one line."""

import pytest
from config_files import TRAIN_FLAGS, change, write_all

from mindspeed_mm import families
from mindspeed_mm.config import resolve
from mindspeed_mm.config.adapter_choice import AdapterChoice
from mindspeed_mm.config.trained import TrainedConfig, lr_factors, trained_names
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig

DENOISER = SparseUMMDiTConfig(num_layers=(2, 2, 2), sparse_n=(1, 2, 1), in_channels=4, caption_channels=12)


@pytest.fixture
def folder(tmp_path):
    write_all(tmp_path)
    change(tmp_path / "model.json", "predictor.from_pretrained", str(tmp_path / "model.pt"))
    return tmp_path


def train(folder, *flags, world_size=1):
    files = ["--mm-model", str(folder / "model.json"), "--mm-data", str(folder / "data.json")]
    return resolve.run_config([*files, *TRAIN_FLAGS, *flags], world_size).adapter


def test_without_the_flag_the_whole_network_is_trained(folder):
    assert train(folder).kind is None


def test_flags_and_the_block_of_the_predictor_mean_the_same(folder):
    flags = (
        "--adapter",
        "rslora",
        "--adapter-rank",
        "9",
        "--adapter-alpha",
        "3",
        "--adapter-targets",
        "text,*.to_q",
        "skip",
    )
    by_flags = train(folder, *flags)
    assert (by_flags.scale, by_flags.words) == (1.0, ("text", "*.to_q", "skip"))
    block = {"kind": "rslora", "rank": 9, "alpha": 3, "targets": ["text", "*.to_q", "skip"]}
    change(folder / "model.json", "predictor.adapter", block)
    by_block = train(folder)
    assert (by_block.scale, by_block.words) == (by_flags.scale, by_flags.words)
    assert train(folder, "--adapter-rank", "4").rank == 4  # a flag takes precedence


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--adapter-targets", "atention"],
            "--adapter-targets atention: matches no linear .* did you mean 'attention'",
        ),
        (["--adapter-targets", "attn1.to_z"], "matches no linear .* did you mean 'attn1.to_"),
        (["--adapter-rank", "0"], "--adapter-rank 0: must be"),
        (["--adapter", "lorra"], "--adapter lorra: must be one of .*did you mean 'lora'"),
        (["--adapter-targets", ","], "names nothing"),
    ],
)
def test_mistakes_end_in_one_line(folder, flags, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train(folder, "--adapter", "lora", *flags)
    assert "\n" not in str(caught.value)


def test_an_adapter_needs_a_base_and_its_own_flag(folder):
    with pytest.raises(ConfigError, match="--adapter-rank: only with --adapter"):
        train(folder, "--adapter-rank", "4")
    change(folder / "model.json", "predictor.from_pretrained", KeyError)
    with pytest.raises(ConfigError, match=r"from_pretrained.* is missing; an adapter needs"):
        train(folder, "--adapter", "lora")


def test_tp_must_divide_the_layers_and_fp16_is_refused(folder):
    change(folder / "model.json", "predictor.timestep_embed_dim", 18)
    with pytest.raises(ConfigError, match="--fp16|in fp16"):
        train(folder, "--adapter", "lora", "--fp16")
    change(folder / "model.json", "predictor.num_heads", 3)
    with pytest.raises(ConfigError, match="do not divide by --tensor-model-parallel-size 2"):
        train(folder, "--adapter", "lora", "--tensor-model-parallel-size", "2", world_size=2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base-weights", "int4"], "--base-weights int4: must be one of 'int8', 'nf4'"),
        (["--stream-blocks", "6"], "--stream-blocks 6: the network has 6 blocks; give a smaller number"),
        (["--adapter-dropout", "1"], "--adapter-dropout 1: must be at least 0 and below 1"),
        (
            ["--adapter-dropout", "0.1", "--adapter-targets", "attention", "text"],
            "--adapter-dropout 0.1: caption_projection .text. does not know .* give --adapter-targets of attention and feed",
        ),
        (["--stream-blocks", "0"], "--stream-blocks 0: must be at least 1"),
        (["--stream-blocks", "2", "--compile"], "--stream-blocks 2: .* leave out --compile"),
    ],
)
def test_a_base_that_cannot_be_held_so_is_refused(folder, flags, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train(folder, "--adapter", "lora", *flags)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=f"--[a-z-]+: only with --adapter|{message}"):
        train(folder, *flags)


def test_tp_cuts_no_block_of_a_packed_row(folder):
    change(folder / "model.json", "predictor.num_heads", 16)
    flags = ["--adapter", "lora", "--base-weights", "nf4"]
    assert train(folder, *flags, "--tensor-model-parallel-size", "8", world_size=8).base_weights == "nf4"
    with pytest.raises(
        ConfigError, match="--base-weights nf4: .* which blocks of .* use a --tensor-model-parallel-size of at"
    ):
        train(folder, *flags, "--tensor-model-parallel-size", "16", world_size=16)


def test_adapters_to_sample_with(tmp_path):
    (tmp_path / "a=1").mkdir()
    assert AdapterChoice.read(f"{tmp_path}=0.8") == AdapterChoice(str(tmp_path), 0.8)
    assert AdapterChoice.read(f"{tmp_path}/a=1") == AdapterChoice(f"{tmp_path}/a=1", 1.0)  # a folder of that name
    for text, message in {f"{tmp_path}=much": "the scale 'much'", f"{tmp_path}/none": "no such directory"}.items():
        with pytest.raises(ConfigError, match=message):
            AdapterChoice.read(text)


def test_a_flag_with_several_values_may_be_given_again(tmp_path):
    write_all(tmp_path)
    config = resolve.sample_config(
        [
            "--mm-model",
            str(tmp_path / "sample.json"),
            "--adapter",
            f"{tmp_path}=0.5",
            "--adapter",
            str(tmp_path / "t5"),
        ],
        1,
    )
    assert [choice.scale for choice in config.adapters] == [0.5, 1.0]


def run_config(folder, *flags):
    files = ["--mm-model", str(folder / "model.json"), "--mm-data", str(folder / "data.json")]
    return resolve.run_config([*files, *TRAIN_FLAGS, *flags], 1)


def test_some_parameters_are_trained_by_groups_names_and_patterns(folder):
    config = run_config(folder, "--train-only", "attention", "transformer_blocks.2", "--freeze", "norm,*.to_q.bias")
    known = families.of_denoiser(config.model.predictor).parameters(config.model.predictor)
    names = trained_names(config.trained, known)
    assert "transformer_blocks.0.0.attn1.to_q.weight" in names
    assert "transformer_blocks.2.1.ff.net.2.weight" in names
    assert not [name for name in names if name.endswith("to_q.bias") or name.startswith("norm") or "0.0.ff" in name]
    for flags, message in {
        ("--train-only", "atention"): "--train-only atention: matches no parameter .* did you mean 'attention'",
        ("--freeze", "*"): "--freeze: leaves nothing to train",
        ("--freeze", "text", "--adapter", "lora"): "leave out --train-only and --freeze",
    }.items():
        with pytest.raises(ConfigError, match=message):
            run_config(folder, *flags)


def factors(words, adapter=None, only=()):
    parameters = families.of_denoiser(DENOISER).parameters(DENOISER)
    return lr_factors(TrainedConfig(only=only, lr_multipliers=words), parameters, adapter or AdapterConfig())


def test_factors_on_the_learning_rate_name_trained_parameters():
    found = factors(("attention=0.1", "transformer_blocks.0=2"))
    assert found["transformer_blocks.0.0.attn1.to_q.weight"] == 2 and set(found.values()) == {0.1, 2.0}
    adapter = AdapterConfig(kind="lora", targets=("attn1.to_q",))
    found = factors(("*.lora_B=16",), adapter)
    assert found and all(name.endswith("attn1.to_q.lora_B") for name in found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("attention",), "--lr-multiplier attention: must be NAME=FACTOR"),
        (("attention=0",), "a factor above 0"),
        (("attention=fast",), "a factor above 0"),
        (("atention=2",), "--lr-multiplier atention: matches no trained parameter .*did you mean 'attention'"),
        (("feed_forward=2",), "--lr-multiplier feed_forward: matches no trained parameter"),
    ],
)
def test_a_factor_that_reaches_nothing_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        factors(words, only=("attention",))
