"""The published configs that come with the package: in a wheel inside of it, in a checkout beside it."""

from pathlib import Path

from mindspeed_mm.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (  # of a wheel (setup.py copies the files there), and of a checkout
    _PACKAGE / "published",
    _PACKAGE.parent / "examples" / "opensoraplan1.5",
    _PACKAGE.parent / "configs" / "tool",
)


def text(name: str) -> str:
    """Text of a published file, such as data.json."""
    for folder in FOLDERS:
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise ConfigError(f"{name}: is not in this installation ({FOLDERS[0]}); install the package again")
