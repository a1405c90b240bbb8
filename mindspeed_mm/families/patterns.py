"""What a user's patterns mean among a network's names: groups, names, parts of names, and wildcards."""

import fnmatch
import re
from collections.abc import Iterable, Mapping

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import did_you_mean


def matching(kinds: Mapping[str, str], words: Iterable[str], flag: str, what: str) -> list[str]:
    """Names that the words mean, in the order of `kinds`.

    kinds: name -> its group. A word is a group, a name, the end or the beginning of one at a dot, or a pattern with * and ?.
    flag, what: for the error. Raises ConfigError for a word that means none, with a known one near it.
    """
    words = [part for word in words for part in word.split(",") if part]
    chosen: set[str] = set()
    for word in words:
        found = {name for name, kind in kinds.items() if _means(word, name, kind)}
        if not found:
            groups = [kind for kind in dict.fromkeys(kinds.values()) if kind]
            tails = list(dict.fromkeys(tail(name) for name in kinds))
            example = next((f"*.{tail(name)}" for name in kinds if tail(name) != name), "*")
            raise ConfigError(
                f"{flag} {word}: matches no {what} of the network{did_you_mean(word, [*groups, *tails])} "
                f"(groups: {', '.join(groups)}; patterns such as {example})"
            )
        chosen |= found
    if not words:
        raise ConfigError(f"{flag}: names nothing; leave it out or name a group or a pattern")
    return [name for name in kinds if name in chosen]


def tail(name: str) -> str:
    """A name behind the numbers of its block: "transformer_blocks.0.1.attn1.to_q" -> "attn1.to_q"."""
    return re.sub(r"^.*\.\d+\.(?=[a-z])", "", name)


def _means(word: str, name: str, kind: str) -> bool:
    return word == kind or any(
        fnmatch.fnmatchcase(name, form) for form in (word, f"*.{word}", f"{word}.*", f"*.{word}.*")
    )
