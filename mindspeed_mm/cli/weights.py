"""Commands on weights as files: merge, split, inspect, export, convert-vae. They need no process group."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_mm import families, logs
from mindspeed_mm.cli import parts
from mindspeed_mm.cli.publishing import PublishingFlags, publish
from mindspeed_mm.config import hub
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import Program, build, flag, group, read_json

if TYPE_CHECKING:
    from mindspeed_mm.config.sample import SampleModelConfig

_ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_DRY_RUN = "print what would be written, and write nothing"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MergeFlags:
    load: str = flag(
        "",
        "--load",
        published=("--load_dir",),
        required=True,
        metavar="DIR",
        help="directory of a run (its --save), or one iter_XXXXXXX of it; or a hub's repository that holds one",
    )
    save: str = flag(
        "",
        "--save",
        published=("--save_dir",),
        required=True,
        metavar="DIR",
        help="folder for model.pt, or for model_ema.pt with --ema",
    )
    ema: bool = flag(False, "--ema", help="merge the EMA weights instead of the live ones")
    format: str = parts.merged_format()
    dtype: str | None = flag(None, "--dtype", choices=parts.DTYPES, help="dtype of the result; default: as trained")
    max_shard_gb: float | None = parts.max_shard_gb()
    dry_run: bool = flag(False, "--dry-run", help=_DRY_RUN)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SplitFlags:
    load: str = flag(
        "",
        "--load",
        required=True,
        metavar="PATH",
        help=parts.WEIGHTS,
    )
    save: str = flag(
        "",
        "--save",
        published=("--save_dir",),
        required=True,
        metavar="DIR",
        help="folder for iter_XXXXXXX (release, if the source has no iteration) and the tracker",
    )
    tensor_size: int = flag(
        1,
        "--tensor-model-parallel-size",
        required=True,
        at_least=1,
        at_most=2**16,
        help="number of ranks to split over",
    )
    dialect: str = flag(
        "osp",
        "--dialect",
        choices=[dialect.name.lower() for family in families.DENOISERS.values() for dialect in family.dialects],
        help="names of parameters: Open-Sora Plan's, which this project uses too, or MindSpeed-MM 26.0.0's",
    )
    text_tail: str = flag(
        "keep",
        "--text-tail",
        choices=("keep", "drop", "write"),
        help="tensors of the last block that Open-Sora Plan's own code wants at TP > 1 and never uses: as the source has "
        "them, none, or always. MindSpeed-MM has none",
    )
    dtype: str | None = flag(None, "--dtype", choices=parts.DTYPES, help="dtype of the result; default: as the source")
    dry_run: bool = flag(False, "--dry-run", help=_DRY_RUN)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class InspectFlags:
    path: str = flag(
        "",
        "path",
        metavar="PATH",
        help="Megatron directory, merged .pt or .safetensors file, index, WFVAE .ckpt, a folder with one, or a hub's repository",
    )
    mm_model: str | None = flag(
        None, "--mm-model", metavar="JSON", help="model or inference JSON: list what does not fit its network"
    )
    block: str = flag(
        "predictor",
        "--block",
        choices=("predictor", "ae"),
        help="block of the JSON to compare: the denoiser or the autoencoder",
    )
    norms: bool = flag(True, "--no-norms", help="read names and shapes only, which takes a second")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExportFlags:
    save: str = flag(
        "",
        "--save",
        published=("--save_dir", "--output"),
        required=True,
        metavar="DIR",
        help="folder to write; it must not hold a config.json or a model_index.json yet",
    )
    mm_model: str | None = flag(
        None,
        "--mm-model",
        metavar="JSON",
        help="inference JSON: configs, and where the weights are; needed unless the folder was exported before",
    )
    format: str = flag(
        "mindspeed-mm",
        "--format",
        choices=("mindspeed-mm", "diffusers"),
        help="who loads it: T2VPipeline.from_pretrained, or DiffusionPipeline.from_pretrained of diffusers, for which the "
        "folder also holds the text encoders and the code that it needs",
    )
    load: str | None = flag(
        None, "--load", metavar="DIR", help="a run's directory, instead of predictor.from_pretrained; of a hub, too"
    )
    ema: bool = flag(False, "--ema", help="use the EMA weights of --load")
    dtype: str | None = flag(
        None, "--dtype", choices=parts.DTYPES, help="dtype of the denoiser; default: as the source"
    )
    max_shard_gb: float = flag(
        5.0, "--max-shard-gb", at_least=1e-3, at_most=1e6, unit="GB", help="largest size of a weight file"
    )
    copy_encoders: bool = flag(False, "--copy-encoders", help="copy the text encoders' folders into it as well")
    dry_run: bool = flag(False, "--dry-run", help=_DRY_RUN)
    hub: PublishingFlags = group(PublishingFlags, "model card and hub")

    def problems(self):
        if self.mm_model is None and not self.hub.is_wanted:
            yield "mm_model", "is needed, unless --push or --card follows an earlier export"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConvertVaeFlags:
    load: str = flag(
        "",
        "--load",
        required=True,
        metavar="PATH",
        help="a .ckpt, .pt or .safetensors file, a folder with one, or a hub's repository",
    )
    save: str = flag(
        "", "--save", required=True, metavar="FILE", help="file to write; it ends in .safetensors, or in .pt"
    )
    dtype: str | None = flag(None, "--dtype", choices=parts.DTYPES, help="dtype of the result; default: as the source")
    dry_run: bool = flag(False, "--dry-run", help=_DRY_RUN)


PROGRAMS = {
    "merge": Program(
        flags=MergeFlags,
        description="Merge the tensor-parallel shards of a training run into one file that sampling loads.",
        remarks="Shards are read and written tensor by tensor: neither they nor the result is ever held in memory. "
        "Names are Open-Sora Plan's, also if the run is MindSpeed-MM's. The path of the result is printed last.",
        examples=(
            "mindspeed-mm merge --load run1 --save merged --ema",
            "mindspeed-mm merge --load run1 --save merged --format safetensors \\\n      --max-shard-gb 5 --dtype bf16",
        ),
    ),
    "split": Program(
        flags=SplitFlags,
        description="Split weights over tensor-parallel ranks: a Megatron directory that a run can start from, in either "
        "dialect.",
        remarks="EMA weights are split as well if the source has both. Another TP size than a run was trained with is "
        "reached directly, without a merged file in between.",
        examples=("mindspeed-mm split --load model.pt --save run2 \\\n      --tensor-model-parallel-size 8",),
    ),
    "inspect": Program(
        flags=InspectFlags,
        description="Say what a checkpoint holds: kind, dialect, TP size, iteration, EMA, dtypes, norms, and how it fits a "
        "config.",
        examples=("mindspeed-mm inspect run1 --mm-model model.json",),
    ),
    "export": Program(
        flags=ExportFlags,
        description="Write all parts for sampling to one folder, laid out as on the Hugging Face hub: "
        "T2VPipeline.from_pretrained(FOLDER), or with --format diffusers DiffusionPipeline.from_pretrained(FOLDER, "
        "trust_remote_code=True).",
        examples=(
            "mindspeed-mm export --mm-model sample.json --save folder \\\n      --load run1 --ema --dtype bf16",
            "mindspeed-mm export --mm-model sample.json --format diffusers --output folder",
            "mindspeed-mm export --save folder --load run1 --card --license apache-2.0",
            "mindspeed-mm export --save folder --load run1 --push org/name",
        ),
    ),
    "convert-vae": Program(
        flags=ConvertVaeFlags,
        description="Convert the weights of a WFVAE, such as the published .ckpt, to one flat .safetensors or .pt file.",
        remarks="Taken are the EMA weights (`ema_state_dict`) if the file has any, else `state_dict`, and `gen_model` "
        "in it. NOT_USE_EMA_MODEL=1 in the environment takes the live weights.",
        examples=("mindspeed-mm convert-vae --load merged.ckpt --save vae.safetensors",),
    ),
}


def merge(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm merge` and convert_mm_to_ckpt.py."""
    with said_in_one_line():
        flags: MergeFlags = _begin("merge", argv, prog)
        from mindspeed_mm.weights import merge_checkpoint  # imports torch, which --help does not need

        source = hub.local(flags.load)
        path = merge_checkpoint(
            source,
            flags.save,
            flags.ema,
            format=flags.format,
            dtype=flags.dtype,
            largest=parts.max_shard_bytes(flags.max_shard_gb),
            dry_run=flags.dry_run,
        )
        _finish(path, {"--load": source}, flags.dry_run)


def split(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm split` and tools/convert_ckpt_to_mm.py."""
    with said_in_one_line():
        flags: SplitFlags = _begin("split", argv, prog)
        from mindspeed_mm.weights import split_checkpoint

        source = hub.local(flags.load)
        path = split_checkpoint(
            source,
            flags.save,
            flags.tensor_size,
            dialect=flags.dialect.upper(),
            text_tail=flags.text_tail,
            dtype=flags.dtype,
            dry_run=flags.dry_run,
        )
        _finish(path, {"--load": source}, flags.dry_run)


def inspect(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm inspect` and tools/inspect_checkpoint.py."""
    with said_in_one_line():
        flags: InspectFlags = _begin("inspect", argv, prog)
        from mindspeed_mm.weights import describe

        config = None if flags.mm_model is None else families.read_file(flags.mm_model, flags.block)
        for line in describe(hub.local(flags.path), config, norms=flags.norms):
            print(line)


def export(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm export` and tools/export_pretrained.py."""
    with said_in_one_line():
        flags: ExportFlags = _begin("export", argv, prog)
        result = flags.save if flags.mm_model is None else str(_written(flags, flags.mm_model))
        if flags.hub.is_wanted and not (flags.dry_run and flags.mm_model is not None):
            result = publish(flags.hub, flags.save, flags.load, flags.dry_run)
        print(result)


def _written(flags: ExportFlags, mm_model: str) -> Path:
    """Writes the folder of `export`."""
    from mindspeed_mm.config.model_dialects import sample_node  # with the configs, which --help does not need
    from mindspeed_mm.config.sample import SampleModelConfig

    load = flags.load and hub.local(flags.load)
    with_encoders = flags.copy_encoders or flags.format == "diffusers"
    node = sample_node(read_json(mm_model))
    read = () if load is None else ("predictor",)
    config = build(
        SampleModelConfig, hub.with_local_weights(node, without=read if with_encoders else (*read, *_ENCODERS))
    )
    weights = {"load": load, "ema": flags.ema, "dtype": flags.dtype, "dry_run": flags.dry_run}
    largest = int(flags.max_shard_gb * 1e9)
    if flags.format == "diffusers":
        from mindspeed_mm.diffusers import folder as for_diffusers

        path = for_diffusers.from_config(config, flags.save, **weights, largest=largest)
    else:
        from mindspeed_mm.weights import folder

        path = folder.from_config(config, flags.save, **weights, largest=largest, copy_encoders=flags.copy_encoders)
    if not flags.dry_run:
        hub.record(path, _sources(config, load, with_encoders))
    return path


def _sources(config: "SampleModelConfig", load: str | None, with_encoders: bool) -> dict[str, str | None]:
    """The weights that an exported folder holds -> their paths."""
    found = {"predictor": load or config.predictor.from_pretrained, "ae": config.ae.from_pretrained}
    blocks = {name: getattr(config, name) for name in _ENCODERS if with_encoders}
    return found | {name: block.from_pretrained for name, block in blocks.items() if block is not None}


def _finish(path: Path, sources: dict[str, str], dry_run: bool) -> None:
    """Records which sources are from a hub, and prints where the result is."""
    if not dry_run:
        hub.record(path, sources)
    print(path)


def convert_vae(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm convert-vae` and tools/convert_vae.py."""
    with said_in_one_line():
        flags: ConvertVaeFlags = _begin("convert-vae", argv, prog)
        from mindspeed_mm.weights import convert_autoencoder

        source = hub.local(flags.load)
        path = convert_autoencoder(source, flags.save, dtype=flags.dtype, dry_run=flags.dry_run)
        _finish(path, {"--load": source}, flags.dry_run)


def _begin(command: str, argv: Sequence[str] | None, prog: str | None):
    """The flags of a command. argv: default: those of the command line."""
    logs.setup()
    return PROGRAMS[command].parse(sys.argv[1:] if argv is None else argv, prog).values
