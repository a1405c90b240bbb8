"""Config of the HTTP API that `mindspeed-mm serve` offers."""

import dataclasses

from mindspeed_mm.schema import flag


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ApiConfig:
    """OpenAI's videos API over HTTP."""

    is_alone: bool = flag(False, "--api", help="serve the API alone, without the page")
    keys: str | None = flag(
        None,
        "--api-keys",
        metavar="FILE",
        help="file of bearer tokens, a line each: NAME TOKEN [LIMIT]; default: the lines of $MINDSPEED_MM_API_KEYS, or no "
        "token is asked for",
    )
    max_per_key: int | None = flag(
        None,
        "--max-per-key",
        at_least=1,
        at_most=10**6,
        help="unfinished videos that a key without a LIMIT may have; default: as many as the queue takes",
    )
    model_name: str = flag("open-sora-plan-v1.5", "--model-name", help="name of the model in the API")
    keep_days: float | None = flag(
        None,
        "--keep-days",
        above=0,
        at_most=36500,
        unit="days",
        help="remove ended videos with their files after so long; default: never",
    )
    max_upload_mb: float = flag(
        10.0, "--max-upload-mb", at_least=0.01, at_most=1000, unit="MB", help="largest request, with its images"
    )
