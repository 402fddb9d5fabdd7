"""Where each key of a TOML text stands: dotted key to line, so that a mistake can name its line.

Python's `tomllib` keeps no lines. This room walks the same text once more, a token at a time,
and looks only at keys and brackets. It must be given a text that `tomllib` has accepted: it
checks nothing, and knows nothing of what the keys mean. The story goes on in `config`.
"""

from __future__ import annotations

import re
import tomllib

DEPTH = 32
"""Keys nested deeper than this are left out (they can be no setting, and would cost their square in memory)."""

_Path = tuple[str | int, ...]

# A string may end in up to two quotes more than its closing three: hence the two ways for a quote to be inside.
# Each character fits one branch, so nothing is tried twice. (Possessive quantifiers would say so, but CPython
# gets them wrong before 3.11.4.)
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
    """The line, counted from 1, where each key, table and element of a list first stands."""
    walk = _Walk()
    for token in _TOKEN.finditer(text):
        walk.step(token.lastgroup, token[0])
    return walk.found


def line_of(places: dict[str, int], key: str) -> int:
    """The line of `key`, or of the nearest table around it; the entry "" stands for the whole text."""
    while key and key not in places:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return places.get(key, 0)


def dotted(path: _Path) -> str:
    """A path as people write it: `service.echo.listen[1]`. What can not be printed is escaped."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + printable(part)
    return text


def printable(text: str) -> str:
    """`text` on one line, with an escape for each character that can not be shown."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _Frame:
    """One open bracket: a table that keys land in (`element` is None) or an array and its next element."""

    __slots__ = ("element", "key", "parts", "path")

    def __init__(self, path: _Path, element: int | None = None) -> None:
        self.path = path
        self.element = element
        self.parts: list[str] = []  # of the key being read
        self.key: _Path | None = None  # the key whose value is being read

    def next(self) -> None:
        """A comma, or at the top the end of a line: what follows is a new key or element."""
        self.parts, self.key = [], None
        if self.element is not None:
            self.element += 1

    def value(self) -> _Path:
        """The path of the value that begins here."""
        if self.element is not None:
            return (*self.path, self.element)
        assert self.key is not None
        return self.key


class _Walk:
    """The state between two tokens. A stack instead of recursion: depth is the text's choice, not ours."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.line = 1
        self.frames = [_Frame(())]
        self.brackets = 0  # of a header at the start of this line: [table] or [[array of tables]]
        self.entries: dict[_Path, int] = {}  # of each array of tables, the last one's number

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
            if frame.parts:  # else it is the second bracket of ]]
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
    """The pieces of a dotted key that one token holds."""
    if token[0] not in "\"'":
        return [part for part in token.split(".") if part]
    if "\\" in token and token[0] == '"':
        return list(tomllib.loads(f"{token} = 0"))
    return [token[1:-1]]
