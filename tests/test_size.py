"""Files and functions stay small: what fits on a screen, and what a caller can keep in mind."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mindspeed_mm"
MOST_LINES, LONGEST_FUNCTION, MOST_PARAMETERS = 400, 60, 8
# A declaration of a flag names all that --help, the reader and the checks know of it.
# The call of a pipeline takes the arguments that users of diffusers know.
EXEMPT = {"schema/fields.py: parameters of flag", "diffusers/pipeline.py: parameters of __call__"}


def too_large(path: Path) -> dict[str, int]:
    """What of a file is too large -> its size."""
    name, text = path.relative_to(PACKAGE), path.read_text(encoding="utf-8")
    sizes = {f"{name}: lines": (len(text.splitlines()), MOST_LINES)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            sizes[f"{name}: lines of {node.name}"] = (node.end_lineno - node.lineno + 1, LONGEST_FUNCTION)
            arguments = node.args
            names = {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
            sizes[f"{name}: parameters of {node.name}"] = (len(names - {"self", "cls"}), MOST_PARAMETERS)
    return {what: size for what, (size, most) in sizes.items() if size > most}


def test_files_and_functions_are_small():
    found = {what: size for path in sorted(PACKAGE.rglob("*.py")) for what, size in too_large(path).items()}
    assert {what: size for what, size in found.items() if what not in EXEMPT} == {}
