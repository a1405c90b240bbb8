"""The JSON record beside each sample: its inputs, program and speed. It also tells whether a sample exists already."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from mindspeed_mm import atomic
from mindspeed_mm.config.sample import SampleConfig
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.sampling.provenance import sha256
from mindspeed_mm.sampling.requests import Request
from mindspeed_mm.version import __version__

DONE, FAILED = "done", "failed"

# Keys of the JSON that do not affect pixels beyond the texts: the prompt's file and places of files.
_PLACES = (
    *("save_path", "from_pretrained", "micro_batch_size", "num_samples_per_prompt"),
    *("max_prompts", "support_chinese"),
)


def sample_block(request: Request, config: SampleConfig, weights: dict[str, dict[str, str]]) -> dict[str, Any]:
    """All inputs that determine a sample's pixels. Equal blocks give equal samples at any layout."""
    texts = request.texts
    scales = [choice.scale for choice in config.adapters]
    model = dataclasses.asdict(request.model)
    del model["images"]  # their content counts, not their places
    files = request.model.images.files
    known = {"images": {name: sha256(Path(file)) for name, file in files.items()}} if files else {}
    return {
        "prompt": request.model.prompt,
        "negative_prompt": request.model.negative_prompt,
        "texts": {"positive": texts.positive, "negative": texts.negative if request.guided else None},
        "seed": request.seed,
        "noise_address": list(request.address),
        **known,
        "settings": _without_places(model),
        "step_cache": config.options.step_cache,
        **({"sage_attention": True} if config.options.sage_attention else {}),
        "use_ema": config.use_ema,
        "weights_sha256": {name: entry["sha256"] for name, entry in weights.items()},
        **({"adapter_scales": scales} if scales else {}),
    }


def run_block(config: SampleConfig, parallel: ParallelContext, platform: Platform, guidance_mode: str) -> dict:
    """Circumstances of a sample; they affect its pixels by rounding at most."""
    return {
        "guidance_mode": guidance_mode,
        "offload": config.options.offload,
        "compile": config.options.compile,
        "micro_batch_size": config.model.micro_batch_size,
        "layout": {
            "tensor": parallel.tensor_size,
            "sequence_parallel": parallel.sequence_parallel,
            "context": parallel.context_size,
            "guidance": parallel.guidance_size,
            "data": parallel.data_size,
        },
        "device": platform.name,
        "versions": {"mindspeed_mm": __version__, "torch": torch.__version__},
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes the record as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps(record, indent=1, ensure_ascii=False, default=list) + "\n")


def read(path: Path) -> dict[str, Any] | None:
    """Reads the record of a sample; None if it is missing or unreadable."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("status") in (DONE, FAILED) else None


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Records of a folder of samples, sorted by name; each has its name under "name"."""
    found = {path.stem: read(path) for path in sorted(folder.glob("*_[0-9]*.json"))}
    return [{**record, "name": name} for name, record in found.items() if record is not None]


def is_done(path: Path, block: dict[str, Any]) -> bool:
    """True if the sample of the record at `path` was finished from this block and its file is undamaged."""
    record = read(path)
    if record is None or record["status"] != DONE or record["sample"] != json.loads(json.dumps(block, default=list)):
        return False
    file = path.parent / record["file"]
    return file.is_file() and sha256(file) == record["sha256"]


def _without_places(block):
    if isinstance(block, dict):
        kept = {key: value for key, value in block.items() if key not in (*_PLACES, "prompt", "negative_prompt")}
        return {key: _without_places(value) for key, value in kept.items()}
    return block
