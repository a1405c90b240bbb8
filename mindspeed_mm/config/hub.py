"""Repositories of a model hub wherever weights are named by a path.

`org/name` is a repository of Hugging Face's hub, `modelscope:org/name` one of ModelScope. `@REVISION` chooses a branch, tag or
commit, `:PART` one folder or file of it: `org/name@v1:text_encoder`. HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_HOME
count. An interrupted download goes on. What is made of downloaded weights has their repository and commit beside it, in
sources.json.
"""

import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from mindspeed_mm import atomic, logs
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import Node

_log = logs.get(__name__)
_ID = re.compile(
    r"(?P<hub>hf:|modelscope:)?(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<part>[\w./-]+))?"
)

SOURCES = "sources.json"
# The client's cache: models--ORG--NAME/snapshots/COMMIT/PART. A hub's names hold no "--".
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})(?:/(.+))?")


def local(location: str) -> str:
    """The path of what `location` names: itself, or the downloaded repository or part of it.

    A path that exists counts first. So does one whose first folder exists: it is a path with a typing error. Raises
    ConfigError if the hub cannot give the files.
    """
    found = _named(location)
    if found is None:
        return location
    part = (found["part"] or "").strip("/")
    patterns = [part, f"{part}/*"] if part else None
    download = _from_modelscope if found["hub"] == "modelscope:" else _from_hugging_face
    try:
        folder = download(found["name"], found["revision"], patterns)
    except ConfigError:
        raise
    except Exception as error:  # of the client, of its network library, of the disk
        raise ConfigError(
            f"{location}: no such file or folder, and the hub did not give a repository of that name: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    path = os.path.join(folder, part)
    if not os.path.exists(path):
        raise ConfigError(f"{location}: the repository has no {part}; name a folder or file of it behind the colon")
    _log.info(f"{location}: from the hub, {folder}")
    return path


def is_repository(location: str) -> bool:
    """True if `local` would ask a hub for it."""
    return _named(location) is not None


def _named(location: str) -> re.Match | None:
    """The parts of a repository's name; None for a path."""
    found = _ID.fullmatch(location)
    if found is None or os.path.exists(location):
        return None
    if found["hub"] is None and os.path.exists(location.partition("/")[0]):
        return None
    return found


def origin_of(path: str | Path) -> dict[str, str] | None:
    """{"repository", "revision"}, and "part" if it is one, of a path that `local` gave for Hugging Face's hub; else None.
    revision: the commit.
    """
    found = _CACHED.search(Path(path).as_posix())
    if found is None:
        return None
    organization, name, commit, part = found.groups()
    return {"repository": f"{organization}/{name}", "revision": commit, **({"part": part} if part else {})}


def record(result: str | Path, sources: Mapping[str, str | Path | None]) -> None:
    """Writes sources.json: which of the weights that `result` was made of are from a hub. Nothing if none is.

    result: a file, or a folder, in which the record lies. sources: what each is -> its path.
    """
    found = {name: origin for name, path in sources.items() if path and (origin := origin_of(path))}
    result = Path(result)
    if not found:
        return
    folder, key = (result, ".") if result.is_dir() else (result.parent, result.name)
    text = json.dumps({**recorded(folder), key: found}, indent=1)
    atomic.write_text(folder / SOURCES, text + "\n")


def recorded(folder: str | Path) -> dict[str, dict[str, dict[str, str]]]:
    """sources.json of a folder: result ("." for the folder itself) -> what -> origin; empty without one."""
    try:
        found = json.loads((Path(folder) / SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def with_local_weights(node: Node, without: Collection[str] = ()) -> Node:
    """A config whose `from_pretrained` keys name local paths, at any depth. Raises ConfigError at the key.

    without: blocks at the top that stay as they are.
    """
    if isinstance(node.value, list):
        return dataclasses.replace(node, value=[with_local_weights(item) for item in node.value])
    if not isinstance(node.value, dict):
        return node
    value = {key: item if key in without else _of_key(key, item) for key, item in node.value.items()}
    return dataclasses.replace(node, value=value)


def _of_key(key: str, node: Node) -> Node:
    if key != "from_pretrained" or not isinstance(node.value, str):
        return with_local_weights(node)
    try:
        return dataclasses.replace(node, value=local(node.value))
    except ConfigError as error:
        raise node.error(str(error)) from None


def _from_hugging_face(name: str, revision: str | None, patterns: list[str] | None) -> str:
    from huggingface_hub import snapshot_download  # a package of transformers

    return snapshot_download(name, revision=revision, allow_patterns=patterns)


def _from_modelscope(name: str, revision: str | None, patterns: list[str] | None) -> str:
    if importlib.util.find_spec("modelscope") is None:
        raise ConfigError(f"modelscope:{name}: the package modelscope is not installed; pip install modelscope")
    from modelscope import snapshot_download  # pyright: ignore[reportMissingImports]

    return snapshot_download(name, revision=revision, allow_patterns=patterns)
