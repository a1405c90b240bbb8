"""What a sampling job leaves to the device's memory: how guidance runs, where idle networks are, tiles of decoding."""

import dataclasses
from collections.abc import Collection

import torch

from mindspeed_mm import families, logs
from mindspeed_mm.config.sample import SampleConfig, SampleModelConfig, SamplingOptions
from mindspeed_mm.parallel.collectives import token_parts
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet
from mindspeed_mm.planning.memory import GIB
from mindspeed_mm.planning.sampling import Choice, Load, Size, Way, choose, load_of, ways
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.platforms.select import select

_log = logs.get(__name__)
_TEXT_TOKENS = 512  # of T5, in every prompt
_LESS = (
    "take a smaller input_size, --micro-batch-size 1, or share the network over ranks by --tensor-model-parallel-size"
)


def fitted(
    config: SampleConfig, sizes: Collection[Size], platform: Platform, parallel: ParallelContext, *, texts_stay: bool
) -> SampleConfig:
    """The config with its open settings chosen by the memory that is free on the fullest rank; collective.

    sizes: of all samples. texts_stay: the text encoders stay beside the other networks. A CPU keeps everything as it is:
    its networks have nowhere else to be, and tiles would change pixels.
    """
    memory = None
    if platform.name != "cpu":
        memory = meet("the device's memory", parallel, config.options.memory_bytes or platform.available_memory(), min)
    model, options = choose_open(config.model, config.options, sizes, memory, parallel, texts_stay=texts_stay)
    return dataclasses.replace(config, model=model, options=options)


def for_pipeline(
    model: SampleModelConfig, options: SamplingOptions, device: torch.device, parallel: ParallelContext
) -> tuple[SampleModelConfig, SamplingOptions]:
    """As `fitted`, for a pipeline of the config's own size that one process builds; several ranks have called `fitted`."""
    memory, is_open = None, options.offload is None or options.spatial_tiles == "auto"
    if is_open and device.type != "cpu" and parallel.world_size == 1:
        memory = options.memory_bytes or select(device.type).available_memory()
    return choose_open(model, options, [model.pipeline_config.input_size], memory, parallel, texts_stay=True)


def choose_open(
    model: SampleModelConfig,
    options: SamplingOptions,
    sizes: Collection[Size],
    memory: int | None,
    parallel: ParallelContext,
    *,
    texts_stay: bool,
) -> tuple[SampleModelConfig, SamplingOptions]:
    """As `fitted`, for memory that is known. memory: free bytes; None: nothing is to be chosen."""
    load = None
    if memory is not None:
        load = load_of(
            model,
            sizes,
            tensor=parallel.tensor_size,
            ranks=token_parts(parallel),
            text_tokens=_TEXT_TOKENS,
            texts_stay=texts_stay,
        )
    if load is None or memory is None:
        return _with(model, options, Way(options.guidance_mode, bool(options.offload), wants_tiles(model, options)))
    choice = choose(load, ways(*_allowed(model, options, parallel, load)), memory)
    if parallel.is_first and choice.fits:
        _log.info(f"memory: {choice}")
    elif parallel.is_first:
        _log.warning(f"memory: {choice}, so it may run out of memory; {_fix(model, options, parallel, load, choice)}")
    # guidance stays open: smaller samples of the job may run both halves in one batch
    way = dataclasses.replace(choice.way, guidance=options.guidance_mode)
    return _with(model, dataclasses.replace(options, memory_gib=options.memory_gib or memory / GIB), way)


def wants_tiles(model: SampleModelConfig, options: SamplingOptions) -> bool:
    """Tiles by the flag, else by the config."""
    if options.spatial_tiles == "auto":
        return bool(families.of_config(model.ae).in_tiles(model.ae))
    return options.spatial_tiles == "on"


def _with(model: SampleModelConfig, options: SamplingOptions, way: Way) -> tuple[SampleModelConfig, SamplingOptions]:
    model = dataclasses.replace(model, ae=families.of_config(model.ae).with_tiles(model.ae, way.tiles))
    return model, dataclasses.replace(options, offload=way.offload, spatial_tiles="on" if way.tiles else "off")


def _allowed(
    model: SampleModelConfig, options: SamplingOptions, parallel: ParallelContext, load: Load
) -> tuple[list[str], list[bool], list[bool]]:
    """Modes of guidance, offload, tiles: what the user has set, or all that there are."""
    guidance = ["batched", "sequential"] if options.guidance_mode == "auto" else [options.guidance_mode]
    if not model.diffusion.guidance_scale > 1:
        guidance = ["none"]
    elif parallel.guidance_size > 1:
        guidance = ["paired"]
    offload = [False, True] if options.offload is None else [options.offload]
    tiles = [wants_tiles(model, options)]
    if options.spatial_tiles == "auto" and load.tiled is not None and not tiles[0]:
        tiles = [False, True]
    return guidance, offload, tiles


def _fix(
    model: SampleModelConfig, options: SamplingOptions, parallel: ParallelContext, load: Load, choice: Choice
) -> str:
    """What would make it fit: to leave out flags, or less to hold."""
    given = {
        "--cfg-mode": options.guidance_mode != "auto",
        "--no-offload": options.offload is False,
        "--spatial-tiles": options.spatial_tiles == "off",
    }
    named = [name for name, is_given in given.items() if is_given]
    free = dataclasses.replace(options, guidance_mode="auto", offload=None, spatial_tiles="auto")
    if named and choose(load, ways(*_allowed(model, free, parallel, load)), choice.memory).fits:
        return f"leave out {' and '.join(named)}, then it fits"
    return _LESS
