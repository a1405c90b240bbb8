"""Captions: chooses one, shuffles its tags, adds a trigger word or a sentence about its looks, or drops it for
classifier-free guidance.

`data/text/cleaning.py` cleans them.
"""

import random
import re
from collections.abc import Iterable, Sequence

from mindspeed_mm.config.data import DatasetConfig
from mindspeed_mm.data.text.cleaning import preprocess
from mindspeed_mm.errors import ConfigError

# --------------------------------------------------------------------------------------------------------- choosing


def choose_caption(captions: Sequence[str], rng: random.Random) -> str:
    """Chooses a caption. Draws once, even from a single caption."""
    return rng.choice(captions)


def shuffle_tags(caption: str, keep: int, rng: random.Random) -> str:
    """The caption with the parts between its commas in another order; the first `keep` stay in front.

    Draws nothing if fewer than two parts can move.
    """
    tags = [tag for part in caption.split(",") if (tag := part.strip())]
    if len(tags) < keep + 2:
        return caption
    moving = tags[keep:]
    rng.shuffle(moving)
    return ", ".join(tags[:keep] + moving)


def with_trigger(caption: str, trigger: str | None) -> str:
    """The caption with a trigger word before it, unless it holds that word already (in any case)."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}"


def check_triggers(triggers: Iterable[str | None], config: DatasetConfig) -> None:
    """Raises ConfigError for a trigger word that cleaning changes: no prompt could name it."""
    for word in triggers:
        if not word or not config.enable_text_preprocessing:
            continue
        left = preprocess(word, config.use_clean_caption, config.support_chinese)
        if left != word.lower().strip():
            raise ConfigError(
                f"trigger word {word!r}: cleaning of captions and prompts makes {left!r} of it; use a rare word of letters "
                "alone, such as 'ohwx'"
            )


def add_aesthetic(caption: str, score: float | None, kind: str, rng: random.Random) -> str:
    """Caption of a 'video' or 'image' with a sentence about its looks before or after it.

    Applies to scores of at most 4.25 or at least 5.75; draws the sentence and its side. Other scores draw nothing.
    """
    sentences = _sentences(score, kind)
    return rng.choice(_both_sides(caption, rng.choice(sentences))) if sentences else caption


def with_aesthetic(caption: str, score: float | None, kind: str) -> list[str]:
    """All results that `add_aesthetic` can give for a caption."""
    sentences = _sentences(score, kind)
    return [text for sentence in sentences for text in _both_sides(caption, sentence)] or [caption]


def _sentences(score: float | None, kind: str) -> tuple[str, ...]:
    if score is None or 4.25 < score < 5.75:
        return ()
    return AESTHETIC_SENTENCES[kind, "low" if score <= 4.25 else "high"]


def _both_sides(caption: str, sentence: str) -> list[str]:
    return [f"{caption} {sentence}", f"{sentence} {caption}"]


def drop_caption(caption: str, probability: float, rng: random.Random) -> str:
    """The caption, or "" with the given probability. Draws once."""
    return caption if rng.random() > probability else ""


# Where "video" and "image" sentences differ in more than that word, the published lists differ too.
AESTHETIC_SENTENCES = {
    ("video", "low"): (
        "This video has a low aesthetic quality.",
        "The beauty of this video is minimal.",
        "This video scores low in aesthetic appeal.",
        "The aesthetic quality of this video is below average.",
        "This video ranks low for beauty.",
        "The artistic quality of this video is lacking.",
        "This video has a low score for aesthetic value.",
        "The visual appeal of this video is low.",
        "This video is rated low for beauty.",
        "The aesthetic quality of this video is poor.",
    ),
    ("video", "high"): (
        "This video has a high aesthetic quality.",
        "The beauty of this video is exceptional.",
        "This video scores high in aesthetic value.",
        "With its harmonious colors and balanced composition.",
        "This video ranks highly for aesthetic quality",
        "The artistic quality of this video is excellent.",
        "This video is rated high for beauty.",
        "The aesthetic quality of this video is impressive.",
        "This video has a top aesthetic score.",
        "The visual appeal of this video is outstanding.",
    ),
    ("image", "low"): (
        "This image has a low aesthetic quality.",
        "The beauty of this image is minimal.",
        "This image scores low in aesthetic appeal.",
        "The aesthetic quality of this image is below average.",
        "This image ranks low for beauty.",
        "The artistic quality of this image is lacking.",
        "This image has a low score for aesthetic value.",
        "The visual appeal of this image is low.",
        "This image is rated low for beauty.",
        "The aesthetic quality of this image is poor.",
    ),
    ("image", "high"): (
        "This image has a high aesthetic quality.",
        "The beauty of this image is exceptional",
        "This photo scores high in aesthetic value.",
        "With its harmonious colors and balanced composition.",
        "This image ranks highly for aesthetic quality.",
        "The artistic quality of this photo is excellent.",
        "This image is rated high for beauty.",
        "The aesthetic quality of this image is impressive.",
        "This photo has a top aesthetic score.",
        "The visual appeal of this image is outstanding.",
    ),
}
