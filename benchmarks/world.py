"""What one rank of a large world does: start, three steps, a save and a resume, under torch's fake process group.

    python benchmarks/world.py [--ranks 16 128 1024] [--tensor 2] > docs/benchmarks/world.md

One process runs the program of rank 0: the whole training loop with network, engine, EMA, log lines, heartbeat, `Saver` and store,
with a tiny network on made-up latents. The collectives are issued and counted, and nobody answers them. The other ranks' answers
in the store and their files of the checkpoint are made by `world_others.py`. A fake group opens no sockets, so they are not
counted; which groups a rank joins is.
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
import tempfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

from table import table
from world_others import OtherRanks, write_others

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PHASES = ("start", "3 steps", "save", "resume")
HEAD = """# One rank of a large world

Made by `python benchmarks/world.py`: rank 0's program at TP {tensor}, with a network of {parameters:,} parameters on a TP rank, under
torch's fake process group: the training loop of three steps with a log line, a save, and the loop of a run that resumes. Clips and
encoders are left out. Nobody answers its collectives; the other ranks' answers in the store and their files of the checkpoint
are made by the functions that a rank calls. A fake group opens no sockets, so none are counted; nor are the calls that the
heartbeat's thread makes in the store, four in two seconds.

A step, and what a rank writes, do not grow with DP. These do:

- a log line: three numbers of each rank, 12 bytes, by which it names the slowest;
- the random states of all data ranks, 5 kB each, gathered to the first of them in a save (not counted below);
- the index of a checkpoint: a shard's end cuts a tensor, so each data rank adds about one part to each of the five groups. Rank 0
  writes it, every rank reads it in a resume. The Python objects at the peak are mostly this;
- the list of a checkpoint's files, 22 bytes each, which rank 0 tells all in a resume;
- what Megatron's groups tell each other at the start, 54 bytes for each rank;
- files: one for each rank. A resume opens the few that hold its shards.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 128, 1024], help="sizes of the world")
    parser.add_argument("--tensor", type=int, default=2, help="tensor parallel size")
    options = parser.parse_args()
    import torch.multiprocessing as mp

    found = {}
    for ranks in options.ranks:  # a fake group lasts as long as its process
        answers = mp.get_context("spawn").SimpleQueue()
        mp.spawn(answer, (ranks, options.tensor, answers), 1)
        found[ranks] = answers.get()
    print(page(found, options.tensor))


def answer(_: int, ranks: int, tensor: int, answers) -> None:
    with tempfile.TemporaryDirectory() as folder:
        answers.put(run(ranks, tensor, Path(folder)))


# ------------------------------------------------------------------------------------------------------------ the one rank


class Watch:
    """Counts what happens in a phase: collectives, calls of the store, files, memory."""

    def __init__(self, store: OtherRanks, folder: Path):
        self.store, self.folder = store, str(folder)
        self.opened: set[str] = set()
        self.phases: dict[str, dict] = {}
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(self.folder):
            self.opened.add(str(arguments[0]).replace(".tmp", ""))

    @contextlib.contextmanager
    def phase(self, name: str, groups: dict):
        """Counts what is done inside."""
        from collectives import CollectiveCounter

        self.opened.clear()
        self.store.calls.clear()
        tracemalloc.start()
        with CollectiveCounter(groups) as counter:
            yield
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.phases[name] = {
            "collectives": {(one.kind, one.group, one.bytes): count for one, count in counter.seen.items()},
            "store": dict(self.store.calls),
            "files": len(self.opened),
            "objects": peak,
            "resident": resident(),
        }


def run(ranks: int, tensor: int, folder: Path) -> dict:
    """All phases on rank 0."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from mindspeed_mm.parallel.context import ParallelContext
    from mindspeed_mm.parallel.pulse import Pulse
    from mindspeed_mm.platforms.cpu import CpuPlatform
    from mindspeed_mm.training.trainer import Trainer

    torch.set_num_threads(1)
    CpuPlatform().prepare()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    # Nobody answers in a fake group, so every rank says what rank 0 says.
    dist.gather_object = lambda value, found, **_: found and found.__setitem__(slice(None), [value] * len(found))
    store = OtherRanks(ranks)
    watch = Watch(store, folder)

    with watch.phase("start", {}):
        parallel = ParallelContext.start("fake", tensor, 1, tensor > 1)
        parallel = dataclasses.replace(parallel, store=store, pulse=Pulse(store, 0, ranks))
        step, saver = training(parallel, folder)
    groups = {name: getattr(parallel, name) for name in ("tensor", "data_and_context", "everyone")}
    phases = contextlib.ExitStack()
    sizes: dict[int, int] = {}
    save, saver.store._begin = saver.save, functools.partial(put_in_place, folder)(saver.store._begin)

    def saves() -> None:
        """`Saver.save`, as a phase of its own."""
        phases.close()
        forget_garbage(saver.state)
        sizes.update(write_others(saver.state, folder / "others", store))
        phases.enter_context(watch.phase("save", groups))
        save()

    saver.save = saves
    with phases:
        phases.enter_context(watch.phase("3 steps", groups))
        Trainer(flags(saver.state, None), step, saver).fit()
    with watch.phase("resume", groups):
        Trainer(flags(saver.state, folder / "run"), step, saver).fit()
    groups = {name: group.size() for name, group in groups.items()}
    return {"phases": watch.phases, "groups": groups, "sizes": sizes, "parameters": count_of(saver.state)}


def flags(state, load: Path | None):
    """Three steps, a log line and a save in the third; load: the run to continue."""
    from mindspeed_mm.config.run import ReportConfig, TrainingFlags

    checkpoint = dataclasses.replace(state.settings, load=None if load is None else str(load))
    size, report = state.engine.parallel.data_size, ReportConfig(log_interval=3)
    return TrainingFlags(checkpoint=checkpoint, global_batch_size=size, train_iters=3, report=report)


def forget_garbage(state) -> None:
    """Zeros for what a rank has computed from what nobody sent; a checkpoint must hold finite numbers."""
    values = [shard.main for shard in state.engine.main_shards()]
    for value in [
        *values,
        *(one for some in state.engine.moments().values() for one in some),
        *state.optimizer.ema.averages(),
    ]:
        value.detach().zero_()


def put_in_place(folder: Path, begin):
    """`CheckpointStore._begin`, after which the other ranks' files lie in the new directory."""

    def begun(directory: Path) -> None:
        begin(directory)
        for path in (folder / "others").iterdir():
            (directory / path.name).hardlink_to(path)

    return begun


def count_of(state) -> int:
    return sum(parameter.numel() for parameter in state.engine.network.parameters())


def training(parallel, folder: Path):
    """Step and saver of a run on this rank, with a tiny network."""
    import tiny_denoiser
    import torch

    from mindspeed_mm.config.optimizer import OptimizerSettings
    from mindspeed_mm.config.run import CheckpointConfig
    from mindspeed_mm.models.build import build_denoiser
    from mindspeed_mm.optim.adaptive_clip import Decision, FixedClip
    from mindspeed_mm.optim.ema import Ema
    from mindspeed_mm.optim.step import OptimizerStep
    from mindspeed_mm.parallel.megatron_engine import MegatronEngine
    from mindspeed_mm.platforms.cpu import CpuPlatform
    from mindspeed_mm.training.metrics import Work
    from mindspeed_mm.training.saving import Saver
    from mindspeed_mm.training.state import TrainingState
    from mindspeed_mm.training.step import Loss, TrainStep
    from mindspeed_mm.types import TextFeatures

    class NeverSkips(FixedClip):
        """What a rank receives here is garbage, maybe not finite."""

        def decide(self, norm: float) -> Decision:
            return Decision()

    config = dataclasses.replace(tiny_denoiser.CONFIG, num_heads=8)
    network = build_denoiser(config, parallel, dtype="bf16", seed=0).train()
    settings = OptimizerSettings(lr_decay_iters=10, use_distributed_optimizer=True)
    engine = MegatronEngine(network, parallel, CpuPlatform(), settings, network.units())
    engine.schedule(parallel.data_size)
    ema = Ema(engine, 0.999)
    floats = {"dtype": torch.bfloat16}
    latents = torch.zeros(1, 4, 2, 16, 16, **floats)
    text = TextFeatures(
        torch.zeros(1, 16, 12, **floats), torch.ones(1, 16, dtype=torch.bool), torch.zeros(1, 6, **floats)
    )

    def objective(net, batch) -> Loss:
        return Loss(net(latents, torch.full((1,), 0.5), text).float().square().mean(), Work(), ())

    optimizer = OptimizerStep(engine, NeverSkips(0), ema, 5)
    step = TrainStep(engine, objective, optimizer, 1)
    checkpoint = CheckpointConfig(save=str(folder / "run"), format="torch_dist", save_interval=3)
    return step, Saver(TrainingState(engine, optimizer, Loader(parallel), checkpoint))


class Loader:
    """In the place of the run's loader: three micro-batches, and the ledger that all ranks add up."""

    def __init__(self, parallel):
        import torch
        import torch.distributed as dist

        from mindspeed_mm.data.feed.ledger import Ledger

        def total(values):
            sums = torch.tensor(values)
            dist.all_reduce(sums, group=parallel.everyone)
            return sums.tolist()

        self.ledger = Ledger(everyone=SimpleNamespace(total=total, gather=lambda value: [value]))

    def __iter__(self):
        return iter([None] * 3)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def resident() -> int:
    """Private memory of this process in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


# ---------------------------------------------------------------------------------------------------------------- the page


def page(found: dict[int, dict], tensor: int) -> str:
    """The tables in Markdown."""
    parameters = next(iter(found.values()))["parameters"]
    return "\n".join(
        [
            HEAD.format(tensor=tensor, parameters=parameters),
            table(*summary(found, tensor)),
            "\n## Collectives\n\nKind, group and bytes of the larger buffer, with the number of calls in each phase.\n",
            table(*collectives(found)),
        ]
    )


def summary(found: dict[int, dict], tensor: int) -> tuple[list[str], list[list]]:
    header = ["", *(f"{ranks} ranks, DP {ranks // tensor}" for ranks in found)]
    rows: list[list] = []
    for phase in PHASES:
        each = [one["phases"][phase] for one in found.values()]
        rows.append([f"{phase}: collectives", *(sum(one["collectives"].values()) for one in each)])
        rows.append([f"{phase}: calls of the store", *(sum(one["store"].values()) for one in each)])
        rows.append([f"{phase}: files opened", *(one["files"] for one in each)])
        rows.append([f"{phase}: Python objects at the peak, KiB", *(one["objects"] // 1024 for one in each)])
        rows.append([f"{phase}: private memory after it, MiB", *(one["resident"] // 2**20 for one in each)])
    sizes = [one["sizes"].values() for one in found.values()]
    rows.append(["bytes of tensors that a rank writes, most", *(f"{max(one):,}" for one in sizes)])
    rows.append(["bytes of tensors that a rank writes, least", *(f"{min(one):,}" for one in sizes)])
    rows.append(["all ranks together", *(f"{sum(one):,}" for one in sizes)])
    return header, rows


def collectives(found: dict[int, dict]) -> tuple[list[str], list[list]]:
    header = ["phase", "kind", "group", *(f"{ranks} ranks: calls x bytes" for ranks in found)]
    rows = []
    for phase in PHASES:
        every = [one["phases"][phase]["collectives"] for one in found.values()]
        for kind, group in sorted({key[:2] for seen in every for key in seen}):
            cells = [
                ", ".join(
                    f"{count} x {size:,}" for (k, g, size), count in sorted(seen.items()) if (k, g) == (kind, group)
                )
                for seen in every
            ]
            rows.append([phase, kind, group, *cells])
    return header, rows


if __name__ == "__main__":
    main()
