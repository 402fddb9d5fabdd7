"""Finds the line of each dotted key of a TOML text, so that a mistake can name its line.

Python's `tomllib` does not keep lines. This room walks the same text again, token by token, and looks only at
keys and brackets. It checks nothing, so the text must be one that `tomllib` has accepted, and it knows nothing about
the keys' meaning. Next in the story: `config`.
"""

from __future__ import annotations

import re
import tomllib

DEPTH = 32
"""Deeper keys are left out: no setting is so deep, and their memory would grow with the square of the depth."""

_Path = tuple[str | int, ...]

# A string may end in two quotes more than the closing three, hence the two branches for a quote inside it.
# Each character fits only one branch, so there is no backtracking. (Possessive quantifiers would say the same,
# but CPython has a bug in them before 3.11.4.)
_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<text>\"{3} (?: [^"\\] | \\. | "(?!"") | "(?=\"{3}) )* \"{3}
               | '{3} (?: [^'] | '(?!'') | '(?='{3}) )* '{3}
               | " (?: [^"\\\n] | \\. )* "
               | ' [^'\n]* ')
      | (?P<newline>\n)
      | (?P<mark>[\[\]{}=,])
      | (?P<word>[^\s\[\]{}=,\#"']+)""",
    re.VERBOSE | re.DOTALL,
)


def places(text: str) -> dict[str, int]:
    """Returns the line, counted from 1, where each key, table and list element first appears."""
    walk = _Walk()
    for token in _TOKEN.finditer(text):
        walk.step(token.lastgroup, token[0])
    return walk.found


def line_of(places: dict[str, int], key: str) -> int:
    """Returns the line of `key`, or of the nearest table around it; the entry "" covers the whole text."""
    while key and key not in places:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return places.get(key, 0)


def dotted(path: _Path) -> str:
    """Writes a path as people do, `service.echo.listen[1]`, with unprintable characters escaped."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + printable(part)
    return text


def printable(text: str) -> str:
    """Returns `text` on one line, with unprintable characters escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _Frame:
    """An open bracket: a table that receives keys (`element` is None), or an array and its next element."""

    __slots__ = ("element", "key", "parts", "path")

    def __init__(self, path: _Path, element: int | None = None) -> None:
        self.path = path
        self.element = element
        self.parts: list[str] = []  # of the key being read
        self.key: _Path | None = None  # the key whose value is being read

    def next(self) -> None:
        """Starts a new key or element, after a comma or, at the top level, the end of a line."""
        self.parts, self.key = [], None
        if self.element is not None:
            self.element += 1

    def value(self) -> _Path:
        """Returns the path of the value that begins here."""
        if self.element is not None:
            return (*self.path, self.element)
        assert self.key is not None
        return self.key


class _Walk:
    """The state between two tokens. It is a stack, not recursion, because the text decides the depth."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.line = 1
        self.frames = [_Frame(())]
        self.brackets = 0  # opened at the start of this line: [table] or [[array of tables]]
        self.entries: dict[_Path, int] = {}  # the index of the last table in each array of tables

    def step(self, kind: str | None, token: str) -> None:
        frame = self.frames[-1]
        if kind == "newline":
            self.line += 1
            if len(self.frames) == 1:
                self.brackets = 0
                frame.next()
        elif kind == "mark":
            self._mark(frame, token)
        elif kind != "comment":
            if frame.element is not None:
                self._note(frame.value())
            elif frame.key is None:
                frame.parts += _parts(token)
            self.line += token.count("\n")

    def _mark(self, frame: _Frame, mark: str) -> None:
        header = len(self.frames) == 1 and frame.key is None
        if mark == "=":
            frame.key = self._key(frame.path, frame.parts)
        elif mark == ",":
            frame.next()
        elif header and mark == "[":
            self.brackets += 1
        elif header:
            if frame.parts:  # otherwise this is the second bracket of ]]
                frame.path = self._header(frame.parts)
                frame.parts = []
        elif mark in "[{":
            path = frame.value()
            self._note(path)
            self.frames.append(_Frame(path, 0 if mark == "[" else None))
        else:
            self.frames.pop()

    def _key(self, base: _Path, parts: list[str]) -> _Path:
        path = base
        for part in parts:
            path = (*path, part)
            self._note(path)
            if len(path) > DEPTH:
                break
        return path

    def _header(self, parts: list[str]) -> _Path:
        path: _Path = ()
        for number, part in enumerate(parts, 1):
            path = (*path, part)
            self._note(path)
            if len(path) > DEPTH:
                break
            if number == len(parts) and self.brackets == 2:
                self.entries[path] = self.entries.get(path, -1) + 1
            if path in self.entries:
                path = (*path, self.entries[path])
                self._note(path)
        return path

    def _note(self, path: _Path) -> None:
        if len(path) <= DEPTH:
            self.found.setdefault(dotted(path), self.line)


def _parts(token: str) -> list[str]:
    """Returns the parts of a dotted key that one token contains."""
    if token[0] not in "\"'":
        return [part for part in token.split(".") if part]
    if "\\" in token and token[0] == '"':
        return list(tomllib.loads(f"{token} = 0"))
    return [token[1:-1]]
