"""Weights and configs in one folder, laid out as on the Hugging Face hub, that one call samples from.

config.json                                  the `predictor` block
diffusion_pytorch_model.safetensors          the denoiser (or several files and an index)
vae/config.json, vae/diffusion_pytorch_model.safetensors
model_index.json                             the rest of an inference JSON: encoders, diffusion, sizes, precision
text_encoder/ text_encoder_2/ tokenizer/ tokenizer_2/     copies, if asked for
"""

import dataclasses
import json
import shutil
from pathlib import Path

from mindspeed_mm import atomic, families, logs
from mindspeed_mm.config import hub, model_dialects
from mindspeed_mm.config.distillation import read_record
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.base import AutoencoderConfig, DenoiserConfig
from mindspeed_mm.files.plan import Plan
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.schema import Node, build, read_json
from mindspeed_mm.weights import released, sources, targets
from mindspeed_mm.weights.distilled import suited

_log = logs.get(__name__)
CONFIG, PIPELINE, VAE, STEM = "config.json", "model_index.json", "vae", "diffusion_pytorch_model"
_OF_A_JOB = ("prompt", "save_path", "images")  # what to sample and where to, on the machine that exports
_ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_CLASS = "_class_name"  # the hub's key for the class of a config
_LARGEST = 5 * 10**9  # bytes per file; the hub refuses 50 GB


def write(
    folder: str | Path,
    config: SampleModelConfig,
    denoiser: Weights,
    autoencoder: Weights,
    *,
    dtype: str | None = None,
    largest: int = _LARGEST,
    copy_encoders: bool = False,
    dry_run: bool = False,
) -> Path:
    """Writes the folder. dtype: of the denoiser's weights, default unchanged. largest: bytes of tensors per file.

    Encoders are named by their paths; with copy_encoders their folders are copied.
    """
    folder = Path(folder)
    if (folder / CONFIG).exists():
        raise CheckpointError(f"{folder / CONFIG}: exists already; remove the folder, or write elsewhere")
    if copy_encoders:
        _check_encoders(config)
    plans: list[tuple[Plan, Weights]] = [
        (targets.flat_file(denoiser, folder / STEM, format="safetensors", dtype=dtype, largest=largest), denoiser),
        (targets.flat_file(autoencoder, folder / VAE / STEM, format="safetensors"), autoencoder),
    ]
    for todo, _ in plans:
        targets.announce(todo, dry_run)
    if dry_run:
        return folder
    for todo, weights in plans:
        targets.execute(todo, weights, "saving")
    if copy_encoders:
        config = _with_copies(folder, config)
    # The configs come last: without them nothing can load the folder.
    atomic.write_text(folder / VAE / CONFIG, _text(config.ae))
    rest = {_CLASS: "T2VPipeline", **_plain(config, leave_out=("ae", "predictor", *_OF_A_JOB))}
    atomic.write_text(folder / PIPELINE, json.dumps(rest, indent=2) + "\n")
    atomic.write_text(folder / CONFIG, _text(config.predictor))
    return folder


def from_config(
    config: SampleModelConfig,
    folder: str | Path,
    *,
    load: str | None = None,
    ema: bool = False,
    dtype: str | None = None,
    largest: int = _LARGEST,
    copy_encoders: bool = False,
    dry_run: bool = False,
) -> Path:
    """Writes the folder from the files that an inference JSON names, without building networks or holding weights in
    memory.

    load: a Megatron directory that replaces predictor.from_pretrained. ema: uses its EMA weights.
    """
    from mindspeed_mm.weights.convert import whole_denoiser

    source = load or config.predictor.from_pretrained
    if source is None or config.ae.from_pretrained is None:
        raise CheckpointError("predictor.from_pretrained (or a run to load) and ae.from_pretrained: both are needed")
    denoiser = targets.without_unused(whole_denoiser(source, ema))
    record = read_record(denoiser.distilled, str(source))
    return write(
        folder,
        dataclasses.replace(config, diffusion=suited(config.diffusion, record)),
        denoiser,
        released.autoencoder_weights(config.ae.from_pretrained),
        dtype=dtype,
        largest=largest,
        copy_encoders=copy_encoders,
        dry_run=dry_run,
    )


def read(folder: str | Path) -> SampleModelConfig:
    """Config of a folder, with the paths of its weights and of its encoders."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such directory")
    for name in (CONFIG, PIPELINE, f"{VAE}/{CONFIG}"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: missing; a folder to sample from holds {CONFIG}, {PIPELINE}, {VAE}/"
            )
    node = read_json(folder / PIPELINE)
    value = {key: item for key, item in node.value.items() if key != _CLASS}
    value["predictor"] = _node(folder)
    value["ae"] = _node(folder / VAE)
    for name in _ENCODERS:
        if name in value:
            value[name] = _located(value[name], folder)
    node = hub.with_local_weights(dataclasses.replace(node, value=value))  # encoders may be a hub's
    return build(SampleModelConfig, model_dialects.sample_node(node))


def read_denoiser(folder: str | Path) -> DenoiserConfig:
    """The denoiser's config in a folder, with the folder's weights."""
    return families.read_denoiser(_node(Path(folder)))


def read_autoencoder(folder: str | Path) -> AutoencoderConfig:
    """The autoencoder's config in a folder such as `vae`, with the folder's weights."""
    return families.read_autoencoder(_node(Path(folder)))


def _node(folder: Path) -> Node:
    """config.json of a folder that also holds the weights."""
    node = read_json(folder / CONFIG)
    if not isinstance(node.value, dict):
        raise node.error("expected an object")
    sources.open_checkpoint(folder)  # reports faulty files now
    value = {key: item for key, item in node.value.items() if key != _CLASS}
    value["from_pretrained"] = Node(str(folder), node.file, 0, "from_pretrained")
    return dataclasses.replace(node, value=value)


def _located(block: Node, folder: Path) -> Node:
    """An encoder's block with its path relative to the folder, if it lies there."""
    source = block.value.get("from_pretrained") if isinstance(block.value, dict) else None
    if source is None or not isinstance(source.value, str) or not (folder / source.value).is_dir():
        return block
    here = dataclasses.replace(source, value=str(folder / source.value))
    return dataclasses.replace(block, value={**block.value, "from_pretrained": here})


def _with_copies(folder: Path, config: SampleModelConfig) -> SampleModelConfig:
    """Copies the encoders' folders; the config then names the copies, relative to the folder."""
    for name in _ENCODERS:
        block = getattr(config, name)
        if block is None:
            continue
        _log.info(f"copying {block.from_pretrained} to {folder / name}")
        shutil.copytree(block.from_pretrained, folder / name, dirs_exist_ok=True)
        config = dataclasses.replace(config, **{name: dataclasses.replace(block, from_pretrained=name)})
    return config


def _check_encoders(config: SampleModelConfig) -> None:
    for name in _ENCODERS:
        block = getattr(config, name)
        if block is not None and not Path(block.from_pretrained).is_dir():
            raise CheckpointError(f"{name}.from_pretrained: {block.from_pretrained}: no such directory to copy")


def _text(config: DenoiserConfig | AutoencoderConfig) -> str:
    return (
        json.dumps(
            {_CLASS: families.of_config(config).title, **_plain(config, leave_out=("from_pretrained",))}, indent=2
        )
        + "\n"
    )


def _plain(config, leave_out: tuple[str, ...]) -> dict:
    """A config as JSON, without unset values."""
    found = dataclasses.asdict(config)
    return {key: _without_none(value) for key, value in found.items() if key not in leave_out and value is not None}


def _without_none(value):
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
