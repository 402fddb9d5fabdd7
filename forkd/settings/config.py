"""Turns TOML text into frozen settings, reports every mistake at once, and compares two readings.

It reads one file and touches nothing else: no sockets, processes, arguments or environment (the caller passes
the number of cores). `toml_lines` finds the line of each key, `schema` lists the keys, and `reading` checks one
against the other. Next in the story: `sockets.listener`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forkd.errors import ConfigError, Problem
from forkd.settings.reading import read, show
from forkd.settings.schema import Settings
from forkd.settings.toml_lines import places, printable

MAX_BYTES = 1024 * 1024
COMMAND_LINE = "command line"
"""Stands in for the file name when the settings come from options."""

_RESTART = ("control", "pidfile")


class Source(NamedTuple):
    """Where settings come from, kept so that a reload can read them again: a file, or command-line options.

    `file` is a path. If it is None, `app` and the options hold everything, and relative paths start at `folder`.
    With `insecure`, root serves even files that others could change (`trust`).
    """

    cores: int
    file: str | None = None
    app: str = ""
    name: str | None = None
    listen: tuple[str, ...] = ()
    workers: int | None = None
    worker: str | None = None
    sets: tuple[str, ...] = ()
    folder: str = "."
    insecure: bool = False

    def read(self) -> Settings:
        """Reads the settings as they are now. Raises ConfigError with every mistake."""
        if self.file is not None:
            return load(self.file, cores=self.cores)
        return from_options(
            self.app,
            name=self.name,
            listen=self.listen,
            workers=self.workers,
            worker=self.worker,
            sets=self.sets,
            folder=Path(self.folder),
            cores=self.cores,
        )


class Changes(NamedTuple):
    """The differences between two readings: keys that need a restart, and services that a reload affects."""

    restart: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


def load(path: Path | str, *, cores: int) -> Settings:
    """Reads the settings file at `path`. Raises ConfigError with every mistake in it."""
    file = printable(str(path))
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        folder = Path(path).absolute().parent
    except (OSError, ValueError) as error:
        raise _refusal(file, 0, f"cannot be read: {_reason(error)}") from None
    text = _decode(file, data)
    return read(file, folder, _parse(file, text), {"": 1, **places(text)}, cores)


def from_options(
    app: str,
    *,
    name: str | None,
    listen: Sequence[str],
    workers: int | None,
    worker: str | None,
    sets: Sequence[str],
    folder: Path,
    cores: int,
) -> Settings:
    """Builds the settings of one service from command-line options; `sets` overrides the other options."""
    service: dict[str, Any] = {"app": app}
    given = {"listen": list(listen) or None, "workers": workers, "worker": worker}
    service.update({key: value for key, value in given.items() if value is not None})
    master: dict[str, Any] = {}
    texts = [app, name or "", worker or "", *listen, *sets]
    if strange := [text for text in texts if not _is_utf8(text)]:
        raise ConfigError([Problem(COMMAND_LINE, 0, "", f"{show(text)} is not UTF-8") for text in strange])
    problems = [problem for text in sets if (problem := _set(service, master, text))]
    name = _name_for(app) if name is None else name
    try:
        return read(COMMAND_LINE, folder, {"master": master, "service": {name: service}}, {}, cores, problems)
    except ConfigError as error:
        if "listen" in service:
            raise
        missing = f"service.{printable(name)}.listen"
        raise ConfigError([_as_an_option(each, missing, "--listen") for each in error.problems]) from None


def _as_an_option(problem: Problem, key: str, option: str) -> Problem:
    """Replaces a missing key with the option that would set it."""
    return problem._replace(key=option) if problem.key == key else problem


def changes(old: Settings, new: Settings) -> Changes:
    """Returns what a reload from `old` to `new` affects. Other changes in [master] need no special treatment."""
    return Changes(
        restart=tuple(f"master.{key}" for key in _RESTART if getattr(old.master, key) != getattr(new.master, key)),
        added=tuple(name for name in new.services if name not in old.services),
        removed=tuple(name for name in old.services if name not in new.services),
        changed=tuple(name for name, now in new.services.items() if old.services.get(name, now) != now),
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python decodes such bytes as lone surrogates (PEP 383)
        return False
    return True


def _refusal(file: str, line: int, what: str) -> ConfigError:
    return ConfigError([Problem(file, line, "", what)])


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _decode(file: str, data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _refusal(file, 0, "is longer than 1 MiB: this is not a settings file")
    if data.startswith(b"\xef\xbb\xbf"):
        raise _refusal(file, 1, "begins with a byte order mark: save it as UTF-8 without one")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refusal(file, line, f"is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from None


def _parse(file: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise _refusal(file, 1, "is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        what, place, at = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", at)
        number = int(line[1]) if line else text.count("\n") + (not text.endswith("\n")) if place else 1
        raise _refusal(file, number, f"is not TOML: {_plain(what)}") from None


def _plain(what: str) -> str:
    """Rewords the parser's message for people who do not know the parser."""
    if what == "Cannot overwrite a value":
        return "duplicate key"
    if what.startswith("Exceeds the limit"):
        return "a number has too many digits"
    if twice := re.fullmatch(r"Cannot declare \('(.*)',?\) twice", what):
        return f"duplicate table [{twice[1].replace(chr(39) + ', ' + chr(39), '.')}]"
    return printable(what[:1].lower() + what[1:])


def _set(service: dict[str, Any], master: dict[str, Any], text: str) -> Problem | None:
    """Stores one KEY=VALUE in the table it belongs to. Returns what is wrong with it, if anything."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        return Problem(COMMAND_LINE, 0, "", f"--set {show(text)}: write KEY=VALUE, such as idle_timeout=5")
    *tables, last = key.split(".")
    table = service
    if tables and tables[0] == "master":
        table = master
        del tables[0]
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            return Problem(COMMAND_LINE, 0, printable(key), f"{name} is already {show(table)}, not a table")
    table[last] = _value(value)
    return None


def _value(text: str) -> object:
    """Parses a TOML value; anything else is taken as a string."""
    try:
        match tomllib.loads(f"value = {text}"):
            case {"value": value, **rest} if not rest:
                return value
    except (ValueError, RecursionError):
        pass
    return text


def _name_for(app: str) -> str:
    """Derives a service name from the last name in `app`, without the characters that a name may not contain."""
    return re.sub(r"[^A-Za-z0-9_.-]", "", re.split(r"[.:]", app)[-1]).lstrip("_.-")[:64] or "service"
