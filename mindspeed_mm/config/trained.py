"""Which parameters a run trains: all, those that patterns leave, or an adapter beside them."""

import dataclasses
from collections.abc import Mapping

from mindspeed_mm import families
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.adapters import DROPS, AdapterConfig, adapter_parameters, layers_of, settings_of
from mindspeed_mm.families.base import DenoiserConfig, Parameter
from mindspeed_mm.families.frozen_base import check_packings, check_streaming
from mindspeed_mm.families.patterns import matching
from mindspeed_mm.schema import Node, flag
from mindspeed_mm.schema.text import read_float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainedConfig:
    """Which parameters are trained; the others stay as they are, without gradients and optimizer state."""

    only: tuple[str, ...] = flag(
        (),
        "--train-only",
        metavar="NAME",
        help="train only these parameters: groups (attention, feed_forward, modulation, text, norm, ...), names, and patterns "
        "with *, separated by spaces or commas",
    )
    frozen: tuple[str, ...] = flag((), "--freeze", metavar="NAME", help="do not train these parameters, named as above")
    lr_multipliers: tuple[str, ...] = flag(
        (),
        "--lr-multiplier",
        metavar="NAME=FACTOR",
        help="factor on --lr and --min-lr for the trained parameters of this name, named as above; of several that match, the "
        "last counts",
    )


def check_adapter(
    adapter: AdapterConfig, model: TrainModelConfig, weights: Node, launch: LaunchConfig, precision: str, compiled: bool
) -> None:
    """Checks that an adapter can be trained: it has a base, its targets exist, and TP divides its layers.

    weights: place of predictor.from_pretrained. precision: of the network. compiled: its blocks are.
    """
    if model.predictor.from_pretrained is None:
        raise weights.error("is missing; an adapter needs the weights of its base")
    if precision == "fp16":
        raise ConfigError("--adapter: the network would be in fp16, in which an adapter's gradients overflow; use bf16")
    if adapter.stream_blocks is not None and compiled:
        raise ConfigError(
            f"--stream-blocks {adapter.stream_blocks}: a compiled block cannot wait for its weights; leave out --compile"
        )
    family = families.of_denoiser(model.predictor)
    parameters = family.parameters(model.predictor)
    check_packings(parameters, adapter.base_weights, launch.tensor_size)
    check_streaming(parameters, family.block_of, adapter.stream_blocks)
    for layer in layers_of(parameters, adapter.words):
        kind = parameters[f"{layer}.weight"].kind
        if adapter.dropout and kind not in DROPS:
            raise ConfigError(
                f"--adapter-dropout {adapter.dropout:g}: {layer} ({kind}) does not know the places of its inputs; give "
                f"--adapter-targets of {' and '.join(DROPS)} alone"
            )
        weight = parameters[f"{layer}.weight"]
        size = None if weight.dim is None else weight.shape[weight.dim]
        if size is not None and size % launch.tensor_size:
            raise ConfigError(
                f"--adapter-targets {layer}: its {size} {'outputs' if weight.dim == 0 else 'inputs'} do not divide by "
                f"--tensor-model-parallel-size {launch.tensor_size}"
            )


def check_trained(trained: TrainedConfig, denoiser: DenoiserConfig, adapter: AdapterConfig) -> None:
    """Checks that --train-only and --freeze name parameters and leave some to train."""
    parameters = families.of_denoiser(denoiser).parameters(denoiser)
    if adapter.kind is not None:
        if trained.only or trained.frozen:
            raise ConfigError("--adapter: freezes the whole network; leave out --train-only and --freeze")
    elif not trained_names(trained, parameters):
        raise ConfigError("--freeze: leaves nothing to train")
    lr_factors(trained, parameters, adapter)


def trained_names(trained: TrainedConfig, parameters: Mapping[str, Parameter]) -> list[str]:
    """The parameters that a run trains. Raises ConfigError for a name that means none."""
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    chosen = matching(kinds, trained.only, "--train-only", "parameter") if trained.only else list(kinds)
    frozen = set(matching(kinds, trained.frozen, "--freeze", "parameter")) if trained.frozen else set()
    return [name for name in chosen if name not in frozen]


def lr_factors(trained: TrainedConfig, parameters: Mapping[str, Parameter], adapter: AdapterConfig) -> dict[str, float]:
    """Factors on the learning rate by name of a trained parameter, as files spell it; names without one are left out.

    parameters: of the whole network. Raises ConfigError for a name that means no trained parameter, and for no factor.
    """
    if not trained.lr_multipliers:
        return {}
    if adapter.kind is None:
        names = set(trained_names(trained, parameters))
        kinds = {name: parameter.kind for name, parameter in parameters.items() if name in names}
    else:
        added = adapter_parameters(parameters, settings_of(adapter, parameters))
        kinds = {name: one.kind for name, one in added.items()}
    found = {}
    for text in trained.lr_multipliers:
        word, equals, number = text.rpartition("=")
        try:
            factor = read_float(number)
        except ValueError:
            factor = -1.0
        if not equals or not word or not 0 < factor <= 1e6:
            raise ConfigError(
                f"--lr-multiplier {text}: must be NAME=FACTOR with a factor above 0, such as attention=0.1"
            )
        found |= dict.fromkeys(matching(kinds, [word], "--lr-multiplier", "trained parameter"), factor)
    return {name: factor for name, factor in found.items() if factor != 1}
