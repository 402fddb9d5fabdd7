"""TOML text to frozen settings, with every mistake told at once; and what changed between two.

It reads one file and knows nothing else: no sockets, processes, arguments or environment
(the number of cores is told to it). The lines of the keys come from `tomlplaces`, what the keys
are stands in `settings`, and `checks` compares the two. The story goes on in `listener`.
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
"""What stands for the file when the settings come from options."""

_RESTART = ("control", "pidfile")


class Source(NamedTuple):
    """Where settings come from, to be read again at a reload: a file, or options of the command line.

    `file` is a path; without one `app` and the options say all, and `folder` is where they were given.
    `insecure`: what others could change is served all the same, as root (`trust`).
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
        """The settings as they are now; ConfigError names every mistake in them."""
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
    """What differs between two settings: keys that need a restart, and the services a reload touches."""

    restart: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


def load(path: Path | str, *, cores: int) -> Settings:
    """The settings in the file at `path`; ConfigError names every mistake in it."""
    file = printable(str(path))
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        folder = Path(path).absolute().parent
    except (OSError, ValueError) as error:
        raise _refusal(file, 0, f"can not be read: {_reason(error)}") from None
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
    """The settings of one service from command-line options; what `sets` says goes over the options."""
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
    """Names the option to write, in place of the key that is missing."""
    return problem._replace(key=option) if problem.key == key else problem


def changes(old: Settings, new: Settings) -> Changes:
    """What a reload from `old` to `new` means. Other changes of [master] need nothing special."""
    return Changes(
        restart=tuple(f"master.{key}" for key in _RESTART if getattr(old.master, key) != getattr(new.master, key)),
        added=tuple(name for name in new.services if name not in old.services),
        removed=tuple(name for name in old.services if name not in new.services),
        changed=tuple(name for name, now in new.services.items() if old.services.get(name, now) != now),
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # the command line gives bytes that are no UTF-8 as lone surrogates (PEP 383)
        return False
    return True


def _refusal(file: str, line: int, what: str) -> ConfigError:
    return ConfigError([Problem(file, line, "", what)])


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _decode(file: str, data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _refusal(file, 0, "is longer than 1 MiB: that is no settings file")
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
    """The parser's complaint, in words for somebody who did not write the parser."""
    if what == "Cannot overwrite a value":
        return "this key stands there twice"
    if what.startswith("Exceeds the limit"):
        return "a number has too many digits"
    if twice := re.fullmatch(r"Cannot declare \('(.*)',?\) twice", what):
        return f"the table [{twice[1].replace(chr(39) + ', ' + chr(39), '.')}] stands there twice"
    return printable(what[:1].lower() + what[1:])


def _set(service: dict[str, Any], master: dict[str, Any], text: str) -> Problem | None:
    """Put one KEY=VALUE where it belongs."""
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
            return Problem(COMMAND_LINE, 0, printable(key), f"{name} is {show(table)} already, and no table")
    table[last] = _value(value)
    return None


def _value(text: str) -> object:
    """A TOML value, or else the text itself."""
    try:
        match tomllib.loads(f"value = {text}"):
            case {"value": value, **rest} if not rest:
                return value
    except (ValueError, RecursionError):
        pass
    return text


def _name_for(app: str) -> str:
    """A service's name when none is given: the last name in `app`, as far as it may be one."""
    return re.sub(r"[^A-Za-z0-9_.-]", "", re.split(r"[.:]", app)[-1]).lstrip("_.-")[:64] or "service"
