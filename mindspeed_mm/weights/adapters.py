"""Adapters as files: opens a run's checkpoint or PEFT's format, loads them into a network, writes PEFT's format.

| source | what it looks like |
|---|---|
| the directory of a run that trains an adapter | as any run's (`weights/sources.py`); its tensors are the adapter's |
| PEFT's folder | adapter_model.safetensors, adapter_config.json; ours has base.json too, which says what it was trained on |

Names here are LAYER.lora_A, LAYER.lora_B, LAYER.lora_magnitude_vector, with this project's names of layers.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mindspeed_mm import atomic, families, logs
from mindspeed_mm.adapters import attach
from mindspeed_mm.adapters.branches import Branch
from mindspeed_mm.adapters.record import AdapterRecord, check_base, read_record
from mindspeed_mm.config.distillation import DISTILLED
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.adapters import (
    DOWN,
    MAGNITUDE,
    UP,
    AdapterConfig,
    LayerAdapter,
    adapter_parameters,
    is_adapter,
    plain_name,
    scale_of,
    split_of,
)
from mindspeed_mm.families.base import DenoiserFamily
from mindspeed_mm.files import integrity, layout, safetensors_file, torch_state
from mindspeed_mm.files.mapped import MappedFiles
from mindspeed_mm.files.reshard import Weights, some
from mindspeed_mm.models.denoiser import Denoiser
from mindspeed_mm.weights import fingerprint, sources, targets

_log = logs.get(__name__)
WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
_PREFIX = "base_model.model."  # PEFT's, before the names of layers
# keys of PEFT's config whose other values change what the tensors mean
_MUST_BE = {"fan_in_fan_out": (False, None), "lora_bias": (False, None), "bias": ("none", None)}


@dataclasses.dataclass(frozen=True, slots=True)
class Adapter:
    """An opened adapter. weights: by our names, whole or split. layers: what each linear gets, in the file's order."""

    path: str
    weights: Weights
    layers: dict[str, LayerAdapter]
    record: AdapterRecord

    @property
    def family(self) -> DenoiserFamily:
        return families.DENOISERS[self.record.model_id]


def open_adapter(path: str | Path, ema: bool = False) -> Adapter:
    """Opens the adapter at `path`. ema: the average of a run's. Raises CheckpointError for anything else."""
    path = Path(path)
    if layout.has_checkpoint(path):
        return _open_run(path, ema)
    if ema:
        raise CheckpointError(f"{path}: is no directory of a run, so it holds no average (--ema)")
    for name in (WEIGHTS, CONFIG):
        if not (path / name).is_file():
            held = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
            raise CheckpointError(
                f"{path / name}: missing; an adapter is a folder with {WEIGHTS} and {CONFIG}, or the directory of a run that "
                f"trained one; there is {some(held) or 'nothing'}"
            )
    return _open_peft(path)


def fingerprint_of(source: str | Path, ema: bool = False) -> str:
    """Fingerprint of the denoiser's weights at `source`."""
    return fingerprint.fingerprint(targets.without_unused(sources.open_checkpoint(source).weights(ema)))


def load_adapter(
    network: Denoiser, path: str | Path, scale: float = 1.0, *, ema: bool = False, base: str | None = None
) -> dict[str, Branch]:
    """Adds the adapter at `path` to a network, `scale` times its size; returns its parts by layer.

    base: fingerprint of the network's weights, to compare. Raises CheckpointError for an adapter of another network.
    """
    adapter = open_adapter(path, ema)
    check_base(adapter.record, base, str(path))
    _check_fit(adapter, network)
    if scale != 1.0 and any(settings.dora for settings in adapter.layers.values()):
        raise CheckpointError(
            f"{path}: a DoRA adapter has no size {scale:g} but 1, since it also sets the rows' lengths"
        )
    layers = {
        layer: dataclasses.replace(settings, scale=scale * settings.scale) for layer, settings in adapter.layers.items()
    }
    branches = attach.attach(network, network.parallel, layers)
    _fill(branches, adapter.weights, network)
    _log.info(f"loaded the adapter {path}: {adapter.record.config.kind} on {len(layers)} linears, scale {scale:g}")
    return branches


def load_trained_adapter(network: Denoiser, directory: str | Path, ema: bool = False) -> None:
    """Loads a run's adapter into the one that a network trains (--finetune)."""
    adapter = open_adapter(directory, ema)
    _check_fit(adapter, network)
    branches = attach.trained_branches(network)
    mine = {layer: branch.lora_A.shape[0] for layer, branch in branches.items()}
    theirs = {layer: settings.rank for layer, settings in adapter.layers.items()}
    if mine != theirs:
        raise CheckpointError(
            f"{directory}: holds an adapter of rank {some(sorted({str(rank) for rank in theirs.values()}))} on {len(theirs)} "
            f"linears; this run trains rank {some(sorted({str(rank) for rank in mine.values()}))} on {len(mine)}"
        )
    _fill(branches, adapter.weights, network)


def write_peft(adapter: Adapter, folder: str | Path, *, dtype: str | None = None) -> Path:
    """Writes an adapter as PEFT does; `PeftModel.from_pretrained` and diffusers read it. Returns the folder."""
    folder = Path(folder)
    names = {f"{_PREFIX}{_peft_name(name)}": name for name in adapter.weights}
    renamed = _renamed(adapter.weights, names)
    folder.mkdir(parents=True, exist_ok=True)
    todo = targets.flat_file(renamed, folder / WEIGHTS.partition(".")[0], format=targets.SAFETENSORS, dtype=dtype)
    targets.execute(todo, renamed, "saving", progress=False)
    atomic.write_text(folder / BASE, json.dumps(adapter.record.plain(), indent=2) + "\n")
    atomic.write_text(folder / CONFIG, json.dumps(_peft_config(adapter), indent=2) + "\n")
    return folder


# ------------------------------------------------------------------------------------------------------------- opening


def _open_run(path: Path, ema: bool) -> Adapter:
    directory = layout.find(path).directory
    held, _ = torch_state.open_mapped(layout.state_files(directory)[0])
    if held.get("adapter") is None:
        raise CheckpointError(
            f"{path}: holds a whole network, not an adapter; give it with --load or predictor.from_pretrained"
        )
    record = dataclasses.replace(read_record(held["adapter"], str(path)), distilled=held.get(DISTILLED))
    checkpoint = sources.open_checkpoint(path)
    split = functools.partial(_split, families.DENOISERS[record.model_id])
    weights = checkpoint.weights(ema, lambda name: split(plain_name(name)))
    shards = [
        {plain_name(name): value for name, value in shard.items() if is_adapter(name)} for shard in weights.shards
    ]
    weights = Weights(shards, split, str(path), checkpoint.mapped)
    config = record.config
    layers = {
        layer: LayerAdapter(weights.shape(f"{layer}.{DOWN}")[0], config.scale, config.dora)
        for layer in _layers(weights, str(path))
    }
    return Adapter(str(path), weights, layers, record)


def _open_peft(path: Path) -> Adapter:
    config = _json(path / CONFIG)
    if config.get("peft_type") not in ("LORA", None):
        raise CheckpointError(f"{path / CONFIG}: peft_type {config['peft_type']!r}; only LORA can be used")
    for key, allowed in _MUST_BE.items():
        if config.get(key) not in allowed:
            raise CheckpointError(f"{path / CONFIG}: {key} {config[key]!r} cannot be used; expected {allowed[0]!r}")
    tensors, family = _ours(safetensors_file.read(path / WEIGHTS), path / WEIGHTS)
    mapped = MappedFiles([path / WEIGHTS], list(tensors.values()), integrity.Proof([path / WEIGHTS]))
    weights = Weights([tensors], functools.partial(_split, family), str(path), mapped)
    layers = {}
    for layer in _layers(weights, str(path)):
        rank = weights.shape(f"{layer}.{DOWN}")[0]
        alpha = _of_pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha", rank))
        scale = scale_of(rank, float(alpha), bool(config.get("use_rslora")))
        layers[layer] = LayerAdapter(rank, scale, f"{layer}.{MAGNITUDE}" in weights)
    return Adapter(str(path), weights, layers, _record_of(path, config, family))


def _record_of(path: Path, config: Mapping[str, Any], family: DenoiserFamily) -> AdapterRecord:
    if (path / BASE).is_file():
        return read_record(_json(path / BASE), str(path / BASE))
    kind = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    asked = config.get("target_modules")
    words = tuple(map(str, asked)) if isinstance(asked, list) else ("attention",)
    rank = int(config.get("r") or 1)
    found = AdapterConfig(kind=kind, rank=rank, alpha=float(config.get("lora_alpha") or rank), targets=words)
    return AdapterRecord(found, family.model_id)


def _ours(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], DenoiserFamily]:
    """PEFT's tensors by our names, and the family whose layers they are of."""
    found: dict[str, Tensor] = {}
    family = None
    for name, value in tensors.items():
        bare = name.removeprefix(_PREFIX).removeprefix("transformer.").removesuffix(".weight")
        layer, _, kind = bare.rpartition(".")
        known = next((known for known in families.DENOISERS.values() if _has(known, layer)), None)
        if kind not in (DOWN, UP, MAGNITUDE) or known is None or family not in (None, known):
            raise CheckpointError(f"{path}: {name}: no adapter of a network of this project has this name")
        family = known
        found[f"{_our_layer(known, layer)}.{kind}"] = value
    if family is None:
        raise CheckpointError(f"{path}: holds no tensors")
    return found, family


def _our_layer(family: DenoiserFamily, layer: str) -> str:
    return family.to_ours(f"{layer}.weight").removesuffix(".weight")


def _has(family: DenoiserFamily, layer: str) -> bool:
    try:
        family.split(f"{_our_layer(family, layer)}.weight")
    except KeyError:
        return False
    return True


def _split(family: DenoiserFamily, name: str) -> int | None:
    layer, _, kind = name.rpartition(".")
    return split_of(kind, family.split(f"{layer}.weight"))


def _layers(names: Iterable[str], origin: str) -> list[str]:
    """Layers of an adapter's parameters; each has A and B."""
    names = list(names)
    found = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    for layer in found:
        for kind in (DOWN, UP):
            if f"{layer}.{kind}" not in names:
                raise CheckpointError(f"{origin}: {layer}.{kind} is missing; the adapter is damaged or incomplete")
    return found


def _of_pattern(pattern: object, layer: str, default: Any) -> Any:
    """PEFT's value for a layer, where its config lists values by names or their ends."""
    if isinstance(pattern, Mapping):
        for key, value in pattern.items():
            if layer == key or layer.endswith(f".{key}"):
                return value
    return default


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is damaged; it must be a JSON object")
    return found


# ------------------------------------------------------------------------------------------------- loading and writing


def _check_fit(adapter: Adapter, network: Denoiser) -> None:
    """Raises CheckpointError unless the network has the adapter's layers, in its sizes."""
    parameters = adapter.family.parameters(network.config) if adapter.record.model_id == network.config.model_id else {}
    strange = [layer for layer in adapter.layers if f"{layer}.weight" not in parameters]
    if strange:
        raise CheckpointError(
            f"{adapter.path}: is an adapter of another network: this one has no linear {some(strange, 1)} "
            f"({len(strange)} of {len(adapter.layers)} are not there)"
        )
    for name, parameter in adapter_parameters(parameters, adapter.layers).items():
        if name not in adapter.weights or adapter.weights.shape(name) != parameter.shape:
            held = list(adapter.weights.shape(name)) if name in adapter.weights else "missing"
            raise CheckpointError(
                f"{adapter.path}: is an adapter of another network: {name} is {held}, this one needs {list(parameter.shape)}"
            )


def _fill(branches: Mapping[str, Branch], weights: Weights, network: Denoiser) -> None:
    parallel = network.parallel
    for layer, branch in branches.items():
        for kind, parameter in branch.named_parameters():
            weights.copy_into(parameter.data, f"{layer}.{kind}", parallel.tensor_rank, parallel.tensor_size)
    weights.report()


def _peft_name(name: str) -> str:
    return name if name.endswith(MAGNITUDE) else f"{name}.weight"


def _renamed(weights: Weights, names: Mapping[str, str]) -> Weights:
    """Weights by other names. names: the new one -> the one that they have."""
    shards = [{new: shard[old] for new, old in names.items()} for shard in weights.shards]
    return Weights(shards, lambda name: weights.dim(names[name]), weights.origin, weights.mapped, weights.distilled)


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    """adapter_config.json. Layers whose rank or alpha is not the first one's are listed by name."""
    rank_stable = adapter.record.config.kind == "rslora"
    alphas = {
        layer: settings.scale / scale_of(settings.rank, 1.0, rank_stable) for layer, settings in adapter.layers.items()
    }
    first = next(iter(adapter.layers))
    rank, alpha = adapter.layers[first].rank, alphas[first]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.record.base_path,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.record.config.dropout,
        "use_rslora": rank_stable,
        "use_dora": adapter.layers[first].dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": list(adapter.layers),
        "rank_pattern": {layer: item.rank for layer, item in adapter.layers.items() if item.rank != rank},
        "alpha_pattern": {layer: value for layer, value in alphas.items() if value != alpha},
    }
