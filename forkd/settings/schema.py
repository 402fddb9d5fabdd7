"""The settings as frozen values: every key with its type, bounds, default and one-line meaning.

This is the one list: `config` reads a file by it, and the reference page, the help texts and
the man pages are made from it. It must not know files, TOML or where a value came from; the
only mark of its origin that a value keeps is the line of each key, for later complaints.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, structs

from forkd.errors import ConfigError, Problem
from forkd.kernel.address import Address
from forkd.settings.toml_lines import line_of

_T = TypeVar("_T")

MAX_SECONDS = 31 * 86400
MAX_WORKERS = 1024

# For texts and tables `title` says what a person must write; for numbers it says what is counted.
_COUNT = "a whole number"
_SECONDS = "a number of seconds"

_Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS, title=_SECONDS)]
_Limit = Annotated[float, Meta(gt=0, le=MAX_SECONDS, title=_SECONDS)]
_Account = Annotated[str, Meta(pattern=r"\A[^\s:/\x00]{1,256}\Z", title="the name of a user")]
_Group = Annotated[str, Meta(pattern=r"\A[^\s:/\x00]{1,256}\Z", title="the name of a group")]
_Path = Annotated[Path, Meta(title="a path")]
_App = Annotated[
    str,
    Meta(
        pattern=r"\A[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)?\Z",
        title='a module and a name in it, such as "package.module:name"',
    ),
]


class Listen(Struct, frozen=True, kw_only=True):
    """One entry of `listen`: an address, and the rights of the socket file that it may be."""

    address: Annotated[Address, Meta(title='an address, such as "127.0.0.1:7007"', description="where to listen")]
    mode: Annotated[
        Annotated[int, Meta(title='an octal text, such as "0660"')] | None,
        Meta(description="rights of the socket's file", extra={"default": "as the umask has it"}),
    ] = None
    user: Annotated[_Account | None, Meta(description="owner of the socket's file")] = None
    group: Annotated[_Group | None, Meta(description="group of the socket's file")] = None


class Workers(Struct, frozen=True, kw_only=True):
    """How many workers a service has. A plain number N means min = N, max = N."""

    min: Annotated[int, Meta(ge=1, le=MAX_WORKERS, title=_COUNT, description="never fewer than this")] = 1
    max: Annotated[int, Meta(ge=1, le=MAX_WORKERS, title=_COUNT, description="never more than this")]
    spare: Annotated[int, Meta(ge=0, le=MAX_WORKERS, title=_COUNT, description="idle ones kept ready")] = 0


class Rpcbind(Struct, frozen=True, kw_only=True):
    """What the machine's port mapper is told of a service (RFC 1833)."""

    program: Annotated[int, Meta(ge=1, le=0xFFFFFFFF, title=_COUNT, description="number of the RPC program")]
    version: Annotated[int, Meta(ge=0, le=0xFFFFFFFF, title=_COUNT, description="version of the RPC program")] = 1


class ServiceSettings(Struct, frozen=True, kw_only=True):
    """One `[service.NAME]` table. A time of 0 means for ever."""

    name: str
    app: Annotated[_App, Meta(description="the service to run, as `module:name`")]
    path: Annotated[
        _Path,
        Meta(
            description="folder where modules are looked for first; a relative one starts at the file's folder",
            extra={"default": "the file's folder"},
        ),
    ]
    listen: Annotated[
        tuple[Listen, ...],
        Meta(
            title='an address, such as "127.0.0.1:7007", or a list of addresses',
            description="where to listen: an address or a list",
        ),
    ]
    backlog: Annotated[int, Meta(ge=1, le=65535, title=_COUNT, description="length of the accept queue")] = 1024
    worker: Annotated[
        Literal["sync", "event"],
        Meta(
            description="`sync`: one connection at a time in a worker; "
            "`event`: many connections in a worker, requests run to completion"
        ),
    ] = "sync"
    threads: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            title=_COUNT,
            description="only with `event`: run requests on so many threads (0: on none, to completion)",
        ),
    ] = 0
    workers: Annotated[
        Workers,
        Meta(
            title=f"a whole number from 1 to {MAX_WORKERS}, or a table with max, min and spare",
            description="a number, or `min`, `max` and `spare` (idle ones kept ready)",
            extra={"default": "one a core"},
        ),
    ]
    request_timeout: Annotated[
        _Seconds, Meta(description="how long a handler may take before its worker is killed (0: for ever)")
    ] = 30.0
    read_timeout: Annotated[_Seconds, Meta(description="from a request's first byte to its last (0: for ever)")] = 20.0
    idle_timeout: Annotated[_Seconds, Meta(description="silence before a request (0: for ever)")] = 60.0
    write_timeout: Annotated[_Seconds, Meta(description="how long a reply may wait on a slow reader (0: for ever)")] = (
        30.0
    )
    boot_timeout: Annotated[_Limit, Meta(description="until a new fork server or worker must be ready")] = 30.0
    drain_timeout: Annotated[
        _Seconds,
        Meta(description="how long an old generation may finish its connections after a reload (0: for ever)"),
    ] = 300.0
    rpcbind: Annotated[
        Rpcbind | None,
        Meta(
            title="a table with program and version",
            description="tell the machine's port mapper (rpcbind) the listener's port; withdrawn at stop",
        ),
    ] = None
    max_requests: Annotated[
        int,
        Meta(
            ge=0,
            le=10**12,
            title=_COUNT,
            description="a worker is replaced after so many requests, give or take 10 % (0: never)",
        ),
    ] = 0
    max_age: Annotated[
        _Seconds, Meta(description="a worker is replaced after so many seconds, give or take 10 % (0: never)")
    ] = 0.0
    max_memory: Annotated[
        int,
        Meta(
            ge=0,
            le=10**9,
            title="a whole number of MiB",
            description="a worker is replaced when it holds so many MiB, give or take 10 % (0: never)",
        ),
    ] = 0
    black_box: Annotated[
        bool,
        Meta(
            title="true or false",
            description="the log record of a worker's violent end shows the first 64 bytes of the request in hand",
        ),
    ] = True
    access: Annotated[
        bool,
        Meta(
            title="true or false",
            description="a record in the log for each connection: peer, seconds, requests, bytes, and why it ended",
        ),
    ] = False
    fork_check: Annotated[
        Literal["warn", "refuse", "off"],
        Meta(
            description="what becomes of an application that leaves a thread running, or a socket open, after its "
            "import: a fork would break the one and share the other"
        ),
    ] = "warn"
    user: Annotated[
        _Account | None, Meta(description="whom this service runs as", extra={"default": "`[master]`'s"})
    ] = None
    group: Annotated[
        _Group | None, Meta(description="the group this service runs as", extra={"default": "`[master]`'s"})
    ] = None


class LogSettings(Struct, frozen=True, kw_only=True):
    """The `[master.log]` table."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="what is less urgent is not written")
    ] = "info"
    format: Annotated[Literal["text", "json"], Meta(description="how a line looks")] = "text"
    file: Annotated[
        str,
        Meta(
            title='a path, or "-"',
            description='`"-"` is standard error, which a daemon (`forkd start`) has not; a path is reopened on USR1',
        ),
    ] = "-"


class MasterSettings(Struct, frozen=True, kw_only=True):
    """The `[master]` table."""

    user: Annotated[
        _Account | None, Meta(description="what fork servers and workers run as when the master is root")
    ] = None
    group: Annotated[_Group | None, Meta(description="the group they run as", extra={"default": "the user's own"})] = (
        None
    )
    control: Annotated[_Path | None, Meta(description="the control socket, for status, reload and the like")] = None
    pidfile: Annotated[
        _Path | None,
        Meta(
            description="holds the master's process number while it runs, and is locked by it",
            extra={"default": "none; with `forkd start`: beside the control socket"},
        ),
    ] = None
    stop_timeout: Annotated[_Limit, Meta(description="seconds a stop may take before workers are killed")] = 30.0
    log: Annotated[LogSettings, Meta(title="a table", extra={"default": "see below"})] = LogSettings()


class Settings(Struct, frozen=True, kw_only=True):
    """Everything a file (or a command line) says. `places` gives the line of each dotted key."""

    file: str
    master: MasterSettings
    services: dict[str, ServiceSettings]
    places: dict[str, int]

    def problem(self, key: str, what: str) -> Problem:
        """A mistake found later, such as a module that is not there, with the line where `key` stands."""
        return Problem(self.file, line_of(self.places, key), key, what)

    def error(self, key: str, what: str) -> ConfigError:
        """The same as an exception, to be raised."""
        return ConfigError([self.problem(key, what)])

    def runs_as(self, service: ServiceSettings) -> tuple[str | None, str | None]:
        """The user and the group that `service` runs as: its own, or those of [master]."""
        return service.user or self.master.user, service.group or self.master.group


class Key(NamedTuple):
    """One setting for a reader: what to write, what it means, and what holds when nothing is written."""

    name: str
    type: Any
    wants: str
    meaning: str
    default: str
    required: bool


@cache
def keys(table: type[Struct]) -> dict[str, Key]:
    """The keys of a table, in the order in which they are explained."""
    return {field.name: _key(field) for field in structs.fields(table) if get_origin(field.type) is Annotated}


def toml(value: object) -> str:
    """A default as it would stand in the file."""
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
    """Every Meta of a type, also those inside `... | None`."""
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
