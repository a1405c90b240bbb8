"""Cleans captions and prompts, equal to the original on every golden text, in time linear in the length.

The original's patterns are the rule. Some of them scan the rest of the text again from every place, so that "a.a.a.
..." took seconds; their matches are found here in another way.
"""

import html
import re
import urllib.parse
import warnings

import ftfy
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

from mindspeed_mm.config.sample import LONGEST_TEXT

# Limit of tags times characters for the HTML parser, which scans on from each tag; 0.1 s at most.
_MARKUP_WORK = 2_000_000


def preprocess(text: str, use_clean_caption: bool = True, keep_cjk: bool = False) -> str:
    """Prepares a caption or prompt for the text encoders: cleans it twice, or only lower-cases and strips it.

    Twice, because the first pass can uncover text that the second removes (entities that decode to tags, for example).
    keep_cjk: keeps Chinese and Japanese characters, which the original removes.
    """
    return clean(clean(text, keep_cjk), keep_cjk) if use_clean_caption else text[:LONGEST_TEXT].lower().strip()


def clean(text: str, keep_cjk: bool = False) -> str:
    """Cleans the first `LONGEST_TEXT` characters once: lower case; no URLs, HTML, e-mail names, CJK, file names, codes
    or sizes; plain quotes and dashes.
    """
    text = urllib.parse.unquote_plus(str(text)[:LONGEST_TEXT]).strip().lower()
    text = _PERSON.sub("person", text)
    for scheme in _SCHEMES:
        text = _without_links(text, scheme)
    text = _MENTIONS.sub("", _plain_text(text))
    if not keep_cjk:
        text = CJK.sub("", text)
    text = _substitute(_SYMBOLS, text)
    if _FILE_END.search(text):
        text = _WORD.sub(_without_file_name, text)
    text = _substitute(_MARKS, text)
    if text.count("-") + text.count("_") > 3:  # this-is-my-cute-cat
        text = text.replace("-", " ").replace("_", " ")
    text = html.unescape(_short_numbers(html.unescape(_short_numbers(ftfy.fix_text(text))))).strip()
    return _substitute(_CODES_AND_EDGES, text).strip()


# ---------------------------------------------------------------------------------------------------------------- links

# The original removes \b((?:https?:(?:\/{1,3}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:com|co|...)[\w/-]*\b\/?(?!@))), then the
# same with www: for https?:. Here the second half is found from its end.
_SCHEMES = tuple(re.compile(rf"\b{name}(?:\/{{1,3}}|[a-zA-Z0-9%])") for name in ("https?:", "www:"))
_DOMAIN_END = re.compile(r"[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)")
_HOST = re.compile(r"[a-zA-Z0-9.\-]+")
_EDGE = re.compile(r"\b")


def _without_links(text: str, scheme: re.Pattern) -> str:
    """Removes addresses that begin with the scheme, or that look like a domain with a path."""
    ends = {found.start(): found.end() for found in _DOMAIN_END.finditer(text)}
    if not ends:
        return scheme.sub("", text)
    pieces, at, link = [], 0, scheme.search(text)
    for host in _HOST.finditer(text):
        while link is not None and link.start() < max(at, host.start()):
            if link.start() >= at:
                pieces.append(text[at : link.start()])
                at = link.end()
            link = scheme.search(text, max(at, link.start() + 1))
        dot = _last_dot(text, host, ends, at)
        if dot is None:
            continue
        edge = _EDGE.search(text, max(at, host.start()))
        if edge is None:
            continue
        begin = edge.start()
        if begin < dot and (link is None or begin < link.start()):
            pieces.append(text[at:begin])
            at = ends[dot]
    while link is not None:
        if link.start() >= at:
            pieces.append(text[at : link.start()])
            at = link.end()
        link = scheme.search(text, max(at, link.start() + 1))
    return "".join([*pieces, text[at:]])


def _last_dot(text: str, host: re.Match, ends: dict[int, int], at: int) -> int | None:
    """The last dot of a host, after `at`, at which a domain ends."""
    dot = text.rfind(".", host.start(), host.end())
    while dot > max(at, host.start()):
        if dot in ends:
            return dot
        dot = text.rfind(".", host.start(), dot)
    return None


# ----------------------------------------------------------------------------------------------------------------- HTML

_HIDDEN = re.compile(r"<!--.*?-->|<(script|style|template)\b[^>]*>.*?</\1\s*>", re.DOTALL)
_TAG = re.compile(r"</?[a-z][^<>]*>|<[!?][^<>]*>")
_NUMBER_REFERENCE = re.compile(r"&#0*([0-9]{7})[0-9]+|&#x0*([0-9a-f]{6})[0-9a-f]+", re.IGNORECASE)


def _plain_text(text: str) -> str:
    """Text of an HTML string. It is parsed if that is fast; in a text that is mostly tags, they are cut out."""
    if "<" not in text and "&" not in text:
        return text
    text = _short_numbers(text)
    if text.count("<") * len(text) > _MARKUP_WORK:
        return html.unescape(_TAG.sub("", _without_hidden(text)))
    with warnings.catch_warnings():  # captions that look like a file name or address are not mistakes here
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        return BeautifulSoup(text, features="html.parser").text


def _without_hidden(text: str) -> str:
    """Removes comments and scripts that are closed."""
    closed = max(text.rfind("-->"), text.rfind("</")) + 1
    return _HIDDEN.sub("", text[:closed]) + text[closed:] if closed else text


def _short_numbers(text: str) -> str:
    """Cuts numeric references with more digits than any character has.

    They become U+FFFD either way, and Python refuses to read thousands of digits.
    """
    return (
        _NUMBER_REFERENCE.sub(lambda found: "&#9999999" if found[1] else "&#xfffffff", text) if "&#" in text else text
    )


# ---------------------------------------------------------------------------------------------------------------- rules


def _substitute(rules: tuple[tuple[re.Pattern, str], ...], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern, str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_PERSON = re.compile(r"<person>")
_MENTIONS = re.compile(r"@[\w\d]+\b")
# strokes, Katakana extensions, enclosed letters, compatibility, extension A, hexagrams, unified ideographs
CJK = re.compile(r"[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+")
_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

_SYMBOLS = _rules(
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
)

# The original removes \S+\.(?:png|...): each word up to its last such ending. Here that is found word by word.
_FILE_END = re.compile(rf"\.(?:{_FILE_TYPES})")
_WORD = re.compile(r"\S+")
_FILE_NAME = re.compile(rf"\S+\.(?:{_FILE_TYPES})")


def _without_file_name(word: re.Match) -> str:
    found = _FILE_NAME.match(word[0])
    return word[0] if found is None else word[0][found.end() :]


_MARKS = _rules(
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"(?<!\s)\s+\.\s+", " "),
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
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d[a-zA-Z\d]*\b", " "),
    (r"\b\d+(?:\.\d*)?[x\u0445×]\d+(?:\.\d*)?\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
