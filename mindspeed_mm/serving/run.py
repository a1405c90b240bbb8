"""`mindspeed-mm serve`: loads the networks, starts the worker, serves the page and the API until a signal."""

import dataclasses
import importlib.util
import os
import socket

from mindspeed_mm import logs
from mindspeed_mm.config.sample import ServeConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.sampling import memory
from mindspeed_mm.sampling.pipeline import T2VPipeline, suited_to_weights
from mindspeed_mm.sampling.provenance import weights_of
from mindspeed_mm.serving import listening
from mindspeed_mm.serving.keys import Keys
from mindspeed_mm.serving.maker import SampleMaker
from mindspeed_mm.serving.metrics import Metrics
from mindspeed_mm.serving.queue import Queue
from mindspeed_mm.serving.together import follow, leading
from mindspeed_mm.serving.worker import Worker

_log = logs.get(__name__)
_NEEDED = ("fastapi", "uvicorn", "python_multipart")


def serve(config: ServeConfig, platform: Platform, parallel: ParallelContext) -> None:
    """The first rank serves and decides; the others make its samples with it. Collective.

    Raises ConfigError if the port is taken or the extra is missing. The caller holds the folder's lock.
    """
    door = _door(config) if parallel.is_first else None
    config = dataclasses.replace(config, sample=suited_to_weights(config.sample))
    sizes = [config.sample.model.pipeline_config.input_size]
    sample = memory.fitted(config.sample, sizes, platform, parallel, texts_stay=True)
    pipeline = T2VPipeline.from_config(
        sample.model,
        device=platform.device(int(os.environ.get("LOCAL_RANK", "0"))),
        parallel=parallel,
        load=sample.load,
        ema=sample.use_ema,
        options=sample.options,
        adapters=sample.adapters,
    )
    if door is None:
        follow(SampleMaker(sample, pipeline, platform, {}), parallel)
        return
    maker = SampleMaker(sample, pipeline, platform, weights_of(sample))
    if parallel.world_size == 1:
        _serve(config, maker, *door)
        return
    with leading(maker, parallel) as leader:
        _serve(config, leader, *door)


def _door(config: ServeConfig) -> tuple[Keys, socket.socket]:
    """What may be wrong with the server itself, found before weights are loaded."""
    _check_installed()
    return Keys.read(config.api.keys, config.api.max_per_key), listening.listen(config.host, config.port)


def _serve(config: ServeConfig, maker: SampleMaker, keys: Keys, listener: socket.socket) -> None:
    from mindspeed_mm.serving.app import build_app
    from mindspeed_mm.serving.desk import Desk

    metrics = Metrics()
    queue = Queue(maker.folder, config.max_queue, metrics.operation)
    keep_s = None if config.api.keep_days is None else config.api.keep_days * 86400
    worker = Worker(queue, maker, metrics.job, keep_s=keep_s)
    desk = Desk(queue, worker, maker, metrics, config.api.model_name)
    hosts = listening.NAMES if config.host in listening.THIS_MACHINE else ()
    app = build_app(desk, keys, int(config.api.max_upload_mb * 1e6), hosts, has_page=not config.api.is_alone)
    desk.sweep()
    worker.start()
    address = listening.address(listener)
    if not config.api.is_alone:
        _log.info(f"the page is at {address}")
    _log.info(f"the API is at {address}/v1, its model is {desk.model_name}")
    if config.host not in listening.THIS_MACHINE and not keys.are_asked:
        _log.warning(f"--host {config.host}: whoever reaches this port can sample; --api-keys asks for a token")
    try:
        listening.server(app).run(sockets=[listener])
    finally:
        worker.stop()
        queue.close()


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the server needs {', '.join(missing)}, not installed here: pip install 'mindspeed_mm[serve]'"
        )
