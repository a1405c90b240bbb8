"""Prompts: read, put into the template of the model's version, cleaned as training captions are."""

import dataclasses
from pathlib import Path

from mindspeed_mm.config.sample import PromptConfig
from mindspeed_mm.data.captions import preprocess as clean_twice
from mindspeed_mm.errors import DataError
from mindspeed_mm.schema import build, read_json_lines, read_text

_LIMIT = 1000  # prompts of a file that are used, as the original

# Templates of the releases: (around the prompt, negative prompt).
_TEMPLATES = {
    "v1.5": (
        "high quality, {}",
        "Worst quality, Normal quality, Low quality, Low res, Blurry, Jpeg artifacts, Grainy, watermark, banner, Cropped, "
        "Out of frame, Out of focus, Bad anatomy, Bad proportions, Deformed, Disconnected limbs, Disfigured, username, "
        "error, sketch, duplicate, ugly, monochrome, horror, geometry, mutation, disgusting, overexposed, underexposed.",
    ),
    "v1.3": (
        "high quality, high aesthetic, {}",
        "nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst "
        "quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.",
    ),
    "v1.2": (
        "(masterpiece), (best quality), (ultra-detailed), {}. emotional, harmonious, vignette, 4k epic detailed, shot on "
        "kodak, 35mm photo, sharp focus, high budget, cinemascope, moody, epic, gorgeous",
        "nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst "
        "quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry",
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """What the text encoders read for one prompt."""

    positive: str
    negative: str


def read_prompts(prompt: str) -> list[PromptConfig]:
    """The prompts of the file `prompt`, the first 1000; or `prompt` itself where there is no such file.

    A .jsonl file holds an object per line (`PromptConfig`); any other a prompt per line, which is stripped. There, an
    empty line is an empty prompt; the end of the file is not a line.
    """
    path = Path(prompt)
    if not is_prompt_file(prompt):
        if path.suffix in (".txt", ".jsonl") and " " not in prompt:
            raise DataError(f"{prompt}: no such file of prompts")
        return [PromptConfig(prompt=prompt)]
    if path.suffix == ".jsonl":
        prompts = [build(PromptConfig, node) for node in read_json_lines(path)[:_LIMIT]]
    else:
        lines = read_text(path).splitlines()[:_LIMIT]
        prompts = [PromptConfig(prompt=line.strip()) for line in lines]
    if not prompts:
        raise DataError(f"{prompt}: holds no prompt")
    return prompts


def is_prompt_file(prompt: str) -> bool:
    try:
        return Path(prompt).is_file()
    except OSError:  # a prompt longer than a file name may be
        return False


def compose(
    text: str, version: str, negative: str = "", *, template: bool = True, preprocess: bool = True, clean: bool = True
) -> Prompt:
    """The template of `version` around a prompt, and a user's negative prompt behind the template's own.

    Unknown versions have no template. preprocess: lower-case and strip; with clean, the cleaning of training captions.
    """
    around, unwanted = _TEMPLATES.get(version, ("{}", "")) if template else ("{}", "")
    positive, unwanted = around.replace("{}", text), _joined(unwanted, negative)
    if preprocess:
        positive, unwanted = clean_twice(positive, clean), clean_twice(unwanted, clean)
    return Prompt(positive, unwanted)


def _joined(first: str, second: str) -> str:
    """Both lists of words, with a separator where the first does not end in one (the original glued them together)."""
    if not first or not second:
        return first or second
    return f"{first} {second}" if first.endswith((".", ",")) else f"{first}, {second}"
