"""A key-value store that speaks the Redis protocol, for redis-cli, redis-benchmark and client libraries.

It shows a custom framing (`Resp`), a fast handler (`answer`, with a table from names to functions) and two services
that use this handler: `memory` keeps its data in the worker, `shared` in a file that all workers share. The protocol
and its terms are described at https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

import forkd

log = logging.getLogger(__name__)

REQUEST_LIMIT: Final = 16 * 1024 * 1024
"""The default for the longest request, in bytes. Redis' own limit for one string is 512 MiB."""

INLINE_LIMIT: Final = 64 * 1024
STRINGS_LIMIT: Final = 1024 * 1024

OK: Final = b"+OK\r\n"
NIL: Final = b"$-1\r\n"
EMPTY: Final = b"*0\r\n"

NOT_AN_INTEGER: Final = b"value is not an integer or out of range"
SYNTAX_ERROR: Final = b"syntax error"

LEAST_INTEGER: Final = -(2**63)
MOST_INTEGER: Final = 2**63 - 1

# A length line is a mark, at most 20 characters of number, and a carriage return.
_LENGTH_LINE: Final = 22
_DOLLAR, _STAR = b"$*"

# Nearly every length is one of these, and a look-up is three times faster than parsing.
_SMALL: Final = {b"%d" % number: number for number in range(1024)}


@dataclass(frozen=True, slots=True)
class Malformed:
    """Takes the place of a request that breaks the protocol; `reply` goes to the client before the connection ends."""

    reply: bytes


Request = list[bytes] | Malformed


class Resp:
    """The framing: a request is an array of binary strings, or a line of words such as a person types into telnet.

    Like every framing it does no input or output: bytes go in and requests come out, the same ones however the network
    split the bytes. A request that is too long or breaks the rules raises an error, which carries the requests before
    it and a `Malformed` behind them. forkd answers all of those, so the client learns the reason, as it would from
    Redis. Then forkd ends the connection, and counts and logs it.
    """

    __slots__ = ("_count", "_cut", "_held", "_in_line", "_strings", "_wanted", "limit", "pending")

    def __init__(self, limit: int = REQUEST_LIMIT) -> None:
        self.limit: Final = limit
        # How many bytes of an unfinished request have come: forkd's read_timeout runs while this is not 0.
        self.pending = 0
        # Bytes not cut yet, how many there must be before more can be cut, and whether they are a line. Without the
        # last two, each new piece of a long request would mean scanning all of it again.
        self._held = bytearray()
        self._wanted = 0
        self._in_line = False
        # The unfinished array: its strings so far, how many it will have, and the bytes they took.
        self._strings: list[bytes] = []
        self._count = 0
        self._cut = 0

    def feed(self, data: bytes) -> Sequence[Request]:
        if self._wanted:
            data = self._resume(data)
        requests: list[Request] = []
        at = 0
        while at < len(data) and not self._wanted:
            if self._count:
                at = self._cut_strings(data, at, requests)
            elif data[at] == _STAR:
                at = self._cut_count(data, at, requests)
            else:
                at = self._cut_line(data, at, requests)
        if at < len(data):
            self._held += data[at:]
        self.pending = self._cut + len(self._held)
        return requests

    def encode(self, reply: bytes) -> bytes:
        return reply

    def end(self) -> Sequence[Request]:
        if self.pending:
            raise forkd.Truncated(f"the stream ended inside a request, after {self.pending} of its bytes")
        return []

    def copy(self) -> Self:
        return type(self)(self.limit)

    def _resume(self, data: bytes) -> bytes:
        """Returns the held bytes and `data`; holds both and returns b"" while they are too few to cut."""
        self._held += data
        if len(self._held) < self._wanted:
            return b""
        if self._in_line and b"\n" not in data and len(self._held) <= INLINE_LIMIT:
            return b""
        self._wanted = 0
        self._in_line = False
        whole = bytes(self._held)
        self._held.clear()
        return whole

    def _cut_count(self, data: bytes, at: int, requests: list[Request]) -> int:
        end = self._length_line(data, at, b"invalid multibulk length", requests)
        if not end:
            return at
        count = _integer(data[at + 1 : end])
        if count is None or count > STRINGS_LIMIT:
            raise _malformed(b"invalid multibulk length", requests)
        if count > 0:  # empty and null arrays are not requests
            self._count = count
            self._cut = end + 2 - at
        return end + 2

    def _cut_strings(self, data: bytes, at: int, requests: list[Request]) -> int:
        """Cuts those strings of the array that have come; returns the position after the last of them."""
        begin, strings = at, self._strings
        while len(strings) < self._count:
            if at < len(data) and data[at] != _DOLLAR:
                raise _malformed(b"expected '$', got '%c'" % data[at], requests)
            end = self._length_line(data, at, b"invalid bulk length", requests)
            if not end:
                break
            digits = data[at + 1 : end]
            size = _SMALL.get(digits)
            if size is None:
                size = _integer(digits)
                if size is None or size < 0:
                    raise _malformed(b"invalid bulk length", requests)
            if self._cut + end - begin + size > self.limit:
                raise _malformed(b"invalid bulk length", requests, forkd.OverLimit)
            # Like Redis, this skips the two bytes behind a string without checking them.
            start, end = end + 2, end + 2 + size
            if end + 2 > len(data):
                self._wanted = end + 2 - at
                break
            strings.append(data[start:end])
            at = end + 2
        else:
            requests.append(strings)
            self._strings = []
            self._count = self._cut = 0
            return at
        self._cut += at - begin
        return at

    def _length_line(self, data: bytes, at: int, wrong: bytes, requests: list[Request]) -> int:
        """Returns the position of the carriage return that ends the number at `at`; 0 if it has not come yet."""
        end = data.find(b"\r", at, at + _LENGTH_LINE)
        if 0 <= end < len(data) - 1:
            return end
        if end < 0 and len(data) - at >= _LENGTH_LINE:
            raise _malformed(wrong, requests)
        self._wanted = len(data) - at + 1
        return 0

    def _cut_line(self, data: bytes, at: int, requests: list[Request]) -> int:
        end = data.find(b"\n", at, at + INLINE_LIMIT + 1)
        if end < 0:
            if len(data) - at > INLINE_LIMIT:
                raise _malformed(b"too big inline request", requests, forkd.OverLimit)
            self._wanted = len(data) - at + 1
            self._in_line = True
            return at
        words = split_words(data[at:end])
        if words is None:
            raise _malformed(b"unbalanced quotes in request", requests)
        if words:
            requests.append(words)
        return end + 1


# A word: plain text, then perhaps a quoted part, which must end the word. Each character fits only one branch, so a
# quote that was skipped as escaped can never close the part.
_WORD: Final = re.compile(
    rb"""([^\s"']*)(?:"((?:\\.|[^"\\])*)"|'((?:\\'|[^'\\]|\\(?!'))*)')?(?:\s+|\Z)""",
    re.DOTALL,
)
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_CONTROL: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def split_words(line: bytes) -> list[bytes] | None:
    """Returns the words of a line, with Redis' quoting ("\\x00 \\n", 'it\\'s'); None if a quote is not closed."""
    if b'"' not in line and b"'" not in line:
        return line.split()
    line = line.strip()
    words: list[bytes] = []
    at = 0
    while at < len(line):
        word = _WORD.match(line, at)
        if word is None:
            return None
        plain, double, single = word.group(1, 2, 3)
        quoted = _ESCAPE.sub(_unescape, double) if double else (single or b"").replace(b"\\'", b"'")
        words.append(plain + quoted)
        at = word.end()
    return words


def _unescape(escape: re.Match[bytes]) -> bytes:
    digits, letter = escape.groups()
    return bytes.fromhex(digits.decode()) if digits else _CONTROL.get(letter, letter)


def _integer(text: bytes) -> int | None:
    """Returns a 64-bit integer in canonical form (no plus, no blanks, no leading zeros); None if `text` is not one."""
    if len(text) > 20:
        return None
    try:
        number = int(text)
    except ValueError:
        return None
    return number if b"%d" % number == text and LEAST_INTEGER <= number <= MOST_INTEGER else None


def _malformed(
    what: bytes, requests: list[Request], error: type[forkd.FramingError] = forkd.FramingError
) -> forkd.FramingError:
    told = b"Protocol error: " + what
    return error(told.decode("ascii", "backslashreplace"), [*requests, Malformed(refusal(told))])


class Entry(NamedTuple):
    """A value, and the time at which it expires, in milliseconds since 1970; None for never."""

    value: bytes
    deadline: int | None


def wall_clock() -> int:
    """Returns milliseconds since 1970, the one clock that is the same in all processes and after a restart."""
    return time.time_ns() // 1_000_000


class Store(Protocol):
    """What the commands need from a store. An entry past its deadline counts as gone."""

    clock: Callable[[], int]

    def get(self, key: bytes) -> Entry | None: ...

    def put(self, key: bytes, value: bytes, deadline: int | None) -> None: ...

    def delete(self, key: bytes) -> bool:
        """Deletes the entry; returns whether there was one."""

    def size(self) -> int: ...

    def clear(self) -> None: ...

    def atomically(self) -> AbstractContextManager[object]:
        """Returns a context whose changes others see all at once, or not at all."""

    def close(self) -> None: ...


class Memory:
    """A store in the memory of one process: as fast as a dict, and gone with its worker."""

    def __init__(self, clock: Callable[[], int] = wall_clock) -> None:
        self.clock = clock
        self._entries: dict[bytes, Entry] = {}
        self._sweep_at = 1000
        # A worker runs one request at a time, so there is nothing to lock out.
        self._alone: AbstractContextManager[object] = nullcontext()

    def get(self, key: bytes) -> Entry | None:
        entry = self._entries.get(key)
        if entry is None or entry.deadline is None or entry.deadline > self.clock():
            return entry
        del self._entries[key]
        return None

    def put(self, key: bytes, value: bytes, deadline: int | None) -> None:
        self._entries[key] = Entry(value, deadline)
        # Expired entries that no client asks for again must go as well. A sweep waits until the store has doubled
        # since the last one, so it adds little to the cost of a write.
        if len(self._entries) > self._sweep_at:
            self._sweep_at = 2 * self.size() + 1000

    def delete(self, key: bytes) -> bool:
        return self.get(key) is not None and self._entries.pop(key) is not None

    def size(self) -> int:
        now = self.clock()
        over = [key for key, entry in self._entries.items() if entry.deadline is not None and entry.deadline <= now]
        for key in over:
            del self._entries[key]
        return len(self._entries)

    def clear(self) -> None:
        self._entries.clear()

    def atomically(self) -> AbstractContextManager[object]:
        return self._alone

    def close(self) -> None:
        self._entries.clear()


_SCHEMA: Final = """
    PRAGMA journal_mode = WAL;      -- readers and the writer do not wait for each other
    PRAGMA synchronous = NORMAL;    -- a power failure may lose the last writes, never the whole
    CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, deadline INTEGER);
    CREATE INDEX IF NOT EXISTS deadlines ON entries (deadline) WHERE deadline IS NOT NULL;
"""


class File:
    """A store in an SQLite file, shared by all workers.

    Open it after the fork, because SQLite does not allow carrying an open database into another process.
    """

    def __init__(self, path: str | Path, clock: Callable[[], int] = wall_clock) -> None:
        self.clock = clock
        self._writes = 0
        # A writer waits up to ten seconds for the others; forkd's request_timeout must be longer.
        # isolation_level None: the module begins no transactions of its own.
        self._database = sqlite3.connect(path, timeout=10, isolation_level=None)
        # One process at a time: SQLite's busy timeout does not cover two that switch the same new file to WAL.
        with Path(f"{path}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._database.executescript(_SCHEMA)

    def get(self, key: bytes) -> Entry | None:
        row = self._database.execute("SELECT value, deadline FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None or (row[1] is not None and row[1] <= self.clock()):
            return None
        return Entry(*row)

    def put(self, key: bytes, value: bytes, deadline: int | None) -> None:
        self._database.execute("REPLACE INTO entries VALUES (?, ?, ?)", (key, value, deadline))
        self._writes += 1
        if self._writes % 1000 == 0:
            self._sweep()

    def delete(self, key: bytes) -> bool:
        delete = "DELETE FROM entries WHERE key = ? AND (deadline IS NULL OR deadline > ?)"
        return self._database.execute(delete, (key, self.clock())).rowcount > 0

    def size(self) -> int:
        self._sweep()
        (count,) = self._database.execute("SELECT count(*) FROM entries").fetchone()
        return int(count)

    def clear(self) -> None:
        self._database.execute("DELETE FROM entries")

    @contextmanager
    def atomically(self) -> Iterator[None]:
        # IMMEDIATE takes the write lock before the first read, so nothing read can change before the write.
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def close(self) -> None:
        self._database.close()

    def _sweep(self) -> None:
        self._database.execute("DELETE FROM entries WHERE deadline <= ?", (self.clock(),))


class Mistake(Exception):
    """A client's mistake; `reply` reports it in Redis' words."""

    def __init__(self, told: bytes, code: bytes = b"ERR") -> None:
        self.reply = refusal(told, code)
        super().__init__(told)


def refusal(told: bytes, code: bytes = b"ERR") -> bytes:
    """Returns an error reply, which is one line even if `told` has newlines."""
    return b"-%b %b\r\n" % (code, told.replace(b"\r", b" ").replace(b"\n", b" "))


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(values: Sequence[bytes | int]) -> bytes:
    return b"*%d\r\n%b" % (len(values), b"".join(number(v) if isinstance(v, int) else bulk(v) for v in values))


def number(value: int) -> bytes:
    return b":%d\r\n" % value


def integer(text: bytes) -> int:
    value = _integer(text)
    if value is None:
        raise Mistake(NOT_AN_INTEGER)
    return value


def ping(_: Store, request: list[bytes]) -> bytes:
    return b"+PONG\r\n" if len(request) == 1 else bulk(request[1])


def echo(_: Store, request: list[bytes]) -> bytes:
    return bulk(request[1])


def get(store: Store, request: list[bytes]) -> bytes:
    entry = store.get(request[1])
    return NIL if entry is None else bulk(entry.value)


def put(store: Store, request: list[bytes]) -> bytes:
    key, value = request[1], request[2]
    if len(request) == 3:
        store.put(key, value, None)
        return OK
    options = _options(request[3:])
    deadline = None
    if options.time is not None:
        deadline = _deadline(store, options.time, b"set", *_LIFETIMES[options.lifetime])
    with store.atomically():
        old = store.get(key)
        wanted = options.condition is None or (old is None) == (options.condition == b"NX")
        if wanted:
            keeps = options.lifetime == b"KEEPTTL" and old is not None
            store.put(key, value, old.deadline if keeps and old else deadline)
    if options.gives_old:
        return NIL if old is None else bulk(old.value)
    return OK if wanted else NIL


def delete(store: Store, request: list[bytes]) -> bytes:
    with store.atomically():
        return number(sum([store.delete(key) for key in request[1:]]))


def exists(store: Store, request: list[bytes]) -> bytes:
    return number(sum(store.get(key) is not None for key in request[1:]))


def add(store: Store, request: list[bytes], *, sign: int) -> bytes:
    """Runs INCR, DECR, INCRBY and DECRBY. They keep the entry's time of expiry."""
    by = sign * (integer(request[2]) if len(request) == 3 else 1)
    with store.atomically():
        entry = store.get(request[1])
        total = by + (0 if entry is None else integer(entry.value))
        if not LEAST_INTEGER <= total <= MOST_INTEGER:
            raise Mistake(b"increment or decrement would overflow")
        store.put(request[1], b"%d" % total, None if entry is None else entry.deadline)
    return number(total)


def expire(store: Store, request: list[bytes], *, command: bytes, unit: int) -> bytes:
    if len(request) > 3:
        raise Mistake(b"Unsupported option " + request[3])
    deadline = _deadline(store, integer(request[2]), command, unit, since_now=True, in_past=True)
    with store.atomically():
        entry = store.get(request[1])
        if entry is None:
            return number(0)
        if deadline <= store.clock():
            store.delete(request[1])
        else:
            store.put(request[1], entry.value, deadline)
    return number(1)


def time_left(store: Store, request: list[bytes], *, unit: int) -> bytes:
    entry = store.get(request[1])
    if entry is None:
        return number(-2)
    if entry.deadline is None:
        return number(-1)
    return number((max(0, entry.deadline - store.clock()) + unit // 2) // unit)


def dbsize(store: Store, _: list[bytes]) -> bytes:
    return number(store.size())


def flush(store: Store, request: list[bytes]) -> bytes:
    if len(request) > 1 and request[1].upper() not in (b"SYNC", b"ASYNC"):
        raise Mistake(SYNTAX_ERROR)
    store.clear()
    return OK


def select(_: Store, request: list[bytes]) -> bytes:
    if integer(request[1]) != 0:
        raise Mistake(b"DB index is out of range")
    return OK


def hello(_: Store, request: list[bytes]) -> bytes:
    """Accepts version 2 of the protocol only; a client that asks for 3 gets an error and continues with 2."""
    if len(request) > 1:
        version = _integer(request[1])
        if version is None:
            raise Mistake(b"Protocol version is not an integer or out of range")
        if version != 2:
            raise Mistake(b"unsupported protocol version", b"NOPROTO")
    if len(request) > 2:
        raise Mistake(b"Syntax error in HELLO option '%b'" % request[2])
    about: list[bytes | int] = [b"server", b"forkd", b"version", forkd.__version__.encode(), b"proto", 2]
    return array([*about, b"mode", b"standalone", b"role", b"master"])


def about_commands(_: Store, request: list[bytes]) -> bytes:
    """Answers redis-cli, which asks for its help and hints. An empty answer will do, but it needs one."""
    match [word.upper() for word in request[1:]]:
        case [] | [b"DOCS" | b"INFO" | b"LIST", *_]:
            return EMPTY
        case [b"COUNT"]:
            return number(len(COMMANDS))
    raise Mistake(b"unknown subcommand '%.128b'. Try COMMAND HELP." % request[1])


def config(_: Store, request: list[bytes]) -> bytes:
    """Answers redis-benchmark, which asks for these settings and shows them in its report."""
    if request[1].upper() != b"GET":
        raise Mistake(b"unknown subcommand '%.128b'. Try CONFIG HELP." % request[1])
    if len(request) == 2:
        raise _wrong_count(b"config|get")
    settings = {b"appendonly": b"no", b"databases": b"1", b"save": b""}
    wanted = [name for name in settings if any(fnmatchcase(name, pattern.lower()) for pattern in request[2:])]
    return array([text for name in wanted for text in (name, settings[name])])


def leave(_: Store, __: list[bytes]) -> bytes:
    raise forkd.Close(OK)


def hang_up(_: Store, __: list[bytes]) -> bytes:
    """Ends a connection that begins like HTTP: a web page can make a browser send a form to any port."""
    log.warning("an HTTP request came, perhaps from a browser tricked into it: connection ended")
    raise forkd.Close


class Options(NamedTuple):
    """The options of a SET, which follow the key and the value."""

    condition: bytes | None = None
    lifetime: bytes = b""
    time: int | None = None
    gives_old: bool = False


# For each option, its unit in milliseconds and whether the time counts from now.
_LIFETIMES: Final = {b"EX": (1000, True), b"PX": (1, True), b"EXAT": (1000, False), b"PXAT": (1, False)}


def _options(words: list[bytes]) -> Options:
    options, time_text = Options(), None
    rest = iter(words)
    for word in rest:
        option = word.upper()
        if option in (b"NX", b"XX") and options.condition in (None, option):
            options = options._replace(condition=option)
        elif option == b"GET":
            options = options._replace(gives_old=True)
        elif (option in _LIFETIMES or option == b"KEEPTTL") and options.lifetime in (b"", option):
            options = options._replace(lifetime=option)
            if option != b"KEEPTTL" and (time_text := next(rest, None)) is None:
                raise Mistake(SYNTAX_ERROR)
        else:
            raise Mistake(SYNTAX_ERROR)
    return options if time_text is None else options._replace(time=integer(time_text))


def _deadline(store: Store, length: int, command: bytes, unit: int, since_now: bool, *, in_past: bool = False) -> int:
    deadline = length * unit + (store.clock() if since_now else 0)
    if (length <= 0 and not in_past) or not LEAST_INTEGER <= deadline <= MOST_INTEGER:
        raise Mistake(b"invalid expire time in '%b' command" % command)
    return deadline


class Command(NamedTuple):
    """The function that runs a command, and how many words a request may have, its name included."""

    run: Callable[[Store, list[bytes]], bytes]
    least: int
    most: int = STRINGS_LIMIT


COMMANDS: Final[dict[bytes, Command]] = {
    b"COMMAND": Command(about_commands, 1),
    b"CONFIG": Command(config, 2),
    b"DBSIZE": Command(dbsize, 1, 1),
    b"DECR": Command(partial(add, sign=-1), 2, 2),
    b"DECRBY": Command(partial(add, sign=-1), 3, 3),
    b"DEL": Command(delete, 2),
    b"ECHO": Command(echo, 2, 2),
    b"EXISTS": Command(exists, 2),
    b"EXPIRE": Command(partial(expire, command=b"expire", unit=1000), 3),
    b"FLUSHALL": Command(flush, 1, 2),
    b"GET": Command(get, 2, 2),
    b"HELLO": Command(hello, 1),
    b"HOST:": Command(hang_up, 1),
    b"INCR": Command(partial(add, sign=1), 2, 2),
    b"INCRBY": Command(partial(add, sign=1), 3, 3),
    b"PEXPIRE": Command(partial(expire, command=b"pexpire", unit=1), 3),
    b"PING": Command(ping, 1, 2),
    b"POST": Command(hang_up, 1),
    b"PTTL": Command(partial(time_left, unit=1), 2, 2),
    b"QUIT": Command(leave, 1),
    b"SELECT": Command(select, 2, 2),
    b"SET": Command(put, 3),
    b"TTL": Command(partial(time_left, unit=1000), 2, 2),
}


def _unknown(request: list[bytes]) -> bytes:
    beginning = b""
    for word in request[1:]:
        if len(beginning) >= 128:
            break
        beginning += b"'%b' " % word[: 128 - len(beginning)]
    return refusal(b"unknown command '%.128b', with args beginning with: %b" % (request[0], beginning))


def _wrong_count(command: bytes) -> Mistake:
    return Mistake(b"wrong number of arguments for '%b' command" % command)


def answer(request: Request, connection: forkd.Connection) -> bytes:
    """Handles the requests of both services: finds the command and runs it on this worker's store."""
    if isinstance(request, Malformed):
        return request.reply
    name = request[0].upper()
    command = COMMANDS.get(name)
    if command is None:
        return _unknown(request)
    run, least, most = command
    try:
        if not least <= len(request) <= most:
            raise _wrong_count(name.lower())
        return run(connection.resources, request)
    except Mistake as mistake:
        return mistake.reply


def keyvalue(open_store: Callable[[], Store], framing: Resp | None = None) -> forkd.Service[..., Any]:
    """Returns a service with the handler `answer`; each of its workers opens its own store."""
    service = forkd.service(framing or Resp())(answer)

    @service.lifespan
    def store() -> Iterator[Store]:
        with closing(open_store()) as opened:
            yield opened

    @service.on_error
    def told(error: Exception, connection: forkd.Connection) -> bytes:
        if not isinstance(error, sqlite3.Error):
            raise error  # a bug: forkd logs it with its traceback and ends the connection
        log.error("the store failed peer=%s error=%r", connection.peer, error)
        return refusal(b"the store failed: " + str(error).encode())

    return service


def store_path() -> Path:
    """Returns the file of `shared`: FORKD_KEYVALUE, or else a file of this user in the temporary folder."""
    named = os.environ.get("FORKD_KEYVALUE")
    return Path(named) if named else Path(tempfile.gettempdir(), f"forkd-keyvalue-{os.geteuid()}.sqlite3")


memory = keyvalue(Memory)
shared = keyvalue(lambda: File(store_path()))
