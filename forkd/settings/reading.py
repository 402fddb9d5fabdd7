"""Turns a table of plain values, as TOML yields it, into frozen settings; checks each value, then combinations.

It records every mistake in plain words and goes on to look for the next. `schema` lists the keys; `config` knows
where the table came from.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from forkd.errors import AddressError, ConfigError, Problem
from forkd.ipc.worker_kinds import DEFAULT_KIND, KINDS, those_that
from forkd.kernel import address
from forkd.settings.schema import (
    MAX_WORKERS,
    Key,
    Listen,
    LogSettings,
    MasterSettings,
    Rpcbind,
    ServiceSettings,
    Settings,
    Workers,
    keys,
)
from forkd.settings.toml_lines import line_of, printable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MODE = re.compile(r"0?[0-7]{3}")
_TABLES = ("master", "service")

NO_IPV4_PORT = "registers IPv4 TCP ports, but this service listens on none"
"""What is wrong with `rpcbind` for a service that has only other listeners."""


def read(
    file: str,
    folder: Path,
    table: dict[str, Any],
    lines: dict[str, int],
    cores: int,
    problems: Sequence[Problem] = (),
) -> Settings:
    """Returns the settings in `table`. Raises ConfigError with every mistake, `problems` included, in line order.

    `lines` maps each dotted key to its line. Relative paths start at `folder`. `cores` is the default for workers.
    """
    reading = _Reader(file, folder, lines, min(max(cores, 1), MAX_WORKERS))
    reading.problems.extend(problems)
    settings = reading.settings(table)
    if reading.problems:
        raise ConfigError(sorted(reading.problems, key=lambda problem: problem.line))
    return settings


def show(value: object) -> str:
    """Describes a value without Python's terms."""
    if isinstance(value, str):
        return f'the string "{_shorten(printable(value), 60)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, int) and value.bit_length() > 64:
        return "so large a number"
    return str(value)


class _Reader:
    """One pass over one table. Each method returns a valid value, or records the mistake and returns None."""

    def __init__(self, file: str, folder: Path, lines: dict[str, int], cores: int) -> None:
        self.file = file
        self.folder = folder
        self.lines = lines
        self.cores = cores
        self.problems: list[Problem] = []
        self.taken: dict[object, str] = {}  # the key that uses each address or RPC program
        self.readers: dict[str, Callable[[str, Key, Any], Any]] = {
            "address": self._address,
            "control": self._path,
            "file": self._path,
            "listen": self._listen,
            "log": lambda at, _, value: self._table(at, value, LogSettings),
            "mode": self._mode,
            "path": self._path,
            "pidfile": self._path,
            "rpcbind": self._rpcbind,
            "workers": self._workers,
        }

    def settings(self, table: dict[str, Any]) -> Settings:
        meant = self._unknown("", table, _TABLES)
        master = self._table("master", table.get("master", {}), MasterSettings)
        services: dict[str, Any] = {}
        if "service" in table:
            services = self._services(table["service"])
        elif "service" not in meant:
            self._wrong("service", "is missing: write a table [service.NAME] with app and listen")
        return Settings(file=self.file, master=master, services=services, places=self.lines)

    def _wrong(self, key: str, what: str) -> None:
        self.problems.append(Problem(self.file, line_of(self.lines, key), _shorten(key, 200), _shorten(what, 400)))

    def _unknown(self, at: str, table: dict[str, Any], known: Collection[str]) -> set[str]:
        """Records unknown keys; returns the known ones that were probably meant."""
        meant = set()
        for name in table:
            if name in known:
                continue
            near = difflib.get_close_matches(name, known, 1, 0.65)
            meant.update(near)
            thing, hint = "key", ""
            if isinstance(table[name], dict):
                thing = "table"
                if at.startswith("service."):
                    dotted = _join(at.removeprefix("service."), name)
                    hint = f'; quote a service name that has a dot: [service."{dotted}"]'
            if near:
                hint = f'; did you mean "{near[0]}"?'
            self._wrong(_join(at, name), f"unknown {thing}{hint}")
        return meant

    def _fields(self, at: str, value: object, kind: type[msgspec.Struct]) -> dict[str, Any]:
        """Returns the valid values of a table, by key."""
        if not isinstance(value, dict):
            self._wrong(at, f"must be a table, not {show(value)}")
            return {}
        known = keys(kind)
        meant = self._unknown(at, value, known)
        found = {}
        for name, key in known.items():
            where = _join(at, name)
            if name in value:
                reader: Callable[[str, Key, Any], Any] = self.readers.get(name, self._plain)
                good = reader(where, key, value[name])
                if good is not None:
                    found[name] = good
            elif key.required and name not in meant:
                self._wrong(where, f"is missing: write {key.wants}")
        return found

    def _table(self, at: str, value: object, kind: type[msgspec.Struct]) -> Any:
        before = len(self.problems)
        fields = self._fields(at, value, kind)
        build: Callable[..., Any] = kind
        return build(**fields) if len(self.problems) == before else None

    def _plain(self, at: str, key: Key, value: object) -> Any:
        try:
            return msgspec.convert(value, key.type)
        except msgspec.ValidationError:
            self._not(at, key, value)
            return None

    def _not(self, at: str, key: Key, value: object) -> None:
        self._wrong(at, f"must be {key.wants}, not {show(value)}")

    def _services(self, tables: object) -> dict[str, ServiceSettings]:
        if not isinstance(tables, dict):
            self._wrong("service", f"must be a table [service.NAME] for each service, not {show(tables)}")
            return {}
        if not tables:
            self._wrong("service", "is empty: write a table [service.NAME] with app and listen")
        return {name: self._service(name, table) for name, table in tables.items()}

    def _service(self, name: str, table: object) -> Any:
        at = _join("service", name)
        before = len(self.problems)
        if not _NAME.fullmatch(name):
            self._wrong(
                at, "a service name is 1 to 64 letters, digits, dots, - or _, and starts with a letter or digit"
            )
        found = self._fields(at, table, ServiceSettings)
        if isinstance(table, dict):
            self._check_together(at, table, found)
        if len(self.problems) > before:
            return None
        found.setdefault("path", self.folder)
        found.setdefault("workers", Workers(min=self.cores, max=self.cores))
        return ServiceSettings(name=name, **found)

    def _check_together(self, at: str, table: dict[str, Any], found: dict[str, Any]) -> None:
        """Checks what depends on more than one key."""
        kind = KINDS.get(found.get("worker", "" if "worker" in table else DEFAULT_KIND))
        if found.get("threads") and kind is not None and not kind.takes_threads:
            self._wrong(f"{at}.threads", f"requires {those_that(lambda kind: kind.takes_threads)}")
        listeners = found.get("listen")
        if listeners and "rpcbind" in found and all(_no_ipv4(listener.address) for listener in listeners):
            self._wrong(f"{at}.rpcbind", NO_IPV4_PORT)

    def _path(self, at: str, key: Key, value: object) -> Path | str | None:
        if not isinstance(value, str) or not value or "\0" in value:
            self._not(at, key, value)
            return None
        if key.name != "file":
            return self.folder / value
        return value if value == "-" else str(self.folder / value)

    def _listen(self, at: str, key: Key, value: object) -> tuple[Listen, ...] | None:
        if not isinstance(value, list):
            one = self._listener(at, value)
            return (one,) if one else None
        if not value:
            self._not(at, key, value)
            return None
        listeners = [self._listener(f"{at}[{number}]", entry) for number, entry in enumerate(value)]
        return tuple(listener for listener in listeners if listener)

    def _listener(self, at: str, value: object) -> Listen | None:
        if not isinstance(value, dict):
            found = self._address(at, keys(Listen)["address"], value)
            return found and Listen(address=found)
        before = len(self.problems)
        fields = self._fields(at, value, Listen)
        where = fields.get("address")
        if where and (where.kind != "unix" or where.host.startswith("@")):
            for name in ("mode", "user", "group"):
                if name in value:
                    self._wrong(f"{at}.{name}", "applies only to a unix socket that has a path")
        return Listen(**fields) if len(self.problems) == before else None

    def _address(self, at: str, key: Key, value: object) -> address.Address | None:
        if not isinstance(value, str):
            self._not(at, key, value)
            return None
        try:
            found = address.parse(value)
        except AddressError as error:
            self._wrong(at, str(error))
            return None
        fresh = (found.kind == "tcp" and found.port == 0) or self._take(found, at)
        return found if fresh else None

    def _take(self, thing: object, at: str) -> bool:
        """Reserves `thing` for the key `at`. Returns False, and records a mistake, if another key has it."""
        owner = self.taken.setdefault(thing, at)
        if owner != at:
            self._wrong(at, f"is already used by {owner}")
        return owner == at

    def _mode(self, at: str, key: Key, value: object) -> int | None:
        if isinstance(value, str) and _MODE.fullmatch(value):
            return int(value, 8)
        self._not(at, key, value)
        return None

    def _workers(self, at: str, key: Key, value: object) -> Workers | None:
        if not isinstance(value, dict):
            try:
                number = msgspec.convert(value, keys(Workers)["max"].type)
            except msgspec.ValidationError:
                self._not(at, key, value)
                return None
            return Workers(min=number, max=number)
        before = len(self.problems)
        fields = self._fields(at, value, Workers)
        for name in ("min", "spare"):
            if "max" in fields and fields.get(name, 0) > fields["max"]:
                self._wrong(f"{at}.{name}", f"is {fields[name]}, but max is {fields['max']}")
        return Workers(**fields) if len(self.problems) == before else None

    def _rpcbind(self, at: str, _: Key, value: object) -> Rpcbind | None:
        found: Rpcbind | None = self._table(at, value, Rpcbind)
        return found if found and self._take(found, at) else None


def _no_ipv4(where: address.Address) -> bool:
    """True if an address cannot be IPv4. For host names and sockets from systemd, only binding will show."""
    return where.kind == "unix" or (where.kind == "tcp" and ":" in where.host)


def _join(at: str, name: str) -> str:
    return f"{at}.{printable(name)}" if at else printable(name)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
