"""`mindspeed-mm serve --api`: loads the networks, starts the worker, serves the API until a signal."""

import importlib.util
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.config.sample import ServeConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.provenance import weights_of
from mindspeed_mm.serving import listening
from mindspeed_mm.serving.keys import Keys
from mindspeed_mm.serving.maker import SampleMaker
from mindspeed_mm.serving.metrics import Metrics
from mindspeed_mm.serving.queue import Queue
from mindspeed_mm.serving.worker import Worker

_log = logs.get(__name__)
_NEEDED = ("fastapi", "uvicorn", "python_multipart")


def serve_api(config: ServeConfig, platform: Platform, parallel: ParallelContext) -> None:
    """Raises ConfigError if the port is taken or the extra is missing. The caller holds the folder's lock."""
    _check_installed()
    keys = Keys.read(config.api.keys, config.api.max_per_key)
    listener = listening.listen(config.host, config.port)
    sample = config.sample
    pipeline = T2VPipeline.from_config(
        sample.model,
        device=platform.device(0),
        parallel=parallel,
        load=sample.load,
        ema=sample.use_ema,
        options=sample.options,
        adapters=sample.adapters,
    )
    from mindspeed_mm.serving.app import build_app
    from mindspeed_mm.serving.desk import Desk

    maker, metrics = SampleMaker(sample, pipeline, platform, weights_of(sample)), Metrics()
    queue = Queue(Path(sample.model.save_path), config.max_queue, metrics.operation)
    worker = Worker(queue, maker, metrics.job)
    desk = Desk(queue, worker, maker, metrics, config.api.model_name)
    hosts = listening.NAMES if config.host in listening.THIS_MACHINE else ()
    app = build_app(desk, keys, int(config.api.max_upload_mb * 1e6), hosts)
    worker.start()
    _log.info(f"the API is at {listening.address(listener)}/v1, its model is {desk.model_name}")
    if config.host not in listening.THIS_MACHINE and not keys.are_asked:
        _log.warning(f"--host {config.host}: whoever reaches this port can sample; --api-keys asks for a token")
    try:
        listening.run(app, listener)
    finally:
        worker.stop()
        queue.close()


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the API needs {', '.join(missing)}, not installed here: pip install 'mindspeed_mm[api]'")
