"""`mindspeed-mm adapter`: merge adapters into weights, extract one from two weights, convert their files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm import families, logs
from mindspeed_mm.cli import parts
from mindspeed_mm.config import hub
from mindspeed_mm.config.adapter_choice import AdapterChoice
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import Program, flag

NAME = "mindspeed-mm adapter"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MergeFlags:
    load: str = flag("", "--load", required=True, metavar="PATH", help=f"weights of the base: {parts.WEIGHTS}")
    adapters: tuple[str, ...] = flag(
        (),
        "--adapter",
        required=True,
        metavar="DIR[=SCALE]",
        help="adapter to add, SCALE times its size (default 1), also a hub's (org/name); several may be given",
    )
    save: str = flag("", "--save", required=True, metavar="DIR", help="folder for model.pt or model.safetensors")
    ema: bool = flag(False, "--ema", help="take the averages of adapters that are runs")
    format: str = parts.merged_format()
    dtype: str | None = flag(None, "--dtype", choices=parts.DTYPES, help="dtype of the result; default: the base's")
    max_shard_gb: float | None = parts.max_shard_gb()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExtractFlags:
    load: str = flag("", "--load", required=True, metavar="PATH", help=f"weights after finetuning: {parts.WEIGHTS}")
    base: str = flag("", "--base", required=True, metavar="PATH", help="weights before it; the same kinds")
    save: str = flag("", "--save", required=True, metavar="DIR", help="folder for the adapter, in PEFT's format")
    rank: int | None = flag(None, "--rank", at_least=1, at_most=2**16, help="rank of each linear's adapter")
    error: float | None = flag(
        None,
        "--error",
        above=0,
        below=1,
        help="instead of --rank: the largest share of a linear's change that may be left",
    )
    ema: bool = flag(False, "--ema", help="take the EMA weights of --load")
    dtype: str | None = flag(None, "--dtype", choices=parts.DTYPES, help="dtype of the result; default: fp32")

    def problems(self):
        if (self.rank is None) == (self.error is None):
            yield "rank", "or --error: give one of them"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConvertFlags:
    load: str = flag(
        "",
        "--load",
        required=True,
        metavar="PATH",
        help="directory of a run that trained an adapter, PEFT's folder, or kohya's file; a hub's, too",
    )
    save: str = flag("", "--save", required=True, metavar="PATH", help="folder for peft; file for kohya")
    format: str = flag("peft", "--format", choices=("peft", "kohya"), help="format of the result")
    ema: bool = flag(False, "--ema", help="take the average of a run's adapter")
    dtype: str | None = flag(None, "--dtype", choices=parts.DTYPES, help="dtype of the result; default: the source's")
    mm_model: str | None = flag(
        None, "--mm-model", metavar="JSON", help="model or inference JSON of the network; a file of kohya's needs it"
    )


PROGRAMS = {
    "adapter merge": Program(
        flags=MergeFlags,
        description="Add adapters to the weights that they were trained on, and write whole weights.",
        remarks="Sums are made in fp32 and rounded once. The path of the result is printed last.",
        examples=(f"{NAME} merge --load model.pt --adapter run1=0.8 --save merged",),
    ),
    "adapter extract": Program(
        flags=ExtractFlags,
        description="Make an adapter of the difference between two whole weights, by SVD of each linear.",
        remarks="The log says what share of the difference the adapter leaves out, and which parameters it cannot hold.",
        examples=(f"{NAME} extract --load tuned.pt --base model.pt \\\n      --save adapter --rank 32",),
    ),
    "adapter convert": Program(
        flags=ConvertFlags,
        description="Write an adapter in PEFT's format, which peft and diffusers read, or in kohya's.",
        examples=(
            f"{NAME} convert --load run1 --ema --save adapter",
            f"{NAME} convert --load run1 --save adapter.safetensors \\\n      --format kohya",
        ),
    ),
}


def adapter(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm adapter merge|extract|convert`."""
    parts.run_subcommand("adapter", PROGRAMS, argv, _run)


def _run(name: str, argv: Sequence[str]) -> None:
    logs.setup()
    flags = PROGRAMS[name].parse(argv, f"mindspeed-mm {name}").values
    names = {
        field.name: getattr(flags, field.name) for field in dataclasses.fields(flags) if field.name in ("load", "base")
    }
    sources = {name: hub.local(path) for name, path in names.items()}
    flags = dataclasses.replace(flags, **sources)
    path, others = {MergeFlags: _merge, ExtractFlags: _extract, ConvertFlags: _convert}[type(flags)](flags)
    hub.record(path, {f"--{name}": source for name, source in sources.items()} | others)
    print(path)


def _merge(flags: MergeFlags) -> tuple[Path, dict[str, str]]:
    choices = [AdapterChoice.read(text) for text in flags.adapters]
    from mindspeed_mm.weights.adapter_changes import merge_adapters  # imports torch, which --help does not need
    from mindspeed_mm.weights.adapters import open_adapter

    path = merge_adapters(
        flags.load,
        [(open_adapter(choice.path, flags.ema), choice.scale) for choice in choices],
        flags.save,
        format=flags.format,
        dtype=flags.dtype,
        largest=parts.max_shard_bytes(flags.max_shard_gb),
    )
    return path, {f"--adapter {number}": choice.path for number, choice in enumerate(choices, 1)}


def _extract(flags: ExtractFlags) -> tuple[Path, dict[str, str]]:
    from mindspeed_mm.weights.adapter_changes import extract_adapter
    from mindspeed_mm.weights.adapters import write_peft

    found = extract_adapter(flags.load, flags.base, rank=flags.rank, error=flags.error, ema=flags.ema)
    return write_peft(found, flags.save, dtype=flags.dtype), {}


def _convert(flags: ConvertFlags) -> tuple[Path, dict[str, str]]:
    from mindspeed_mm.weights import kohya
    from mindspeed_mm.weights.adapters import open_adapter, write_peft

    path = Path(flags.load)
    if path.suffix == ".safetensors" and not path.is_dir():
        if flags.mm_model is None:
            raise ConfigError(f"--load {path}: a file of kohya's needs --mm-model, which names the network's linears")
        config = families.read_file(flags.mm_model)
        found = kohya.read(path, config)  # pyright: ignore[reportArgumentType]  # "predictor" is a denoiser
    else:
        found = open_adapter(path, flags.ema)
    if flags.format == "kohya":
        return kohya.write(found, Path(flags.save), dtype=flags.dtype), {}
    return write_peft(found, flags.save, dtype=flags.dtype), {}
