"""The code that a folder carries, so that diffusers loads it where this package is not installed."""

import inspect
import json
from pathlib import Path
from typing import Any

from mindspeed_mm import atomic

INDEX = "model_index.json"
PIPELINE = ""  # the component that is the pipeline itself, at the top of the folder
Code = dict[str, tuple[str, str, str]]  # component -> (name of its class, name of its file without .py, text)


def carried(parts: dict[str, Any]) -> Code:
    """The files that hold the classes of these objects, by component."""
    found: Code = {}
    for component, part in parts.items():
        cls = type(getattr(part, "_orig_mod", part))  # what torch.compile wraps
        path = Path(inspect.getsourcefile(cls) or "")
        found[component] = (cls.__name__, path.stem, path.read_text(encoding="utf-8"))
    return found


def add(folder: Path, code: Code) -> None:
    """Writes the files into a pipeline's folder, and their names into its model_index.json."""
    for component, (_, stem, text) in code.items():
        (folder / component).mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / component / f"{stem}.py", text)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for component, (name, stem, _) in code.items():
        index[component or "_class_name"] = [stem, name]
    atomic.write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
