"""`mindspeed-mm evaluate`: figures of finished videos and of weights."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindspeed_mm import atomic, launch, logs
from mindspeed_mm.cli.ranks import at_once, run_on_ranks
from mindspeed_mm.config.evaluation import EVALUATE, EvaluateConfig, evaluate_config
from mindspeed_mm.errors import ConfigError

PROGRAMS = {"evaluate": EVALUATE}
_log = logs.get(__name__)


def evaluate(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm evaluate`."""
    run_on_ranks("evaluate", EVALUATE, evaluate_config, at_once(_evaluate), argv, prog)


def _evaluate(argv: Sequence[str], prog: str | None) -> None:
    config, output = evaluate_config(argv, prog=prog), sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if config.as_json else contextlib.nullcontext():
        logs.setup()  # to where stdout is now
        tf32 = (config.run.model.allow_tf32, config.run.model.allow_internal_format) if config.run else ()
        platform, parallel = launch.start(config.launch, *tf32)
        report, lines = _report(config, platform, parallel)
        if parallel.is_first:
            _write(config, report)
    if parallel.is_first:
        print(json.dumps(report, indent=1, ensure_ascii=False) if config.as_json else "\n".join(lines), file=output)
        output.flush()
    parallel.stop()


def _report(config: EvaluateConfig, platform, parallel) -> tuple[dict[str, Any], list[str]]:
    """The results for the JSON, and lines to print; on ranks but the first they hold the loss alone. Collective."""
    from mindspeed_mm.parallel.meeting import meet

    report: dict[str, Any] = {}
    lines: list[str] = []
    if config.run is not None:
        report["held-out loss"] = loss = _loss(config, platform, parallel)
        lines += [f"{name:24} {value:.6f}" for name, value in loss.items()]
    if config.videos.folder is not None and parallel.is_first:
        report["runs"], table = _videos(config, platform)
        lines += table
    meet("the videos", parallel, for_ever=True)
    return report, lines


def _loss(config: EvaluateConfig, platform, parallel) -> dict[str, float]:
    from mindspeed_mm.training.build import held_out_loss

    assert config.run is not None
    source = config.loss.load or config.run.model.predictor.from_pretrained
    if source is None:
        raise ConfigError(f"{config.loss.mm_model}: predictor.from_pretrained is missing (or give --load DIR)")
    return held_out_loss(config.run, platform, parallel, source, config.loss.use_ema)


def _videos(config: EvaluateConfig, platform) -> tuple[list[dict[str, Any]], list[str]]:
    """Measures the folders on this rank and writes their page and VBench's layout. Returns reports and a table."""
    from mindspeed_mm.evaluation import run
    from mindspeed_mm.training.build import local_device

    flags = config.videos
    measuring = run.Measuring(flags, local_device(platform), config.seed)
    found = [measuring(Path(folder)) for folder in (flags.folder, flags.against) if folder is not None]
    for path in run.write(found, _folder(config), flags.vbench):
        _log.info(f"wrote {path}")
    return [one.report() for one in found], run.table(found)


def _folder(config: EvaluateConfig) -> Path:
    assert config.videos.folder is not None or config.save is not None
    return Path(config.save) if config.save is not None else Path(config.videos.folder or "", "evaluation")


def _write(config: EvaluateConfig, report: dict[str, Any]) -> None:
    """evaluation.json; a loss without --save is only printed."""
    if config.save is None and config.videos.folder is None:
        return
    path = _folder(config) / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    _log.info(f"wrote {path}")
