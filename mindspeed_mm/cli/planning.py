"""`mindspeed-mm plan`: the layouts that fit, before a card is rented."""

import dataclasses
import json
import sys
from collections.abc import Sequence

from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.planning import job, report
from mindspeed_mm.planning.cards import CARDS
from mindspeed_mm.schema import Program, flag, group

NAME = "mindspeed-mm plan"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlanFlags:
    """The flags of `mindspeed-mm plan`."""

    mm_model: str = flag("", "--mm-model", required=True, metavar="JSON", help="the networks of the run")
    mm_data: str = flag("", "--mm-data", required=True, metavar="JSON", help="data.json: the sizes of the clips")
    cards: int = flag(8, "--cards", at_least=1, at_most=2**20, help="number of cards")
    card: str | None = flag(None, "--card", choices=CARDS, help="kind of card, for its memory")
    memory_gib: float | None = flag(None, "--memory-gib", above=0, unit="GiB", help="memory of a card, without --card")
    text_tokens: int | None = flag(
        None, "--text-tokens", at_least=1, help="real tokens of a caption; default: the longest that data.json allows"
    )
    micro_batch_size: int = flag(1, "--micro-batch-size", at_least=1, help="samples that a rank handles at a time")
    adapter: AdapterConfig = group(AdapterConfig, "adapters: default, the model JSON's")
    as_json: bool = flag(False, "--json", help="print every layout that fits as JSON")

    def problems(self):
        if (self.card is None) == (self.memory_gib is None):
            yield "card", "give either --card or --memory-gib"


PROGRAMS = {
    "plan": Program(
        flags=PlanFlags,
        description="Print which layouts of a training run fit the memory of the cards, cheapest first, and the command.",
        remarks="Sizes come from formulas; the JSONs' paths need not exist, and no card is needed. Exit code 1: nothing "
        "fits; the largest parts are named then, with what makes them smaller.",
        examples=(
            f"{NAME} --mm-model m.json --mm-data d.json --cards 8 --card 910b-64g",
            f"{NAME} --mm-model m.json --mm-data d.json --cards 2 --memory-gib 24",
            f"{NAME} --mm-model m.json --mm-data d.json --cards 1 \\\n      --card h100-80g --adapter lora",
        ),
    )
}


def plan(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm plan`."""
    words = list(sys.argv[1:] if argv is None else argv)
    with said_in_one_line():
        flags: PlanFlags = PROGRAMS["plan"].parse(words, prog or NAME).values
        memory_gib = CARDS[flags.card].memory_gib if flags.card is not None else flags.memory_gib or 0.0
        adapter = flags.adapter if flags.adapter.kind is not None else None
        run = job.read(flags.mm_model, flags.mm_data, flags.text_tokens, flags.micro_batch_size, adapter)
        found = report.rows(run, flags.cards, memory_gib)
    if flags.as_json:
        print(json.dumps(found, indent=1))
    else:
        print(report.text(run, flags.cards, memory_gib, found))
    if not found:
        raise SystemExit(1)
