"""Captions: which one, with which sentence about its looks, cleaned, or dropped for classifier-free guidance.

Prompts are cleaned by the same functions at sampling time.
"""

import html
import random
import re
import urllib.parse
import warnings
from collections.abc import Sequence

import ftfy
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

# --------------------------------------------------------------------------------------------------------- choosing


def choose_caption(captions: Sequence[str], rng: random.Random) -> str:
    """One of the captions. Always one draw, also from a single caption."""
    return rng.choice(captions)


def add_aesthetic(caption: str, score: float | None, kind: str, rng: random.Random) -> str:
    """The caption of a 'video' or 'image', with a sentence before or after it that says how it looks.

    Only for scores of at most 4.25 or at least 5.75. Draws the sentence and its side, or nothing.
    """
    sentences = _sentences(score, kind)
    return rng.choice(_both_sides(caption, rng.choice(sentences))) if sentences else caption


def with_aesthetic(caption: str, score: float | None, kind: str) -> list[str]:
    """Everything that `add_aesthetic` can make of a caption."""
    sentences = _sentences(score, kind)
    return [text for sentence in sentences for text in _both_sides(caption, sentence)] or [caption]


def _sentences(score: float | None, kind: str) -> tuple[str, ...]:
    if score is None or 4.25 < score < 5.75:
        return ()
    return AESTHETIC_SENTENCES[kind, "low" if score <= 4.25 else "high"]


def _both_sides(caption: str, sentence: str) -> list[str]:
    return [f"{caption} {sentence}", f"{sentence} {caption}"]


def drop_caption(caption: str, probability: float, rng: random.Random) -> str:
    """The caption, or "" with the given probability. One draw."""
    return caption if rng.random() > probability else ""


# Where a "video" sentence and an "image" sentence differ in more than that word, the published lists do so too.
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

# --------------------------------------------------------------------------------------------------------- cleaning


def preprocess(caption: str, use_clean_caption: bool = True) -> str:
    """A caption or prompt as the text encoders should see it: cleaned twice, or only lower-cased and stripped.

    Twice, because the first pass can uncover what the second removes (entities that decode to tags, for example).
    """
    return clean(clean(caption)) if use_clean_caption else caption.lower().strip()


def clean(caption: str) -> str:
    """One pass: lower case; no URLs, HTML, e-mail names, CJK, file names, codes and sizes; plain quotes and dashes."""
    text = urllib.parse.unquote_plus(str(caption)).strip().lower()
    text = _substitute(_LINKS, text)
    with warnings.catch_warnings():  # captions that look like a file name or an address are no mistake here
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        text = BeautifulSoup(text, features="html.parser").text
    text = _substitute(_SYMBOLS, text)
    if len(_DASHES_AND_UNDERSCORES.findall(text)) > 3:  # this-is-my-cute-cat
        text = _DASHES_AND_UNDERSCORES.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _substitute(_CODES_AND_EDGES, text).strip()


def _substitute(rules: tuple[tuple[re.Pattern, str], ...], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern, str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_URL = (
    r"\b((?:{scheme}(?:\/{{1,3}}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.]"
    r"(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)))"
)
_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES_AND_UNDERSCORES = re.compile(r"[-_]")

_LINKS = _rules(
    (r"<person>", "person"),
    (_URL.format(scheme="https?:"), ""),
    (_URL.format(scheme="www:"), ""),
)

_SYMBOLS = _rules(
    (r"@[\w\d]+\b", ""),
    # CJK: strokes, Katakana extensions, enclosed letters, compatibility, extension A, hexagrams, unified ideographs
    (r"[\u31c0-\u31ef]+", ""),
    (r"[\u31f0-\u31ff]+", ""),
    (r"[\u3200-\u32ff]+", ""),
    (r"[\u3300-\u33ff]+", ""),
    (r"[\u3400-\u4dbf]+", ""),
    (r"[\u4dc0-\u4dff]+", ""),
    (r"[\u4e00-\u9fff]+", ""),
    (
        r"[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
        r"\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILE_TYPES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)

_CODES_AND_EDGES = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_TYPES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445×]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
