"""Memory of a sampling job on one rank, by phase, and the fastest way to sample that fits."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from mindspeed_mm import families
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.planning.job import ITEMSIZE, TEXT_ENCODERS
from mindspeed_mm.planning.memory import GIB, numbers_of, parameters_of

# Share of the free memory that a way may use. It is less than in training: activations are an estimate there, and
# workspaces, gaps between tensors and communication buffers are left out.
USABLE = 0.85
Size = tuple[int, int, int]  # frames, height, width in pixels


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """How a job samples. `tiles` alone changes pixels; the others change the rounding at most."""

    guidance: str  # "none", "paired", "batched" or "sequential"
    offload: bool  # idle networks are in the host's memory
    tiles: bool  # large frames are decoded in overlapping tiles

    def __str__(self) -> str:
        guidance = {"batched": "both halves of guidance in one batch", "sequential": "halves of guidance one by one"}
        words = [guidance[self.guidance]] if self.guidance in guidance else []
        words += ["idle networks on the host" if self.offload else "all networks on the device"]
        return ", ".join([*words, "decoding in tiles" if self.tiles else "decoding whole frames"])


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """Bytes on one rank."""

    denoiser: int  # weights
    autoencoder: int
    texts: int  # text encoders that stay beside the others; 0 if they leave before the others come
    half: int  # activations of the denoiser for one half of guidance of a batch
    whole: int  # peak of decoding a video, beside weights
    tiled: int | None  # the same in tiles; None: the autoencoder has none

    def peaks(self, way: Way) -> dict[str, int]:
        """Bytes at the peak of each phase."""
        resident = self.denoiser + self.autoencoder + self.texts
        decoding = self.tiled if way.tiles else self.whole
        assert decoding is not None, "a way without tiles"
        return {
            "denoising": (self.denoiser if way.offload else resident) + self.half * (1 + (way.guidance == "batched")),
            "decoding": (self.autoencoder if way.offload else resident) + decoding,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A way, what it needs, and why it was taken. memory: bytes that are free."""

    way: Way
    phase: str  # of the peak
    peak: int
    memory: int
    refused: tuple[Way, int] | None = None  # the slowest way that would be faster, and its peak, which does not fit

    @property
    def fits(self) -> bool:
        return self.peak <= USABLE * self.memory

    def __str__(self) -> str:
        text = f"{self.way}: predicted {self.peak / GIB:.1f} GiB ({self.phase}) of {self.memory / GIB:.1f} GiB free"
        if self.refused is not None:
            text += f"; {self.refused[0]} would need {self.refused[1] / GIB:.1f} GiB"
        return f"{text}; up to {USABLE:.0%} is used"


def load_of(
    model: SampleModelConfig, sizes: Iterable[Size], *, tensor: int, ranks: int, text_tokens: int, texts_stay: bool
) -> Load | None:
    """The load of a job's largest samples; None where a family has no formulas.

    sizes: of the samples. tensor: TP ranks; ranks: that share a sample's tokens. texts_stay: the text encoders, of which
    the published ones are counted, stay beside the other networks.
    """
    denoiser, autoencoder = families.of_denoiser(model.predictor), families.of_config(model.ae)
    if autoencoder.decode_bytes is None or autoencoder.encode_bytes is None:
        return None
    item, item_ae = ITEMSIZE[model.weight_dtype], ITEMSIZE[model.ae.dtype]
    half = whole = tiled = 0
    has_tiles = autoencoder.in_tiles(model.ae) is not None
    whole_ae, tiled_ae = (autoencoder.with_tiles(model.ae, tiles) for tiles in (False, has_tiles))
    for size in set(sizes):
        latent = model.ae.strides
        grid = ((size[0] - 1) // latent[0] + 1, size[1] // latent[1], size[2] // latent[2])
        extent = denoiser.extent(model.predictor, grid)
        activations = denoiser.activation_bytes(model.predictor, extent, text_tokens, itemsize=item, ranks=ranks)
        half = max(half, model.micro_batch_size * activations)
        pixels = 3 * math.prod(size)
        beside = pixels * (item_ae + 8)  # the video on its way to uint8: two copies in fp32
        if denoiser.image_mask_channels(model.predictor):
            beside = max(beside, autoencoder.encode_bytes(model.ae, size, item_ae) + pixels * item_ae)
        whole = max(whole, beside, autoencoder.decode_bytes(whole_ae, size, item_ae))
        tiled = max(tiled, beside, autoencoder.decode_bytes(tiled_ae, size, item_ae))
    return Load(
        denoiser=numbers_of(parameters_of(model.predictor), tensor) * item,
        autoencoder=numbers_of(autoencoder.parameters(model.ae), 1) * item_ae,
        texts=TEXT_ENCODERS * item if texts_stay else 0,
        half=half,
        whole=whole,
        tiled=tiled if has_tiles else None,
    )


def ways(guidance: Sequence[str], offload: Sequence[bool], tiles: Sequence[bool]) -> Iterator[Way]:
    """All ways of these settings, the fastest first.

    Tiles come last, since they alone change pixels. Moving networks to and from the host costs seconds for each video,
    and halves one after the other cost little, since one half of a large video fills the device.
    """
    for tile, host, mode in itertools.product(sorted(tiles), sorted(offload), sorted(guidance)):
        yield Way(mode, host, tile)


def choose(load: Load, allowed: Iterable[Way], memory: int) -> Choice:
    """The first of these ways that fits; if none does, the one with the smallest peak."""
    found = []
    for way in allowed:
        peaks = load.peaks(way)
        phase = max(peaks, key=peaks.__getitem__)
        found.append(Choice(way, phase, peaks[phase], memory, (found[-1].way, found[-1].peak) if found else None))
        if found[-1].fits:
            return found[-1]
    return dataclasses.replace(min(found, key=lambda choice: choice.peak), refused=None)
