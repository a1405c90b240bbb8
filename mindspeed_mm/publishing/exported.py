"""What a folder that `mindspeed-mm export` wrote holds: its format, networks, settings, and what keeps it from others."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from mindspeed_mm.config import hub
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import safetensors_file

OURS, DIFFUSERS = "mindspeed-mm", "diffusers"
_INDEX = "model_index.json"
_ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_MOST_JSON = 2**20  # bytes of a config; a tokenizer's words are larger


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """A folder that samples. network: the denoiser's config. size: frames, height, width of its samples."""

    folder: Path
    format: str
    network: dict[str, Any]
    size: tuple[int, int, int] | None
    steps: int | None
    guidance: float | None
    parameters: int
    dtype: str

    @property
    def takes_images(self) -> bool:
        return bool(self.network.get("image_mask_channels"))


def read(folder: str | Path) -> Exported:
    """Raises CheckpointError unless `folder` was written by `mindspeed-mm export` and is whole."""
    folder = Path(folder)
    if not (folder / _INDEX).is_file():
        raise CheckpointError(
            f"{folder / _INDEX}: missing; only a folder that mindspeed-mm export wrote is published; --mm-model writes one"
        )
    index = _json(folder / _INDEX)
    place = folder / "transformer" if "transformer" in index else folder
    weights = sorted(place.glob("diffusion_pytorch_model*.safetensors"))
    if not weights or not (place / "config.json").is_file():
        raise CheckpointError(
            f"{place}: holds no config.json with diffusion_pytorch_model*.safetensors; export it again"
        )
    tensors = [tensor for file in weights for tensor in safetensors_file.read(file).values()]
    settings = index.get("settings", {}) if place != folder else {**index, **index.get("diffusion", {})}
    return Exported(
        folder=folder,
        format=OURS if place == folder else DIFFUSERS,
        network={key: value for key, value in _json(place / "config.json").items() if not key.startswith("_")},
        size=_size(settings),
        steps=settings.get("num_inference_steps"),
        guidance=settings.get("guidance_scale"),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        dtype=" and ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
    )


def _size(settings: dict[str, Any]) -> tuple[int, int, int] | None:
    if "num_frames" in settings:
        return settings["num_frames"], settings["height"], settings["width"]
    found = settings.get("pipeline_config", {}).get("input_size")
    return None if found is None else tuple(found)


def faults(exported: Exported) -> list[str]:
    """What of the folder works on this machine alone: encoders that are named by a path outside of it."""
    if exported.format == DIFFUSERS:
        return []
    index, found = _json(exported.folder / _INDEX), []
    for name in _ENCODERS:
        source = index.get(name, {}).get("from_pretrained")
        if source is None or (exported.folder / source).is_dir() and not os.path.isabs(source):
            continue
        if not hub.is_repository(source):
            found.append(
                f"{_INDEX}, {name}.from_pretrained: {source} is a path of this machine; export with --copy-encoders, "
                "or name a repository of the hub there (org/name)"
            )
    return found


def paths_in(folder: Path) -> list[str]:
    """Strings in the folder's configs that are files or folders of this machine: "FILE: PATH"."""
    found = []
    for file in sorted(folder.rglob("*.json")):
        if file.stat().st_size <= _MOST_JSON:
            found += [f"{file.relative_to(folder)}: {text}" for text in _strings(_json(file)) if _is_path(text)]
    return found


def _is_path(text: str) -> bool:
    return os.path.isabs(text) and len(text) > 1 and len(text) < 4096 and os.path.exists(text)


def _strings(value: Any):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None
