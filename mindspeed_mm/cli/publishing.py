"""What `mindspeed-mm export` does after the folder is written: the model card, and the upload."""

import dataclasses
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.schema import flag

_log = logs.get(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PublishingFlags:
    """Flags of the section "hub"."""

    push: str | None = flag(
        None,
        "--push",
        metavar="REPO",
        help="upload the folder, with a model card, to this repository (org/name) of the hub; HF_ENDPOINT and HF_TOKEN "
        "count. Without --mm-model the folder was exported before",
    )
    public: bool = flag(False, "--public", help="a repository that --push creates is public; default: private")
    card: bool = flag(
        False, "--card", help="write the model card, README.md, and upload nothing; a README.md that is there stays"
    )
    license: str | None = flag(
        None, "--license", metavar="ID", help="licence of the weights for the card, as the hub spells it: apache-2.0"
    )
    base_model: str | None = flag(
        None,
        "--base-model",
        metavar="REPO",
        help="repository that training began from, for the card; default: the run's record of it",
    )

    @property
    def is_wanted(self) -> bool:
        return self.card or self.push is not None


def publish(flags: PublishingFlags, folder: str, load: str | None, dry_run: bool) -> str:
    """Writes the card into an exported folder, and uploads it if asked to. load: directory of the run, for the card.

    Returns the address of the repository, or without --push the path of the card. Raises CheckpointError for a folder that
    works on this machine alone.
    """
    from mindspeed_mm.publishing import card, exported, record, upload

    if flags.push is not None:
        upload.check_name(flags.push)
    found = exported.read(folder)
    faults = exported.faults(found)
    if faults and flags.push is not None:
        raise CheckpointError(f"{folder}/{faults[0]}")
    said = None if load is None else record.read(load)
    if said is None:
        _log.info("the card says nothing of the training: --load names no run of this program")
    name = flags.push or Path(folder).resolve().name
    if dry_run:
        for file in [path.relative_to(folder) for path in upload.files_of(Path(folder))]:
            _log.info(f"would upload {file}")
        return str(folder)
    kept = (Path(folder) / card.CARD).exists()
    file = card.write(found, said, name=name.removeprefix("hf:"), licence=flags.license, base_model=flags.base_model)
    _log.info(f"{file}: {'was there, and is kept' if kept else 'written'}")
    for line in [*faults, *exported.paths_in(Path(folder))]:
        _log.warning(f"names a path of this machine: {line}")
    return str(file) if flags.push is None else upload.push(Path(folder), flags.push, private=not flags.public)
