"""Provenance of samples: SHA-256 of the weight files, as `sha256sum` prints it."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.config.sample import SampleConfig
from mindspeed_mm.files import layout
from mindspeed_mm.weights import adapters, sources

_log = logs.get(__name__)
_BLOCK = 1 << 22


def weights_of(config: SampleConfig) -> dict[str, dict[str, str]]:
    """Component -> {"path", "sha256"}. A directory's hash covers the names and hashes of its weight files."""
    model = config.model
    places = {
        "predictor": config.load or model.predictor.from_pretrained,
        "ae": model.ae.from_pretrained,
        "text_encoder": model.text_encoder.from_pretrained,
    }
    if model.text_encoder_2 is not None:
        places["text_encoder_2"] = model.text_encoder_2.from_pretrained
    places |= {f"adapter {number}": choice.path for number, choice in enumerate(config.adapters, 1)}
    started = time.monotonic()
    files = {name: weight_files(Path(source)) for name, source in places.items()}
    with ThreadPoolExecutor(4) as pool:  # hashlib releases the interpreter lock
        flat = sorted({file for group in files.values() for file in group})
        digests = dict(zip(flat, pool.map(sha256, flat), strict=True))
    _log.info(f"hashed {len(flat)} files of weights in {time.monotonic() - started:.1f} s")
    return {
        name: {"path": str(source), "sha256": _joint(Path(source), files[name], digests)}
        for name, source in places.items()
    }


def weight_files(source: Path) -> list[Path]:
    """Files from which a component's weights are read: those of a Hugging Face encoder or of any kind of checkpoint."""
    if source.is_dir() and not layout.has_checkpoint(source):
        encoder = sorted(source.glob("model*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
        if encoder:
            return encoder
        if (source / adapters.CONFIG).is_file():
            return [source / adapters.CONFIG, source / adapters.WEIGHTS]
    return list(sources.open_checkpoint(source).files)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _joint(source: Path, files: list[Path], digests: dict[Path, str]) -> str:
    if files == [source]:
        return digests[source]
    folder = source if source.is_dir() else source.parent
    lines = [f"{digests[file]}  {file.relative_to(folder)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
