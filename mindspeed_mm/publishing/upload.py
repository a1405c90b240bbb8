"""Uploads an exported folder to a hub that speaks Hugging Face's API. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count."""

import fnmatch
import re
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.version import __version__

_log = logs.get(__name__)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LEFT_OUT = ("*.tmp", "*/.*", ".*", "__pycache__/*", "*/__pycache__/*")  # what a killed process or an editor left


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is a repository's, org/name."""
    if name.startswith("modelscope:"):
        raise ConfigError(
            f"--push {name}: only a hub with Hugging Face's API takes uploads; ModelScope's client uploads a folder"
        )
    if not _NAME.fullmatch(name.removeprefix("hf:")):
        raise ConfigError(f"--push {name}: expected a repository, org/name")


def files_of(folder: Path) -> list[Path]:
    """The files that are uploaded."""
    names = {file: file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()}
    return [file for file, name in names.items() if not any(fnmatch.fnmatch(name, rule) for rule in _LEFT_OUT)]


def push(folder: Path, name: str, *, private: bool = True) -> str:
    """Creates the repository if it is missing, and commits the folder's files in one commit. Returns its address.

    private: of a new repository; one that exists keeps its visibility. Files that the hub has already, such as those of an
    interrupted upload, are not sent again. Raises ConfigError for a refusal.
    """
    from huggingface_hub import HfApi  # a package of transformers

    check_name(name)
    files = files_of(folder)
    size = sum(file.stat().st_size for file in files)
    _log.info(f"uploading {len(files)} files, {size / 1e9:.3g} GB, to {name}")
    try:
        api = HfApi(library_name="mindspeed_mm", library_version=__version__)
        found = api.create_repo(name.removeprefix("hf:"), private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=found.repo_id,
            folder_path=folder,
            ignore_patterns=list(_LEFT_OUT),
            commit_message=f"Upload by mindspeed-mm {__version__}",
        )
    except Exception as error:  # of the client, of its network library, of the disk
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"--push {name}: {said or type(error).__name__}; what was sent need not be sent again"
        ) from None
    _log.info(f"commit {commit.oid}")
    return str(found)
