"""Parses JSON with comments into nodes that remember their line.

The published configs hold `#` comments, which `json` cannot read, and every value needs its line. Size, depth and
digits are limited before parsing. No value is changed silently: numbers that do not fit a 64-bit float or integer,
escapes unknown to JSON and half surrogate pairs are errors.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema.node import MAX_DEPTH, Node, join, one_line

MAX_BYTES = 2**20  # limit for a config file; the published ones have 10 KB

_SPACE = re.compile(r"\s+|\#[^\n]*|//[^\n]*")
_WORD = re.compile(r"""[^\s{}\[\]:,"#]+""")
_STRING_STOP = re.compile(r'["\\\n]')
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_WORDS = {"true": True, "false": False, "null": None}
_MARKS = "{}[]:,"

Token = tuple[str, str, int]  # kind, text, line


def read_json(path: str | Path) -> Node:
    """Parse a JSON file that may hold `#`, `//`, `/* */` comments and trailing commas."""
    return _Parser(read_text(path, MAX_BYTES), str(path)).parse()


def read_json_lines(path: str | Path) -> list[Node]:
    """Parses a file with one JSON value per line; skips empty lines and lines that begin with `#` or `//`."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    kept = [(number, line) for number, line in lines if line.strip() and not line.strip().startswith(("#", "//"))]
    return [_Parser(line, str(path), number).parse() for number, line in kept]


def parse_json(text: str, file: str, line: int = 1) -> Node:
    """Parse a text that begins in `line` of `file`."""
    return _Parser(text, file, line).parse()


def read_text(path: str | Path, max_bytes: int = 16 * MAX_BYTES) -> str:
    """Text of a UTF-8 file, without its byte order mark. Raises ConfigError if it is unreadable or too large."""
    shown = one_line(str(path))
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > max_bytes:
        raise ConfigError(f"{shown}: has more than {max_bytes} bytes, the limit for such a file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{shown}:{line} is not UTF-8 text (byte {error.start}); save the file as UTF-8") from None


def read_int(text: str) -> int:
    """Parses a whole number as written in JSON and flags. ValueError gives the rule."""
    if not _WHOLE.fullmatch(text):
        raise ValueError("expected a whole number, written like 10")
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError("does not fit in 64 bits")
    return int(text)


def read_float(text: str) -> float:
    """Parses a number as written in JSON and flags. ValueError gives the rule; overflow and underflow are errors."""
    if not _NUMBER.fullmatch(text):
        if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise ValueError("must be finite")
        raise ValueError("expected a number, written like 10, 0.5 or 1e-5")
    value = float(text)
    if math.isinf(value):
        raise ValueError("is beyond the largest number of 64 bits")
    if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise ValueError("is closer to 0 than any number of 64 bits")
    return value


class _Parser:
    """Recursive descent over the tokens of a file, or of a piece of it that begins in `line`."""

    def __init__(self, text: str, file: str, line: int = 1):
        self.text, self.file, self.line = text, file, line
        self.tokens = self._tokens()
        self.token = next(self.tokens)

    def _error(self, message: str, line: int, path: str | None = None) -> ConfigError:
        where = "" if path is None else f"{path or '(top level)'}: "
        return ConfigError(f"{one_line(self.file)}:{line} " + one_line(where + message))

    def _tokens(self) -> Iterator[Token]:
        text, at, line = self.text, 0, self.line
        while at < len(text):
            start, begin = at, line
            if match := _SPACE.match(text, at):
                at = match.end()
                kind = ""
            elif text.startswith("/*", at):
                at = text.find("*/", at) + 2
                if at < 2:
                    raise self._error("a comment begins here (/*) that does not end", line)
                kind = ""
            elif text[at] == '"':
                at = self._end_of_string(at, line)
                kind = "string"
            elif text[at] in _MARKS:
                at += 1
                kind = "mark"
            elif match := _WORD.match(text, at):
                at = match.end()
                kind = "word"
            else:
                raise self._error(f"unexpected text {text[at : at + 20].splitlines()[0]!r}", line)
            line += text.count("\n", start, at)
            if kind:
                yield kind, text[start:at], begin
        yield "end", "end of file", line

    def _end_of_string(self, start: int, line: int) -> int:
        at = start + 1
        while match := _STRING_STOP.search(self.text, at):
            if match.group() == '"':
                return match.end()
            if match.group() == "\n":
                break
            at = match.end() + 1  # the escaped character
        raise self._error(f"the string {self.text[start : start + 20]!r} does not end in its line", line)

    def _next(self) -> Token:
        token = self.token
        if token[0] != "end":
            self.token = next(self.tokens)
        return token

    def parse(self) -> Node:
        node = self._value("", 0)
        kind, text, line = self._next()
        if kind != "end":
            raise self._error(f"unexpected {text!r} after the end of the value", line)
        return node

    def _value(self, path: str, depth: int) -> Node:
        kind, text, line = self._next()
        if depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} objects and lists inside each other", line)
        if kind == "string":
            return Node(self._string(text, line, path), self.file, line, path)
        if kind == "word":
            return Node(self._word(text, line, path), self.file, line, path)
        if text == "{":
            return Node(self._object(path, depth), self.file, line, path)
        if text == "[":
            return Node(self._array(path, depth), self.file, line, path)
        raise self._error(f"expected a value, found {text!r}", line, path)

    def _string(self, text: str, line: int, path: str) -> str:
        for match in re.finditer(r"\\.", text, re.DOTALL):
            if not _ESCAPE.match(text, match.start()):
                wrong = text[match.start() : match.start() + 6]
                raise self._error(
                    f'{wrong.rstrip(chr(34))!r} is no escape of JSON; write \\\\ for a backslash ("C:\\\\models"), or /',
                    line,
                    path,
                )
        value = json.loads(text, strict=False)
        if "\0" in value:
            raise self._error("the string holds a NUL character", line, path)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self._error("the string holds half a surrogate pair, which is no character", line, path)
        return value

    def _word(self, text: str, line: int, path: str):
        if text in _WORDS:
            return _WORDS[text]
        if text[0] in "-.+0123456789":
            try:
                return read_int(text) if re.fullmatch("-?[0-9]+", text) else read_float(text)
            except ValueError as error:
                raise self._error(f"{text}: {error}", line, path) from None
        if text.lower() in ("nan", "infinity", "inf"):
            raise self._error(f"{text}: must be finite", line, path)
        known = {"True": "true", "False": "false", "None": "null"}
        hint = f"; write {known[text]}" if text in known else '; strings stand in double quotes, "like this"'
        raise self._error(f"unexpected text {text!r}{hint}", line, path)

    def _object(self, path: str, depth: int) -> dict[str, Node]:
        items: dict[str, Node] = {}
        while self.token[1] != "}" or self.token[0] != "mark":
            kind, text, line = self._next()
            if kind != "string":
                raise self._error(f'expected a "key", found {text!r}', line, path)
            key = self._string(text, line, path)
            if key in items:
                raise self._error(f"given twice (first in line {items[key].line})", line, join(path, key))
            self._mark(":", join(path, key))
            items[key] = self._value(join(path, key), depth + 1)
            self._comma("}", path)
        self._next()
        return items

    def _array(self, path: str, depth: int) -> list[Node]:
        items: list[Node] = []
        while self.token[:2] != ("mark", "]"):
            items.append(self._value(f"{path}[{len(items)}]", depth + 1))
            self._comma("]", path)
        self._next()
        return items

    def _comma(self, closing: str, path: str) -> None:
        if self.token[:2] != ("mark", closing):
            self._mark(",", path)

    def _mark(self, mark: str, path: str) -> None:
        kind, text, line = self._next()
        if (kind, text) != ("mark", mark):
            raise self._error(f"expected {mark!r}, found {text!r}", line, path)
