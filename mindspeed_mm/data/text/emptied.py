"""Finds texts that cleaning empties: such a caption trains the model without text, such a prompt samples without one.

Chinese is the usual reason: the original removes it, since its T5 has no pieces for it.
"""

import dataclasses
import random
import re
from collections.abc import Iterable, Sequence

from mindspeed_mm.config.data import DatasetConfig
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.text.cleaning import CJK, preprocess

_MOST = 20_000  # number of texts that are cleaned; from more texts a part is drawn
_EXAMPLES = 3
_SHOWN = 60  # characters of an example

# A plain word of four letters or more between blanks survives every rule of the cleaning, so most captions need not be
# cleaned to know that something is left. Not in texts that hold markup, escapes or Chinese, and not these words.
_DOUBTFUL = re.compile(r"[<&%@\\\u3100-\u9fff]|click|www|http", re.IGNORECASE)
_WORD = re.compile(
    r"(?:^|\s)(?!worldwide|free|shipping|download|page|image|png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)[a-z]{4,}(?=,?(?:\s|$))",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[^\W_]")

CHINESE = (
    "cleaning removes Chinese, for which the published T5 has no pieces: translate the texts to English, or set support_chinese "
    "true and train with a multilingual text encoder"
)


def is_doubtful(text: str) -> bool:
    """True unless a text holds a word that every cleaning leaves."""
    return _DOUBTFUL.search(text) is not None or not _WORD.search(text)


def is_emptied(text: str, use_clean_caption: bool = True, keep_cjk: bool = False) -> bool:
    """True if cleaning leaves nothing of a text, or removes more than it leaves of a Chinese one."""
    if not use_clean_caption:
        return not text.strip()
    if not is_doubtful(text):
        return False
    left = preprocess(text, keep_cjk=keep_cjk)
    return not left or (not keep_cjk and sum(map(len, CJK.findall(text))) > len(_LETTER.findall(left)))


@dataclasses.dataclass(frozen=True, slots=True)
class Emptied:
    """Number of a list's captions that cleaning empties. looked_at: tested captions; all unless the list is huge."""

    looked_at: int = 0
    count: int = 0
    examples: tuple[tuple[str, str], ...] = ()  # (path, beginning of the caption)
    chinese: bool = False

    @property
    def fraction(self) -> float:
        return self.count / self.looked_at if self.looked_at else 0.0

    def lines(self) -> list[str]:
        """Lines for the log; empty if no caption is emptied."""
        if not self.count:
            return []
        shown = "; ".join(f"{path}: {text!r}" for path, text in self.examples)
        hint = f". Hint: {CHINESE}" if self.chinese else ""
        return [
            f"data: cleaning empties {self.count} of {self.looked_at} captions ({self.fraction:.1%}), which then train as if "
            f"there were none ({shown}{', ...' if self.count > len(self.examples) else ''}){hint}"
        ]

    def report(self) -> dict:
        """The report for a JSON file."""
        examples = [{"path": path, "caption": text} for path, text in self.examples]
        return {
            "captions": self.looked_at,
            "count": self.count,
            "fraction": round(self.fraction, 6),
            "examples": examples,
        }

    def fault(self, most: float) -> str | None:
        """Reason not to train on the list, given --max-empty-captions `most`; or None."""
        if self.fraction <= most:
            return None
        return f"{self.lines()[0].removeprefix('data: ')}; more than --max-empty-captions {most:g}"


def emptied(rows: Iterable[Row], config: DatasetConfig) -> Emptied:
    """Captions of rows that the config's cleaning empties."""
    number, doubtful = 0, []
    for row in rows:
        number += len(row.captions)
        doubtful += [(row.path, text) for text in row.captions if is_doubtful(text)]
    return emptied_of(number, doubtful, config)


def emptied_of(number: int, doubtful: Sequence[tuple[str, str]], config: DatasetConfig) -> Emptied:
    """The same from the number of captions and the doubtful ones, each with the path of its row."""
    cleans = config.enable_text_preprocessing and config.use_clean_caption
    drawn = _drawn(doubtful) if cleans else doubtful
    found = [pair for pair in drawn if is_emptied(pair[1], cleans, config.support_chinese)]
    looked_at, count = number - len(doubtful) + len(drawn), len(found)
    if len(drawn) < len(doubtful):  # scaled up as if all had been tried
        looked_at, count = number, round(len(found) * len(doubtful) / len(drawn))
    examples = tuple((path, text[:_SHOWN]) for path, text in found[:_EXAMPLES])
    chinese = not config.support_chinese and any(CJK.search(text) for _, text in found)
    return Emptied(looked_at, count, examples, chinese)


def _drawn(texts: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    if len(texts) <= _MOST:
        return texts
    return [texts[place] for place in sorted(random.Random(0).sample(range(len(texts)), _MOST))]
