"""Serves the page on a port: of files only finished samples, of Gradio's routes only those that the page needs."""

import dataclasses
import importlib.util
import os
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.config.sample import ServeConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.sampling.pipeline import T2VPipeline, suited_to_weights
from mindspeed_mm.sampling.provenance import weights_of
from mindspeed_mm.serving import listening
from mindspeed_mm.web.doors import Doors
from mindspeed_mm.web.studio import Studio

_log = logs.get(__name__)


def serve(config: ServeConfig, platform: Platform, parallel: ParallelContext) -> None:
    """Loads the networks and serves the page until Ctrl-C. Raises ConfigError if the port is taken or Gradio is
    missing.
    """
    _check_gradio()
    listener = listening.listen(config.host, config.port)
    config = dataclasses.replace(config, sample=suited_to_weights(config.sample))
    sample = config.sample
    device = platform.device(0)
    pipeline = T2VPipeline.from_config(
        sample.model,
        device=device,
        parallel=parallel,
        load=sample.load,
        ema=sample.use_ema,
        options=sample.options,
        adapters=sample.adapters,
    )
    studio = Studio(sample, pipeline, platform, weights_of(sample))
    app = build_app(studio, config)
    _log.info(f"the page is at {listening.address(listener)}")
    if config.host not in listening.THIS_MACHINE:
        _log.warning(f"--host {config.host}: whoever reaches this port can sample; it asks for no password")
    listening.run(app, listener)


def build_app(studio: Studio, config: ServeConfig):
    """The web application (ASGI): the page at /, finished samples at /samples/NAME."""
    os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(config.sample.model.save_path) / ".gradio"))
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio would report usage to its makers
    import fastapi
    import gradio as gr
    from fastapi.responses import FileResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from mindspeed_mm.web.page import CSS, build_page

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/samples/{name}")
    def sample(name: str):
        path = studio.file(name)
        if path is None:
            raise fastapi.HTTPException(404, "no such sample")
        return FileResponse(path)

    if (
        config.host in listening.THIS_MACHINE
    ):  # blocks a foreign page that reaches this one by its own name (DNS rebinding)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(listening.NAMES))
    app.add_middleware(Doors)
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",))
    return gr.mount_gradio_app(
        app, build_page(studio, config), path="/", theme=theme, css=CSS, footer_links=[], run_history=False,
        ssr_mode=False, enable_monitoring=False, max_file_size="1kb", mcp_server=False, pwa=False,
    )  # fmt: skip


def _check_gradio() -> None:
    if importlib.util.find_spec("gradio") is None:  # not imported here: it reads its environment when it is
        raise ConfigError(
            "the web page needs Gradio, which is not installed: pip install 'gradio>=6,<7' (it brings no torch)"
        )
