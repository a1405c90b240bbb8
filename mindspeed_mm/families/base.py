"""Facts about a network without building it: names, shapes, split, dialects, arithmetic.

A family is one record (`Family`). Converters, the reader of configs and the reports use the record alone, so they need
neither torch nor megatron-core, and a new network changes none of them.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from mindspeed_mm.schema import Node

Shape = tuple[int, ...]
Grid = tuple[int, int, int]
Config = TypeVar("Config")  # the dataclass of a family's block
DTYPES = ("fp32", "bf16", "fp16")


class DenoiserConfig(Protocol):
    """Fields of every denoiser's config, for code that does not know the network."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def model_id(self) -> str: ...

    @property
    def from_pretrained(self) -> str | None: ...

    @property
    def num_heads(self) -> int:
        """Divided over TP x CP ranks."""
        ...

    @property
    def patch_size(self) -> int:
        """Latent pixels per side of a token."""
        ...

    @property
    def velocity_channels(self) -> int:
        """Channels of the denoiser's output, those of the latent."""
        ...


class AutoencoderConfig(Protocol):
    """Fields of every autoencoder's config, for code that does not know the network."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def model_id(self) -> str: ...

    @property
    def from_pretrained(self) -> str | None: ...

    @property
    def latent_dim(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    @property
    def scale(self) -> tuple[float, ...] | None: ...

    @property
    def shift(self) -> tuple[float, ...] | None: ...

    @property
    def strides(self) -> Grid:
        """(t, h, w) compression."""
        ...


# Text encoder ("text_encoder", "text_encoder_2") -> the key of the config that gives its features' width, and the width.
# A network without pooled text leaves "text_encoder_2" out.
TextWidths = Mapping[str, tuple[str, int]]


class ActivationBytes(Protocol):
    """Estimates the activation memory of one sample at the peak of a forward pass, in bytes, rather too high."""

    def __call__(self, config: Any, extent: Grid, text_tokens: int, *, itemsize: int, ranks: int) -> int:
        """extent: grid of video tokens. itemsize: bytes of one activation. ranks: that share a sample's tokens."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a network."""

    shape: Shape  # whole shape, not one TP rank's part
    dim: int | None = None  # the dimension that is split over TP; None: every rank holds all of it
    kind: str = ""  # its part of the network, such as "attention"


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """One rank's share of a training step's micro-batch, for estimates of its memory."""

    batch: int  # samples
    video_tokens: int  # of a whole sample
    text_tokens: int  # of a whole sample, those that are computed
    itemsize: int  # bytes of a number of weights and activations
    tensor: int = 1  # TP ranks
    context: int = 1  # CP ranks
    sequence_parallel: bool = False
    recompute_blocks: int = 0  # first blocks that are recomputed as a whole
    offloaded_blocks: int = 0  # first of these, whose inputs wait on the host
    recompute_feed_forwards: int = 0  # first blocks whose feed-forward is recomputed
    frozen: bool = False  # True: weights have no gradients, since adapters are trained


@dataclasses.dataclass(frozen=True, slots=True)
class Collective:
    """One kind of exchange that a rank takes part in."""

    kind: str  # "all-gather", "reduce-scatter", "all-reduce" or "all-to-all"
    group: str  # field of `ParallelContext`: "tensor", "context", "data_and_context", "data", "everyone"
    bytes: int  # of the larger buffer: a gather's result, a scatter's input
    count: int = 1
    beside_products: bool = False  # True: issued together with a matrix product, which hides it


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What one rank computes, moves and exchanges for the forward and backward pass of a micro-batch."""

    products: int  # floating-point operations of matrix products, without attention
    attention: Mapping[int, int]  # sparsity -> floating-point operations of attention with it
    again: int  # floating-point operations that recomputation repeats, on top
    moved_bytes: int  # that operators other than products read and write
    collectives: tuple[Collective, ...]
    partial_numbers: int  # numbers of gradients that are summed over TP after the step's last backward pass


class Renaming:
    """A dialect's names of the same parameters, as pairs of templates: ours -> theirs.

    `*` stands for one part of a name; both sides of a pair have the same number of them. A name that no template
    matches is the same on both sides.
    """

    def __init__(self, templates: Mapping[str, str]):
        self._out = _rules(templates)
        self._in = _rules({theirs: ours for ours, theirs in templates.items()})

    def to_theirs(self, name: str) -> str:
        """The dialect's name for a parameter of ours."""
        return _renamed(name, self._out)

    def to_ours(self, name: str) -> str:
        """Our name for a parameter of the dialect."""
        return _renamed(name, self._in)


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """One published spelling of a family's names."""

    name: str  # value of `--dialect`
    title: str  # name in reports
    mark: re.Pattern  # matches a name that only this dialect has
    renaming: Renaming
    has_unused: bool = True  # its files hold the family's `unused` parameters
    has_extra_states: bool = False  # its files hold Megatron's empty `_extra_state` beside the weights of split linears


@dataclasses.dataclass(frozen=True, slots=True)
class Unused:
    """A parameter that some files hold although no result depends on it; the network never builds it."""

    like: str  # name of a parameter with the same shape and split
    value: float  # value to write in a file that must contain it


@dataclasses.dataclass(frozen=True, slots=True)
class Family(Generic[Config]):
    """Facts about a kind of network, without its tensors."""

    model_id: str  # name in the config
    title: str  # name in messages
    config: type[Config]  # the dataclass of its block in a model JSON
    published: Callable[[Node], Node]  # such a block in any published spelling -> in ours
    parameters: Callable[[Config], dict[str, Parameter]]  # config -> every parameter, in the network's order
    split: Callable[[str], int | None]  # name -> dimension that is split over TP; KeyError for an unknown name
    dialects: tuple[Dialect, ...]  # the first one is ours
    describe: Callable[[Iterable[str], Callable[[str], Shape]], dict[str, object]]  # weights -> keys of the config
    unused: Callable[[Iterable[str]], dict[str, Unused]] = lambda names: {}  # by name, for the network with these names
    may_be_missing: Callable[[str], bool] = lambda name: False  # names that some files leave out
    begins_at_zero: Callable[[str], bool] = lambda name: False  # parameters that may be added to weights, as zeros
    part_of: Callable[[str], str] = lambda name: name.partition(".")[0]  # name -> part of the network, for reports
    # name -> the block of a denoiser that a parameter is in; None: outside of all
    block_of: Callable[[str], str | None] = lambda name: None
    # of an autoencoder: config, (frames, height, width) in pixels, bytes of a number -> peak bytes of encoding one video
    encode_bytes: Callable[[Config, Grid, int], int] | None = None
    # the same -> peak bytes of decoding one video
    decode_bytes: Callable[[Config, Grid, int], int] | None = None
    # of an autoencoder: whether it decodes large frames in tiles; None: it cannot
    in_tiles: Callable[[Config], bool | None] = lambda config: None
    with_tiles: Callable[[Config, bool], Config] = lambda config, tiles: (
        config
    )  # a config that decodes in tiles or whole

    def speaks(self, names: Iterable[str]) -> Dialect | None:
        """The dialect of these names, or None if they belong to another network."""
        names = list(names)
        return next((dialect for dialect in self.dialects if any(map(dialect.mark.match, names))), None)

    def dialect(self, name: str) -> Dialect:
        """The dialect of this name. Raises StopIteration if there is none."""
        return next(dialect for dialect in self.dialects if dialect.name == name)

    def to_ours(self, name: str) -> str:
        """Our name for a parameter of any dialect."""
        for dialect in self.dialects:
            name = dialect.renaming.to_ours(name)
        return name

    def differences(self, described: Mapping[str, object], config: Config) -> str:
        """Differences between a config and its weights: "num_layers is (2, 4, 2) by the weights, (2, 2, 2) in the
        config".
        """
        mine = self.describe_config(config)
        return "; ".join(
            f"{key} is {value} by the weights, {mine[key]} in the config"
            for key, value in described.items()
            if value != mine[key]
        )

    def missing(self, names: Iterable[str], shape_of: Callable[[str], Shape]) -> list[str]:
        """Parameters that weights lack although their other names show that the network has them."""
        names = set(names)
        described = self.describe(names, shape_of)
        if not described:
            return []
        wanted = self.parameters(self.config(**described))
        return [name for name in wanted if name not in names and not self.may_be_missing(name)]

    def describe_config(self, config: Config) -> dict[str, object]:
        """The description that weights of this config would give."""
        shapes = {name: parameter.shape for name, parameter in self.parameters(config).items()}
        return self.describe(shapes, shapes.__getitem__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserFamily(Family[Config]):
    """Facts about a kind of denoiser."""

    # config, channels of the latent -> rules that are broken: (key of the config, what is wrong)
    channel_problems: Callable[[Config, int], Iterable[tuple[str, str]]]
    text_widths: Callable[[Config], TextWidths]
    # config -> mask channels of the image condition, one for each frame of a latent; 0: the network takes no images
    image_mask_channels: Callable[[Config], int] = lambda config: 0
    extent: Callable[[Config, Grid], Grid]  # config, latent (t, h, w) -> the grid of its video tokens
    forward_flops: Callable[[Config, Grid, int], int]  # config, grid of tokens, number of text tokens
    activation_bytes: ActivationBytes
    # config, a rank's share -> peak bytes of a training step beside weights and gradients; None: not known
    training_bytes: Callable[[Config, Share], int] | None = None
    # config, a rank's share -> operations of a forward and backward pass: products, attention by sparsity; None: not known
    training_flops: Callable[[Config, Share], tuple[int, dict[int, int]]] | None = None
    # config, a rank's share, the network's parameters -> its work for a micro-batch; None: not known
    training_work: Callable[[Config, Share, Mapping[str, Parameter]], Work] | None = None


def _renamed(name: str, rules: list[tuple[re.Pattern, str]]) -> str:
    for pattern, replacement in rules:
        match = pattern.fullmatch(name)
        if match:
            return replacement.format(*match.groups())
    return name


def _rules(templates: Mapping[str, str]) -> list[tuple[re.Pattern, str]]:
    return [
        (re.compile(re.escape(source).replace(r"\*", r"([^.]+)")), target.replace("*", "{}"))
        for source, target in templates.items()
    ]


def with_values(node: Node, names: Mapping[str, Mapping[str, str]]) -> Node:
    """The block with values renamed: key -> their value -> ours."""
    if not isinstance(node.value, dict):
        return node
    value = dict(node.value)
    for key, ours in names.items():
        if key in value and isinstance(value[key].value, str):
            value[key] = dataclasses.replace(value[key], value=ours.get(value[key].value, value[key].value))
    return dataclasses.replace(node, value=value)
