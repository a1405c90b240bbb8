"""Bearer tokens: who may use the API, and how many unfinished videos each may have."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from mindspeed_mm.errors import ConfigError

VARIABLE = "MINDSPEED_MM_API_KEYS"
_ANYONE = "anyone"
_SHORTEST = 16  # characters of a token


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """name: owner of the videos. limit: unfinished videos that it may have; None: as many as the queue takes."""

    name: str
    limit: int | None = None


class Keys:
    """The keys of a server; without any, whoever reaches it is let in."""

    def __init__(self, keys: Mapping[bytes, Key], limit: int | None = None):
        """keys: by the SHA-256 of the token, so that no comparison takes a time that tells of a token. limit: of those
        that have none of their own.
        """
        self._keys = keys
        self._limit = limit

    @property
    def are_asked(self) -> bool:
        return bool(self._keys)

    def of(self, authorization: str | None) -> Key | None:
        """The key of a request's Authorization header; None if it has none that is known."""
        if not self._keys:
            return Key(_ANYONE, self._limit)
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer":
            return None
        key = self._keys.get(_digest(token.strip()))
        return key if key is None or key.limit is not None else dataclasses.replace(key, limit=self._limit)

    @classmethod
    def read(cls, file: str | None, limit: int | None, environment: Mapping[str, str] = os.environ) -> "Keys":
        """Reads a file, or else the variable, of lines `NAME TOKEN [LIMIT]`; # begins a comment. Raises ConfigError."""
        place = f"${VARIABLE}" if file is None else f"--api-keys {file}"
        if file is None:
            text = environment.get(VARIABLE, "")
        else:
            try:
                text = Path(file).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ConfigError(f"{place}: cannot be read ({error})") from None
        keys: dict[bytes, Key] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if words:
                token, key = _key(words, f"{place}, line {number}")
                if token in keys or key.name in {other.name for other in keys.values()}:
                    raise ConfigError(f"{place}, line {number}: a name or token that another line has; give each once")
                keys[token] = key
        if file is not None and not keys:
            raise ConfigError(f"{place}: holds no key; write lines of the form NAME TOKEN [LIMIT]")
        return cls(keys, limit)


def _key(words: list[str], place: str) -> tuple[bytes, Key]:
    """(digest of the token, key) of a line. The token is never said."""
    if len(words) not in (2, 3) or (len(words) == 3 and not (words[2].isascii() and words[2].isdigit())):
        raise ConfigError(f"{place}: need NAME TOKEN [LIMIT], LIMIT a whole number of unfinished videos")
    if len(words[1]) < _SHORTEST:
        raise ConfigError(f"{place}: the token has {len(words[1])} characters; use {_SHORTEST} or more")
    return _digest(words[1]), Key(words[0], int(words[2]) if len(words) == 3 else None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
