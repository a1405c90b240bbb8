"""What one rank of a large world does: start, three steps, a save and a resume, under torch's fake process group.

    python benchmarks/world.py [--ranks 16 128 1024] [--tensor 2] > docs/benchmarks/world.md

One process runs the program of rank 0: network, engine, EMA, `Saver` and store of a training run, with a tiny network. The
collectives are issued and counted, and nobody answers them. The other ranks' answers in the store and their files of the
checkpoint are made here, by the functions that a rank calls. A fake group opens no sockets, so they are not counted; which
groups a rank joins is.
"""

import argparse
import collections
import dataclasses
import functools
import json
import sys
import tempfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

from table import table

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PHASES = ("start", "3 steps", "save", "resume")
HEAD = """# One rank of a large world

Made by `python benchmarks/world.py`: rank 0's program at TP {tensor}, with a network of {parameters:,} parameters on a TP rank, under
torch's fake process group. Nobody answers its collectives; the other ranks' answers in the store and their files of the checkpoint
are made by the functions that a rank calls. A fake group opens no sockets, so none are counted.

A step, and what a rank writes, do not grow with DP. These do:

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


# --------------------------------------------------------------------------------------------------------- the other ranks


class OtherRanks:
    """A store in which all other ranks have answered as soon as rank 0 asks; counts the calls of rank 0."""

    def __init__(self, ranks: int):
        self.ranks = ranks
        self.values: dict[str, bytes] = {}
        self.calls: collections.Counter[str] = collections.Counter()
        self.written: dict[int, tuple[list, dict]] = {}  # by rank: entries of the index, and checksums

    def clone(self) -> "OtherRanks":
        return self

    def set(self, key: str, value: str) -> None:
        self.calls["set"] += 1
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        self.calls["get"] += 1
        return self.values[key]

    def add(self, key: str, amount: int) -> int:
        self.calls["add"] += 1
        self.values[key] = str(int(self.values.get(key, b"0")) + amount).encode()
        return int(self.values[key])

    def check(self, keys: list[str]) -> bool:
        self.calls["check"] += 1
        return True

    def delete_key(self, key: str) -> bool:
        self.calls["delete"] += 1
        return self.values.pop(key, None) is not None

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """What all ranks said in a meeting: as rank 0, but for the files that they wrote."""
        self.calls["multi_get"] += 1
        place, _, _ = keys[0].rpartition("/")
        own = json.loads(self.values[f"{place}/0"])
        return [json.dumps(self._said(place, own, int(key.rpartition("/")[2]))).encode() for key in keys]

    def _said(self, place: str, own, rank: int):
        if rank == 0:
            return own
        if place.startswith("meet/writing the index/"):
            return self.written[rank][0]
        if place.startswith("meet/saving/") and own[1]:
            files = {name for name in own[1] if name.startswith("__0_")}
            return [own[0], self.written[rank][1] if files else {}]
        return own


def write_others(state, folder: Path, store: OtherRanks) -> dict[int, int]:
    """The other ranks' files of a checkpoint, of zeros; returns the bytes of tensors that each rank writes."""
    from mindspeed_mm.checkpoint import torch_dist
    from mindspeed_mm.files import integrity

    folder.mkdir(exist_ok=True)
    parallel, sizes = state.engine.parallel, {}
    for rank in range(parallel.world_size):
        parts = parts_of(state, rank)
        sizes[rank] = sum(part.tensor.nbytes for part in parts)
        path = folder / f"__{rank}_0.distcp"
        if rank:
            entries = list(torch_dist._write(parts, path, lambda what: None))
            store.written[rank] = json.loads(json.dumps(entries)), integrity.measure([path], folder)
    return sizes


def parts_of(state, rank: int) -> list:
    """What a rank writes, with zeros as values."""
    import torch

    from mindspeed_mm.checkpoint.shares import Shares

    parallel = state.engine.parallel
    tensor, data = parallel.tensor_size, parallel.data_and_context.size()
    place = SimpleNamespace(
        data_and_context=group_of(rank // tensor, data),
        tensor=group_of(rank % tensor, tensor),
        tensor_rank=rank % tensor,
        tensor_size=tensor,
    )
    shares, mains = Shares(state.dims, place), shards_of(state.engine, rank // tensor, data)
    keys = ("param", "exp_avg", "exp_avg_sq", "ema_params")
    parts = [part for key in keys for part in shares.of_shards(key, mains, [one.main for one in mains], same=False)]
    values = {name: torch.zeros_like(value) for name, value in state.saved_parameters().items()}
    return parts + shares.of_parameters("model", values)


def group_of(rank: int, size: int) -> SimpleNamespace:
    return SimpleNamespace(rank=lambda: rank, size=lambda: size)


def shards_of(engine, data_rank: int, data_size: int) -> list:
    """The shards of a data rank: Megatron cuts every bucket of a buffer into equal parts."""
    import torch

    from mindspeed_mm.parallel.engine import MainShard

    names, found = {parameter: name for name, parameter in engine.network.named_parameters()}, []
    for buffer in engine.ddp.buffers:
        for bucket in buffer.buckets:
            size = bucket.grad_data.numel() // data_size
            first = bucket.offset + size * data_rank
            for parameter in bucket.params_list:
                start, end, _ = buffer.param_index_map[parameter]
                begin, stop = max(start, first), min(end, first + size)
                if begin < stop:
                    values = torch.zeros(stop - begin)
                    found.append(MainShard(names[parameter], values, begin - start, stop - start, parameter.shape))
    order = {name: number for number, name in enumerate(names.values())}
    return sorted(found, key=lambda one: order[one.name])


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

    def phase(self, name: str, groups: dict, action):
        from collectives import CollectiveCounter

        self.opened.clear()
        self.store.calls.clear()
        tracemalloc.start()
        with CollectiveCounter(groups) as counter:
            result = action()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.phases[name] = {
            "collectives": {(one.kind, one.group, one.bytes): count for one, count in counter.seen.items()},
            "store": dict(self.store.calls),
            "files": len(self.opened),
            "objects": peak,
            "resident": resident(),
        }
        return result


def run(ranks: int, tensor: int, folder: Path) -> dict:
    """All phases on rank 0."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from mindspeed_mm.parallel.context import ParallelContext
    from mindspeed_mm.parallel.pulse import Pulse
    from mindspeed_mm.platforms.cpu import CpuPlatform

    torch.set_num_threads(1)
    CpuPlatform().prepare()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    # Nobody answers in a fake group, so every rank says what rank 0 says.
    dist.gather_object = lambda value, found, **_: found and found.__setitem__(slice(None), [value] * len(found))
    store = OtherRanks(ranks)
    watch = Watch(store, folder)

    def start():
        parallel = ParallelContext.start("fake", tensor, 1, tensor > 1)
        parallel = dataclasses.replace(parallel, store=store, pulse=Pulse(store, 0, ranks))
        return parallel, *training(parallel, folder)

    parallel, state, saver, step = watch.phase("start", {}, start)
    groups = {name: getattr(parallel, name) for name in ("tensor", "data_and_context", "everyone")}
    watch.phase("3 steps", groups, lambda: [step() for _ in range(3)])
    forget_garbage(state)
    sizes = write_others(state, folder / "others", store)
    state.iteration = 3
    building = functools.partial(put_in_place, folder)
    saver.store._begin = building(saver.store._begin)
    watch.phase("save", groups, saver.save)
    watch.phase("resume", groups, lambda: saver.resume(folder / "run"))
    groups = {name: group.size() for name, group in groups.items()}
    return {"phases": watch.phases, "groups": groups, "sizes": sizes, "parameters": count_of(state)}


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
    """State, saver and step of a run on this rank, with a tiny network."""
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
    from mindspeed_mm.training import signals
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
    loader = SimpleNamespace(state_dict=lambda: {}, load_state_dict=lambda state: None)
    checkpoint = CheckpointConfig(save=str(folder / "run"), format="torch_dist")
    state = TrainingState(engine, optimizer, loader, checkpoint)

    def one_step() -> None:
        step(iter([None]))
        signals.agreed(None)

    return state, Saver(state), one_step


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
