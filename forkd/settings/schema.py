"""The settings as frozen values: every key with its type, bounds, default and one-line meaning.

This is the only list of settings: `config` reads files by it, and the reference page and the manual page are made
from it. It knows nothing about files or TOML. All that a value keeps of its origin is the line of each key, so that
problems found later can name it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, structs

from forkd.errors import ConfigError, Problem
from forkd.ipc.worker_kinds import DEFAULT_KIND, KINDS
from forkd.kernel.address import Address
from forkd.settings.toml_lines import line_of

_T = TypeVar("_T")

MAX_SECONDS = 31 * 86400
MAX_WORKERS = 1024

# `title` says what to write: all of it for strings and tables, only the kind of number for numbers.
_COUNT = "a whole number"
_SECONDS = "a number of seconds"

_Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS, title=_SECONDS)]
_Limit = Annotated[float, Meta(gt=0, le=MAX_SECONDS, title=_SECONDS)]
_Account = Annotated[str, Meta(pattern=r"\A[^\s:/\x00]{1,256}\Z", title="the name of a user")]
_Group = Annotated[str, Meta(pattern=r"\A[^\s:/\x00]{1,256}\Z", title="the name of a group")]
_Path = Annotated[Path, Meta(title="a path")]
if TYPE_CHECKING:
    _Kind = str
else:  # mypy reads no computed Literal
    _Kind = Literal[tuple(KINDS)]
_App = Annotated[
    str,
    Meta(
        pattern=r"\A[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)?\Z",
        title='a module and a name in it, such as "package.module:name"',
    ),
]


class Listen(Struct, frozen=True, kw_only=True):
    """One entry of `listen`: an address and, for a unix socket, the owner and permissions of its file."""

    address: Annotated[Address, Meta(title='an address such as "127.0.0.1:7007"', description="where to listen")]
    mode: Annotated[
        Annotated[int, Meta(title='an octal string such as "0660"')] | None,
        Meta(description="permissions of the socket file", extra={"default": "set by the umask"}),
    ] = None
    user: Annotated[_Account | None, Meta(description="owner of the socket file")] = None
    group: Annotated[_Group | None, Meta(description="group of the socket file")] = None


class Workers(Struct, frozen=True, kw_only=True):
    """How many workers a service has. A plain number N sets both min and max to N."""

    min: Annotated[int, Meta(ge=1, le=MAX_WORKERS, title=_COUNT, description="never fewer workers than this")] = 1
    max: Annotated[int, Meta(ge=1, le=MAX_WORKERS, title=_COUNT, description="never more workers than this")]
    spare: Annotated[int, Meta(ge=0, le=MAX_WORKERS, title=_COUNT, description="idle workers to keep ready")] = 0


class Rpcbind(Struct, frozen=True, kw_only=True):
    """The RPC program that the machine's port mapper registers for a service (RFC 1833)."""

    program: Annotated[int, Meta(ge=1, le=0xFFFFFFFF, title=_COUNT, description="number of the RPC program")]
    version: Annotated[int, Meta(ge=0, le=0xFFFFFFFF, title=_COUNT, description="version of the RPC program")] = 1


class ServiceSettings(Struct, frozen=True, kw_only=True):
    """One `[service.NAME]` table. A time of 0 means no limit."""

    name: str
    app: Annotated[_App, Meta(description="the service to run, as `module:name`")]
    path: Annotated[
        _Path,
        Meta(
            description="folder to search first for modules; a relative path starts at the folder of the settings file",
            extra={"default": "the folder of the settings file"},
        ),
    ]
    listen: Annotated[
        tuple[Listen, ...],
        Meta(
            title='an address such as "127.0.0.1:7007", or a list of addresses',
            description="where to listen: an address or a list of addresses",
        ),
    ]
    backlog: Annotated[int, Meta(ge=1, le=65535, title=_COUNT, description="length of the accept queue")] = 1024
    worker: Annotated[
        _Kind,
        Meta(description="; ".join(f"`{name}`: {kind.meaning}" for name, kind in KINDS.items())),
    ] = DEFAULT_KIND
    threads: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            title=_COUNT,
            description="only with `event`: how many threads run requests (0: none, each runs to completion)",
        ),
    ] = 0
    workers: Annotated[
        Workers,
        Meta(
            title=f"a whole number from 1 to {MAX_WORKERS}, or a table with max, min and spare",
            description="how many workers: a number, or `min`, `max` and `spare` (idle workers to keep ready)",
            extra={"default": "one per core"},
        ),
    ]
    request_timeout: Annotated[
        _Seconds, Meta(description="how long a handler may take before its worker is killed (0: no limit)")
    ] = 30.0
    read_timeout: Annotated[
        _Seconds, Meta(description="longest time from the first byte of a request to its last (0: no limit)")
    ] = 20.0
    idle_timeout: Annotated[_Seconds, Meta(description="longest silence before a request (0: no limit)")] = 60.0
    write_timeout: Annotated[
        _Seconds, Meta(description="how long a reply may wait for a slow reader (0: no limit)")
    ] = 30.0
    boot_timeout: Annotated[_Limit, Meta(description="how long a new fork server or worker may take to be ready")] = (
        30.0
    )
    drain_timeout: Annotated[
        _Seconds,
        Meta(description="how long an old generation may take to finish its connections after a reload (0: no limit)"),
    ] = 300.0
    rpcbind: Annotated[
        Rpcbind | None,
        Meta(
            title="a table with program and version",
            description="register the listener's port with the machine's port mapper (rpcbind); withdrawn at a stop",
        ),
    ] = None
    max_requests: Annotated[
        int,
        Meta(
            ge=0,
            le=10**12,
            title=_COUNT,
            description="replace a worker after this many requests, give or take 10 % (0: never)",
        ),
    ] = 0
    max_age: Annotated[
        _Seconds, Meta(description="replace a worker after this many seconds, give or take 10 % (0: never)")
    ] = 0.0
    max_memory: Annotated[
        int,
        Meta(
            ge=0,
            le=10**9,
            title="a whole number of MiB",
            description="replace a worker when it holds this many MiB, give or take 10 % (0: never)",
        ),
    ] = 0
    black_box: Annotated[
        bool,
        Meta(
            title="true or false",
            description="when a worker crashes or is killed, log the first 64 bytes of the request in hand",
        ),
    ] = True
    access: Annotated[
        bool,
        Meta(
            title="true or false",
            description="write a log record for each connection: peer, seconds, requests, bytes, and why it ended",
        ),
    ] = False
    fork_check: Annotated[
        Literal["warn", "refuse", "off"],
        Meta(
            description="what to do if an application leaves a thread running or a socket open after its import: "
            "a fork would lose the thread and share the socket"
        ),
    ] = "warn"
    user: Annotated[
        _Account | None, Meta(description="the user this service runs as", extra={"default": "`[master]`'s"})
    ] = None
    group: Annotated[
        _Group | None, Meta(description="the group this service runs as", extra={"default": "`[master]`'s"})
    ] = None


class LogSettings(Struct, frozen=True, kw_only=True):
    """The `[master.log]` table."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="records below this level are not written")
    ] = "info"
    format: Annotated[Literal["text", "json"], Meta(description="the format of a line")] = "text"
    file: Annotated[
        str,
        Meta(
            title='a path, or "-"',
            description='`"-"` is standard error (a daemon started with `forkd start` has none); '
            "a path is reopened on USR1",
        ),
    ] = "-"


class MasterSettings(Struct, frozen=True, kw_only=True):
    """The `[master]` table."""

    user: Annotated[
        _Account | None, Meta(description="the user that fork servers and workers run as if the master is root")
    ] = None
    group: Annotated[_Group | None, Meta(description="the group they run as", extra={"default": "the user's own"})] = (
        None
    )
    control: Annotated[
        _Path | None, Meta(description="path of the control socket, for `status`, `reload` and other commands")
    ] = None
    pidfile: Annotated[
        _Path | None,
        Meta(
            description="file that holds the master's PID and is locked while the master runs",
            extra={"default": "none; with `forkd start`, a file beside the control socket"},
        ),
    ] = None
    stop_timeout: Annotated[_Limit, Meta(description="how long a stop may take before workers are killed")] = 30.0
    log: Annotated[LogSettings, Meta(title="a table", extra={"default": "see below"})] = LogSettings()


class Settings(Struct, frozen=True, kw_only=True):
    """All the settings of a file or a command line. `places` maps each dotted key to its line."""

    file: str
    master: MasterSettings
    services: dict[str, ServiceSettings]
    places: dict[str, int]

    def problem(self, key: str, what: str) -> Problem:
        """Returns a mistake found later, such as a missing module, with the line of `key`."""
        return Problem(self.file, line_of(self.places, key), key, what)

    def error(self, key: str, what: str) -> ConfigError:
        """Returns the same as an exception to raise."""
        return ConfigError([self.problem(key, what)])

    def runs_as(self, service: ServiceSettings) -> tuple[str | None, str | None]:
        """Returns the user and the group that `service` runs as: its own, or those of [master]."""
        return service.user or self.master.user, service.group or self.master.group


class Key(NamedTuple):
    """One setting as documented: what to write, what it means, and its default."""

    name: str
    type: Any
    wants: str
    meaning: str
    default: str
    required: bool


@cache
def keys(table: type[Struct]) -> dict[str, Key]:
    """Returns the keys of a table, in the order of the documentation."""
    return {field.name: _key(field) for field in structs.fields(table) if get_origin(field.type) is Annotated}


def toml(value: object) -> str:
    """Formats a default as it would be written in the file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _key(field: structs.FieldInfo) -> Key:
    metas = _metas(field.type)
    says = _first(meta.extra and meta.extra["default"] for meta in metas)
    unset = field.default is msgspec.NODEFAULT
    return Key(
        name=field.name,
        type=field.type,
        wants=_wants(field.type, metas),
        meaning=_first(meta.description for meta in reversed(metas)) or "",
        default=says or ("required" if unset else toml(field.default)),
        required=unset and says is None,
    )


def _metas(kind: Any) -> list[Meta]:
    """Returns every Meta of a type, including those inside `... | None`."""
    if get_origin(kind) is Annotated:
        return [*_metas(kind.__origin__), *kind.__metadata__]
    return [meta for inner in get_args(kind) for meta in _metas(inner)]


def _wants(kind: Any, metas: list[Meta]) -> str:
    bare = kind.__origin__
    if get_origin(bare) is Literal:
        *most, last = (f'"{choice}"' for choice in get_args(bare))
        return f"{', '.join(most)} or {last}"
    title = next(meta.title for meta in reversed(metas) if meta.title)
    top = _first(meta.le for meta in metas)
    if top is None:
        return title
    limit = f"{top} (31 days)" if top == MAX_SECONDS else str(top)
    low = _first(meta.ge for meta in metas)
    return f"{title} above 0 and up to {limit}" if low is None else f"{title} from {low} to {limit}"


def _first(values: Iterable[_T | None]) -> _T | None:
    return next((value for value in values if value is not None), None)
