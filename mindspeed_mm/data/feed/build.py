"""A loader from a dataset and the settings of data.json."""

import dataclasses
import functools

from mindspeed_mm import logs
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.data.feed.collate import Extent, collate
from mindspeed_mm.data.feed.ledger import Ledger
from mindspeed_mm.data.feed.loader import ALONE, Loader, Sharing
from mindspeed_mm.data.feed.making import Join, Making
from mindspeed_mm.data.feed.sampler import GroupedSampler, Order, Split
from mindspeed_mm.data.feed.samples import Dataset

log = logs.get(__name__)


def build_loader(
    dataset: Dataset,
    config: DataConfig,
    split: Split,
    join: Join,
    *,
    seed: int,
    evaluation: bool = False,
    ledger: Ledger | None = None,
    sharing: Sharing = ALONE,
) -> Loader:
    """The loader of one data-parallel rank. Logs the size of an epoch.

    dataset: `build_dataset` makes one from a list; an object of your own fits too (see `Dataset`). config: workers,
    grouping and time limit; its list is not read here. join: see `joiner`. evaluation: all samples in the order of the
    list, also rare shapes, and equal epochs, so that losses compare; take a fixed number of batches and `rewind`. Its
    groups are one micro-batch of every rank, whatever the global batch is.
    """
    options = config.dataloader_param
    order = Order(
        seed=seed,
        grouped=options.group_data,
        shuffle=not evaluation and (options.shuffle or options.group_data),
        drop_last=options.drop_last and not evaluation,
        repeat=evaluation,
        drop_rare=not evaluation,
    )
    if evaluation:
        split = dataclasses.replace(split, group_size=split.step_size)
    sampler = GroupedSampler(dataset.keys, split, order)
    log.info("data: an epoch has %d samples in groups of %d of one shape", sampler.epoch_size, sampler.group_size)
    making = Making(options.num_workers, config.dataset_param.preprocess_parameters.timeout, options.pin_memory)
    return Loader(dataset, sampler, join, making, ledger=ledger, sharing=sharing)


def joiner(config: DataConfig, micro_batch_size: int, strides: Extent, patch_size: int, patch_size_t: int = 1) -> Join:
    """The collate of a config: to one shape, or padded to a target if batches mix shapes.

    strides: (t, h, w) of the autoencoder; like the patch sizes they come from the models.
    """
    target = config.dataloader_param.collate_param
    one_shape = config.dataloader_param.group_data or micro_batch_size == 1
    return functools.partial(
        collate,
        strides=strides,
        patch_size=patch_size,
        patch_size_t=patch_size_t,
        target=None if one_shape else (target.num_frames, target.max_height, target.max_width),
    )
