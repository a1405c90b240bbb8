"""Programs with ranks that make videos: sample, serve."""

from collections.abc import Sequence

from mindspeed_mm import launch
from mindspeed_mm.cli.ranks import at_once, run_on_ranks
from mindspeed_mm.config import arguments, resolve

PROGRAMS = {"sample": arguments.SAMPLE, "serve": arguments.SERVE}


def sample(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm sample` and inference.py."""
    run_on_ranks("sample", arguments.SAMPLE, resolve.sample_config, at_once(_sample), argv, prog)


def serve(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm serve` and `python -m mindspeed_mm.serve`."""
    run_on_ranks("serve", arguments.SERVE, resolve.serve_config, at_once(_serve), argv, prog)


def _sample(argv: Sequence[str], prog: str | None) -> None:
    config = resolve.sample_config(argv, prog=prog)
    platform, parallel = launch.start(config.launch)
    from mindspeed_mm.sampling.run import run

    with launch.alone_in(config.model.save_path, "save_path", parallel, {}):
        run(config, platform, parallel)
    parallel.stop()


def _serve(argv: Sequence[str], prog: str | None) -> None:
    config = resolve.serve_config(argv, prog=prog)
    platform, parallel = launch.start(config.sample.launch)
    from mindspeed_mm.serving.run import serve

    with launch.alone_in(config.sample.model.save_path, "save_path", parallel, {}):
        serve(config, platform, parallel)
    parallel.stop()
