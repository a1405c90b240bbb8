"""Writes a folder that diffusers loads, from the files that an inference JSON names; diffusers itself is not needed.

model_index.json, pipeline_opensoraplan.py                    the pipeline: its components, settings and code
transformer/ vae/                                             config.json, safetensors, code
scheduler/scheduler_config.json                               flow-match Euler with the config's shift
text_encoder/ text_encoder_2/ tokenizer/ tokenizer_2/         copies
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from mindspeed_mm import atomic, logs
from mindspeed_mm.config.distillation import read_record
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.diffusers import code
from mindspeed_mm.diffusers.parts import PARTS, generated
from mindspeed_mm.diffusers.text import SamplingDefaults
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.text_encoders import TEXT_ENCODERS
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.weights import released, targets
from mindspeed_mm.weights.convert import whole_denoiser
from mindspeed_mm.weights.distilled import suited

_log = logs.get(__name__)
_STEM = "diffusion_pytorch_model"
_OLDEST = "0.36.0"  # the diffusers that reads it
_NOT_SAVED = ("model_id", "from_pretrained", "dtype")


def from_config(
    config: SampleModelConfig,
    folder: str | Path,
    *,
    load: str | None = None,
    ema: bool = False,
    dtype: str | None = None,
    largest: int = 5 * 10**9,
    dry_run: bool = False,
) -> Path:
    """Writes the folder. load: a Megatron directory instead of predictor.from_pretrained; ema: its EMA weights.

    dtype: of the denoiser's weights, default unchanged. largest: bytes of tensors per file.
    """
    folder = Path(folder)
    source, autoencoder_source = load or config.predictor.from_pretrained, config.ae.from_pretrained
    if source is None or autoencoder_source is None:
        raise CheckpointError("predictor.from_pretrained (or a run to load) and ae.from_pretrained: both are needed")
    if (folder / code.INDEX).exists():
        raise CheckpointError(f"{folder / code.INDEX}: exists already; remove the folder, or write elsewhere")
    encoders = _encoders(config)
    denoiser = targets.without_unused(whole_denoiser(source, ema))
    record = read_record(denoiser.distilled, str(source))
    config = dataclasses.replace(config, diffusion=suited(config.diffusion, record))
    autoencoder = released.autoencoder_weights(autoencoder_source)
    plans: list[tuple[targets.Plan, Weights]] = [
        (
            targets.flat_file(
                denoiser, folder / "transformer" / _STEM, format="safetensors", dtype=dtype, largest=largest
            ),
            denoiser,
        ),
        (targets.flat_file(autoencoder, folder / "vae" / _STEM, format="safetensors", largest=largest), autoencoder),
    ]
    for todo, _ in plans:
        targets.announce(todo, dry_run)
    if dry_run:
        return folder
    for todo, weights in plans:
        targets.execute(todo, weights, "saving")
    for name, (copied, _) in encoders.items():
        _log.info(f"copying {copied} to {folder / name}")
        shutil.copytree(copied, folder / name, dirs_exist_ok=True)
    _write_configs(folder, config, {name: ["transformers", cls] for name, (_, cls) in encoders.items()})
    return folder


def _write_configs(folder: Path, config: SampleModelConfig, components: dict[str, list[str]]) -> None:
    """The configs, and last of all model_index.json, without which nothing can load the folder."""
    for component, block in (("transformer", config.predictor), ("vae", config.ae)):
        fields = {name: value for name, value in dataclasses.asdict(block).items() if name not in _NOT_SAVED}
        _write(folder / component / "config.json", PARTS[component][0], fields)
    _write(folder / "scheduler" / "scheduler_config.json", "FlowMatchEulerDiscreteScheduler", _scheduler(config))
    components |= {component: ["", PARTS[component][0]] for component in ("transformer", "vae")}
    components["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    _write(folder / code.INDEX, PARTS[code.PIPELINE][0], {**components, "settings": _settings(config)})
    code.add(folder, generated())


def _write(path: Path, name: str, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"_class_name": name, "_diffusers_version": _OLDEST, **values}
    atomic.write_text(path, json.dumps(found, indent=2, sort_keys=True) + "\n")


def _settings(config: SampleModelConfig) -> dict[str, Any]:
    """What `SamplingDefaults` takes of an inference JSON."""
    frames, height, width = config.pipeline_config.input_size
    given = {"version": config.pipeline_config.version, "num_frames": frames, "height": height, "width": width}
    given["use_attention_mask"] = config.text_encoder.use_attention_mask
    for field in dataclasses.fields(SamplingDefaults):
        for block in (config, config.diffusion):
            if field.name not in given and hasattr(block, field.name):
                given[field.name] = getattr(block, field.name)
    return dataclasses.asdict(SamplingDefaults(**given))


def _scheduler(config: SampleModelConfig) -> dict[str, Any]:
    """Its settings, so that it takes the noise levels of `diffusion.schedule.grid`."""
    said = config.diffusion
    if said.sigma_eps > 0:
        _log.warning(f"diffusion.sigma_eps {said.sigma_eps}: the scheduler of diffusers ends at 0 instead")
    plain = said.use_linear_quadratic_schedule
    return {
        "num_train_timesteps": 1000,
        "shift": 1.0 if plain else max(said.shift, 1.0),
        "use_dynamic_shifting": said.use_dynamic_shifting and not plain,
    }


def _encoders(config: SampleModelConfig) -> dict[str, tuple[Path, str]]:
    """Folder and class of both text encoders and their tokenizers. Raises CheckpointError for a missing one."""
    found = {}
    for suffix in ("", "_2"):
        encoder, tokenizer = getattr(config, f"text_encoder{suffix}"), getattr(config, f"tokenizer{suffix}")
        if encoder is None or tokenizer is None:
            raise CheckpointError(f"text_encoder{suffix} and tokenizer{suffix}: the pipeline of diffusers needs both")
        for name, source in ((f"text_encoder{suffix}", encoder), (f"tokenizer{suffix}", tokenizer)):
            if not Path(source.from_pretrained).is_dir():
                raise CheckpointError(f"{name}.from_pretrained: {source.from_pretrained}: no such directory to copy")
        kind = TEXT_ENCODERS[encoder.model_id]
        found[f"text_encoder{suffix}"] = Path(encoder.from_pretrained), kind.transformers_class
        default = "CLIPTokenizer" if kind.is_clip else "T5Tokenizer"
        found[f"tokenizer{suffix}"] = Path(tokenizer.from_pretrained), _tokenizer_class(tokenizer, default)
    return found


def _tokenizer_class(tokenizer: Any, default: str) -> str:
    """The class in transformers, since model_index.json cannot name AutoTokenizer."""
    if tokenizer.autotokenizer_name != "AutoTokenizer":
        return tokenizer.autotokenizer_name
    path = Path(tokenizer.from_pretrained) / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    name = said.get("tokenizer_class") or default
    return "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name  # transformers 5's name for it
