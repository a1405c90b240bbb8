"""`mindspeed-mm schema`: JSON Schema of the config files, for editors."""

import dataclasses
import json
import sys
from collections.abc import Sequence

from mindspeed_mm.config import json_schemas
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import Program, flag


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SchemaFlags:
    kind: str = flag("", "kind", choices=json_schemas.NAMES, help="kind of the file")


PROGRAMS = {
    "schema": Program(
        flags=SchemaFlags,
        description="Print the JSON Schema of a kind of config file: keys, types, ranges and choices, for editors.",
        remarks="Rules between keys are not in it; `mindspeed-mm config show FILE` checks them. The published files hold "
        "comments, so tell the editor that they are JSON with comments.",
        examples=("mindspeed-mm schema model > model.schema.json",),
    )
}


def schema(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm schema`."""
    with said_in_one_line():
        flags = PROGRAMS["schema"].parse(sys.argv[1:] if argv is None else argv, prog).values
        print(json.dumps(json_schemas.schema(flags.kind), indent=1))
