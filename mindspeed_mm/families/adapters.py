"""Low-rank adapters without tensors: which layers have one, and the names, shapes and splits of its parameters.

An adapter of a linear y = W x adds scale B A x: A [rank, in] and B [out, rank] are small, W stays as it is (LoRA,
2106.09685). `adapters/` has the tensors, `weights/adapters.py` the files.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from mindspeed_mm.families.base import Parameter
from mindspeed_mm.families.patterns import matching
from mindspeed_mm.schema import flag

# Name -> what it is. rsLoRA keeps the size of the update at every rank; DoRA learns each row's length beside its direction.
KINDS = {"lora": "LoRA (2106.09685)", "rslora": "rsLoRA (2312.03732)", "dora": "DoRA (2402.09353)"}
DOWN, UP, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"  # PEFT's names of A, B and DoRA's lengths
HOME = "adapters"  # attribute of a linear that holds its adapters, and part of their parameters' names
DROPS = ("attention", "feed_forward")  # kinds of linears whose adapters may have dropout
_NEVER = ("norm", "")  # kinds of parameters that are no linear


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """An adapter to train: flags, and the block `predictor.adapter` of the model JSON."""

    kind: str | None = flag(
        None,
        "--adapter",
        choices=tuple(KINDS),
        help="freeze the network and train an adapter of this kind; default: train the whole network",
    )
    rank: int = flag(16, "--adapter-rank", at_least=1, at_most=2**16, help="rank of each adapter")
    alpha: float | None = flag(
        None,
        "--adapter-alpha",
        above=0,
        at_most=1e6,
        help="size of the update: alpha / rank (rslora: alpha / sqrt(rank)); default: the rank",
    )
    targets: tuple[str, ...] = flag(
        ("attention", "feed_forward"),
        "--adapter-targets",
        metavar="NAME",
        help="linears that get one: groups (attention, feed_forward, modulation, text, skip, embedding, output) and patterns "
        "of names, such as '*.attn1.to_q'; separated by spaces or commas (default attention feed_forward)",
    )

    dropout: float = flag(
        0.0,
        "--adapter-dropout",
        at_least=0,
        below=1,
        help="share of the inputs of each adapter that is left out in training, the same at every layout",
    )
    base_weights: str | None = flag(
        None,
        "--base-weights",
        choices=("int8", "nf4"),
        help="hold the linears of the frozen network's blocks in 8 or 4 bits (nf4, as QLoRA); default: in the run's precision",
    )
    stream_blocks: int | None = flag(
        None,
        "--stream-blocks",
        at_least=1,
        metavar="N",
        help="keep the frozen network's blocks on the host, and N of them on the device at a time; default: all on the device",
    )

    @property
    def dora(self) -> bool:
        return self.kind == "dora"

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return scale_of(self.rank, self.rank if self.alpha is None else self.alpha, self.kind == "rslora")

    @property
    def words(self) -> tuple[str, ...]:
        """The targets one by one."""
        return tuple(word for item in self.targets for word in item.split(",") if word)


@dataclasses.dataclass(frozen=True, slots=True)
class LayerAdapter:
    """What an adapter of one linear is, apart from its values."""

    rank: int
    scale: float
    dora: bool = False
    dropout: float = 0.0  # in training


def settings_of(adapter: AdapterConfig, parameters: Mapping[str, Parameter]) -> dict[str, LayerAdapter]:
    """The adapter of each linear that the config's targets mean; see `layers_of`."""
    settings = LayerAdapter(adapter.rank, adapter.scale, adapter.dora, adapter.dropout)
    return dict.fromkeys(layers_of(parameters, adapter.words), settings)


def scale_of(rank: int, alpha: float, rank_stable: bool) -> float:
    """Factor of B A: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
    return alpha / (math.sqrt(rank) if rank_stable else rank)


def layers_of(parameters: Mapping[str, Parameter], targets: Iterable[str]) -> list[str]:
    """Names of the linears that the targets mean, in the network's order. parameters: all of the network.

    Raises ConfigError for a target that means none.
    """
    linears = linears_of(parameters)
    kinds = {layer: parameter.kind for layer, parameter in linears.items()}
    return matching(kinds, targets, "--adapter-targets", "linear")


def linears_of(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Layer -> its weight, for every linear of a network."""
    return {
        name.removesuffix(".weight"): parameter
        for name, parameter in parameters.items()
        if name.endswith(".weight") and len(parameter.shape) == 2 and parameter.kind not in _NEVER
    }


def adapter_parameters(parameters: Mapping[str, Parameter], layers: Mapping[str, LayerAdapter]) -> dict[str, Parameter]:
    """Parameters of adapters: "LAYER.lora_A" and so on -> whole shape, and the dimension that is split over TP."""
    found = {}
    for layer, settings in layers.items():
        weight = parameters[f"{layer}.weight"]
        rows, columns = weight.shape
        shapes = {DOWN: (settings.rank, columns), UP: (rows, settings.rank)}
        shapes |= {MAGNITUDE: (rows,)} if settings.dora else {}
        for kind, shape in shapes.items():
            found[f"{layer}.{kind}"] = Parameter(shape, split_of(kind, weight.dim), weight.kind)
    return found


def split_of(kind: str, dim: int | None) -> int | None:
    """The dimension of an adapter's parameter that is split over TP, by that of its linear's weight."""
    split = 1 if kind == DOWN else 0
    return split if dim == split else None


def is_adapter(name: str) -> bool:
    """True for a parameter of an adapter."""
    return f".{HOME}." in name


def plain_name(name: str) -> str:
    """The name in files: "LAYER.adapters.0.lora_A" -> "LAYER.lora_A"."""
    layer, _, kind = name.rpartition(".")
    return f"{layer.rpartition(f'.{HOME}.')[0]}.{kind}"
