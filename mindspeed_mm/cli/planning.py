"""`mindspeed-mm plan`: the layouts that fit, before a card is rented."""

import dataclasses
import json
import sys
from collections.abc import Sequence

from mindspeed_mm.errors import DataError, said_in_one_line
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.planning import job, plot, report
from mindspeed_mm.planning.cards import CARDS, Card, card_of
from mindspeed_mm.planning.explain import explain
from mindspeed_mm.planning.memory import Layout
from mindspeed_mm.schema import Program, flag, group

NAME = "mindspeed-mm plan"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlanFlags:
    """The flags of `mindspeed-mm plan`."""

    mm_model: str = flag("", "--mm-model", required=True, metavar="JSON", help="the networks of the run")
    mm_data: str = flag("", "--mm-data", required=True, metavar="JSON", help="data.json: the sizes of the clips")
    cards: int = flag(8, "--cards", at_least=1, at_most=2**20, help="number of cards")
    card: str | None = flag(
        None, "--card", choices=CARDS, help="kind of card, for its memory and its rates by data sheet"
    )
    memory_gib: float | None = flag(
        None, "--memory-gib", above=0, unit="GiB", help="memory of a card; default: --card's"
    )
    tflops: float | None = flag(
        None, "--tflops", above=0, unit="TFLOP/s", help="peak of dense bf16 products; default: --card's"
    )
    bandwidth: float | None = flag(
        None, "--bandwidth", above=0, unit="GB/s", help="bandwidth of a card's memory; default: --card's"
    )
    link: float | None = flag(
        None, "--link", above=0, unit="GB/s", help="one direction of a card's links in its node; default: --card's"
    )
    network: float | None = flag(
        None,
        "--network",
        above=0,
        unit="GB/s",
        help="one direction of a card's share of the network; default: --card's",
    )
    text_tokens: int | None = flag(
        None, "--text-tokens", at_least=1, help="real tokens of a caption; default: the longest that data.json allows"
    )
    micro_batch_size: int = flag(1, "--micro-batch-size", at_least=1, help="samples that a rank handles at a time")
    global_batch_size: int | None = flag(
        None, "--global-batch-size", at_least=1, help="samples of a step; default: a micro-batch of each data rank"
    )
    train_iters: int | None = flag(
        None, "--train-iters", at_least=1, unit="steps", help="length of the run, for its days and card-hours"
    )
    save_interval: int = flag(
        1000, "--save-interval", at_least=1, unit="steps", help="steps between saves, for the same"
    )
    cpu_offload: bool = flag(
        False, "--optimizer-cpu-offload", help="keep main weights, moments and the EMA on the host"
    )
    offloaded_blocks: int = flag(
        0,
        "--cpu-offloading-num-layers",
        at_least=0,
        help="keep the inputs of the first N recomputed blocks on the host, in layouts that recompute blocks",
    )
    adapter: AdapterConfig = group(AdapterConfig, "adapters: default, the model JSON's")
    as_json: bool = flag(False, "--json", help="print every layout that fits as JSON")

    explain: bool = flag(False, "--explain", help="print the formulas with the first layout's numbers")
    plot: str | None = flag(None, "--plot", metavar="FILE", help="draw memory by part for each layout: PNG, PDF or SVG")

    def problems(self):
        if self.card is None and self.memory_gib is None:
            yield "card", "give --card or --memory-gib"


PROGRAMS = {
    "plan": Program(
        flags=PlanFlags,
        description="Print which layouts of a training run fit the memory of the cards, fastest first, and the command.",
        remarks="Sizes come from formulas; the JSONs' paths need not exist, and no card is needed. Seconds are estimates "
        "from peak rates and assumed shares of them, not measured. Without --card they need --tflops, --bandwidth and "
        "--link. Exit code 1: nothing fits; the largest parts are named then, with what makes them smaller.",
        examples=(
            f"{NAME} --mm-model m.json --mm-data d.json --cards 8 --card 910b-64g",
            f"{NAME} --mm-model m.json --mm-data d.json --cards 2 --memory-gib 24",
            f"{NAME} --mm-model m.json --mm-data d.json --cards 64 \\\n      --card h100-80g --global-batch-size 64 --train-iters 10000",
            f"{NAME} --mm-model m.json --mm-data d.json --cards 1 \\\n      --card h100-80g --adapter lora",
        ),
    )
}


def plan(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm plan`."""
    words = list(sys.argv[1:] if argv is None else argv)
    with said_in_one_line():
        flags: PlanFlags = PROGRAMS["plan"].parse(words, prog or NAME).values
        adapter = flags.adapter if flags.adapter.kind is not None else None
        run = job.read(flags.mm_model, flags.mm_data, flags.text_tokens, flags.micro_batch_size, adapter)
        run = dataclasses.replace(
            run,
            global_batch=flags.global_batch_size,
            iterations=flags.train_iters,
            save_interval=flags.save_interval,
            cpu_offload=flags.cpu_offload,
            offloaded_blocks=flags.offloaded_blocks,
        )
        card = card_of(flags.card, flags.memory_gib, flags.tflops, flags.bandwidth, flags.link, flags.network)
        found = report.rows(run, flags.cards, card)
        if flags.plot is not None and found:
            _draw(found, card, flags.plot)
    print(json.dumps(found, indent=1) if flags.as_json else report.text(run, flags.cards, card, found))
    if flags.explain and found and not flags.as_json:
        first = Layout(*(found[0][name] for name in ("tensor", "context", "data", "recompute")))
        print("\n" + explain(run, first, card))
    if not found:
        raise SystemExit(1)


def _draw(found: list[dict], card: Card, file: str) -> None:
    try:
        plot.draw(found, card, file)
    except OSError as error:
        raise DataError(f"--plot {file}: {error}") from None
