"""Prompts: applies the template of the model's version and the cleaning of training captions."""

import dataclasses

from mindspeed_mm.data.text.cleaning import CJK
from mindspeed_mm.data.text.cleaning import preprocess as clean_twice
from mindspeed_mm.data.text.emptied import CHINESE, is_emptied

# Templates by version: (template of the prompt, negative prompt).
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
    """Texts that the encoders read for one prompt."""

    positive: str
    negative: str


def compose(
    text: str,
    version: str,
    negative: str = "",
    *,
    template: bool = True,
    preprocess: bool = True,
    clean: bool = True,
    keep_cjk: bool = False,
) -> Prompt:
    """Puts a prompt into the template of `version`, and appends a user's negative prompt to the template's.

    Unknown versions have no template. preprocess: lower-cases and strips. clean: also applies the cleaning of training
    captions, which removes Chinese unless keep_cjk is set.
    """
    around, unwanted = _TEMPLATES.get(version, ("{}", "")) if template else ("{}", "")
    positive, unwanted = around.replace("{}", text), _joined(unwanted, negative)
    if preprocess:
        positive, unwanted = clean_twice(positive, clean, keep_cjk), clean_twice(unwanted, clean, keep_cjk)
    return Prompt(positive, unwanted)


def _joined(first: str, second: str) -> str:
    """Joins two lists of words, with a separator unless the first ends in one (the original adds none)."""
    if not first or not second:
        return first or second
    return f"{first} {second}" if first.endswith((".", ",")) else f"{first}, {second}"


def warning(text: str, *, preprocess: bool = True, clean: bool = True, keep_cjk: bool = False) -> str | None:
    """Warning for a prompt that cleaning empties, or None."""
    if not is_emptied(text, preprocess and clean, keep_cjk):
        return None
    if not text.strip():
        return "the prompt is empty; the template alone is sampled"
    left = compose(text, "", preprocess=preprocess, clean=clean, keep_cjk=keep_cjk).positive
    hint = f": {CHINESE}" if not keep_cjk and CJK.search(text) else ""
    return f"cleaning reduces the prompt {text[:60]!r} to {left[:60]!r}, which is sampled instead{hint}"
