"""The API as a list of conversations, `CASES`, and pairs of sockets on which to hold them.

Each conversation has the same bytes and the same end, however the network splits it and whichever kind of worker
serves it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import forkd
from forkd.ipc.scoreboard import (
    BYTES_IN,
    BYTES_OUT,
    ERRORS,
    MALFORMED,
    OVER_LIMIT,
    REQUESTS,
    RESET,
    TIMED_OUT,
    TRUNCATED,
)
from forkd.serving.outcome import End, Outcome
from forkd.serving.service import Service

PATIENCE = 5.0
COUNTED = {
    End.IDLE: TIMED_OUT,
    End.READ: TIMED_OUT,
    End.WRITE: TIMED_OUT,
    End.OVER_LIMIT: OVER_LIMIT,
    End.MALFORMED: MALFORMED,
    End.TRUNCATED: TRUNCATED,
    End.RESET: RESET,
}


@dataclass(frozen=True)
class Case:
    """A client sends `sent` and ends its side; it reads `replies`, then the end of the stream."""

    name: str
    service: Service[..., Any]
    sent: bytes
    replies: bytes
    end: End = End.CLIENT
    requests: int | None = None
    errors: int = 0
    error: type[BaseException] | None = field(default=None)


def service(handler: Callable[..., Any], framing: Any = None, **hooks: Callable[..., Any]) -> Service[..., Any]:
    made: Service[..., Any] = forkd.service(framing or forkd.Lines())(handler)
    for name, hook in hooks.items():
        getattr(made, name)(hook)
    return made


def raising(error: BaseException) -> Callable[..., Any]:
    def raises(*_: object) -> bytes:
        raise error

    return raises


def upper(request: bytes) -> bytes:
    return request.upper()


def picky(request: bytes) -> bytes:
    """Fails on b"bad", for the tests of errors."""
    if request == b"bad":
        raise ValueError("bad request")
    return request.upper()


def apologise(error: Exception, connection: forkd.Connection) -> bytes:
    return f"{type(error).__name__} on {connection.number}".encode()


def until_quit(words: bytes | None) -> Callable[[bytes], bytes]:
    def handler(request: bytes) -> bytes:
        if request == b"quit":
            raise forkd.Close(words)
        return request.upper()

    return handler


def stops_itself(request: bytes) -> Iterator[bytes]:
    yield request
    raise forkd.Close(b"bye")


def breaks_off(request: bytes) -> Iterator[bytes]:
    yield request
    raise ValueError("half way")


def optional(request: bytes, connection: forkd.Connection | None = None) -> bytes:
    return b"%s %d" % (request, connection.number if connection else 0)


def counting(request: bytes, connection: forkd.Connection) -> bytes:
    connection.data["n"] = connection.data.get("n", 0) + 1
    return b"%s %d" % (request, connection.data["n"])


def sends_itself(request: bytes, connection: forkd.Connection) -> bytes:
    if request == b"2":
        connection.send(b"aside\n")
    return request


def closes_itself(request: bytes, connection: forkd.Connection) -> bytes | None:
    if request != b"2":
        return request
    connection.send(b"last\n")
    connection.close()
    return None


def replies_too_late(request: bytes, connection: forkd.Connection) -> bytes:
    if request == b"2":
        connection.close()
    return request


class Sums:
    """A user's own framing: its requests are pairs of numbers, and it has no `pending`."""

    def __init__(self) -> None:
        self._text = b""

    def feed(self, data: bytes) -> Sequence[tuple[int, int]]:
        *whole, self._text = (self._text + data).split(b";")
        if any(b"+" not in one for one in whole):
            raise forkd.FramingError("no plus sign", [self._pair(one) for one in whole if b"+" in one])
        return [self._pair(one) for one in whole]

    def encode(self, reply: bytes) -> bytes:
        return b"=" + reply + b";"

    def end(self) -> Sequence[tuple[int, int]]:
        return [self._pair(self._text)] if self._text else []

    def copy(self) -> Sums:
        return type(self)()

    @staticmethod
    def _pair(text: bytes) -> tuple[int, int]:
        one, _, other = text.partition(b"+")
        return int(one), int(other)


class BrokenSums(Sums):
    def feed(self, data: bytes) -> Sequence[tuple[int, int]]:
        raise ZeroDivisionError("a mistake in the framing")


class UncopiableSums(Sums):
    def copy(self) -> Sums:
        raise ZeroDivisionError("a mistake in the framing")


def add(pair: tuple[int, int]) -> bytes:
    return b"%d" % sum(pair)


@forkd.stream
def mixed_session(connection: forkd.Connection) -> None:
    """A greeting line, a length and a body, then a request loop: every way of reading."""
    name = connection.read_until(b"\n").strip()
    size = connection.read_exactly(1)[0]
    body = connection.read_exactly(size)
    connection.send(name + b":" + body + b"\n")
    for request in connection.requests(forkd.Lines()):
        connection.send(request.upper() + b"\n")
    connection.send(b"end\n")


@forkd.stream
def loop_in_the_middle(connection: forkd.Connection) -> None:
    for number in connection.requests(forkd.Fixed(1)):
        if number == b".":
            break
    connection.send(b"seen")
    raise forkd.Close(b" bye")


@forkd.stream
def copy_all(connection: forkd.Connection) -> None:
    while data := connection.recv(8):
        connection.send(data)


@forkd.stream
def ends_at_once(connection: forkd.Connection) -> None:
    pass


@forkd.stream
def until_end(connection: forkd.Connection) -> None:
    while True:
        connection.send(connection.read_until(b"\n", 8))


CASES = [
    # What a handler takes and returns.
    Case("one reply", service(upper), b"hi\n", b"HI\n", requests=1),
    Case("no request", service(upper), b"", b"", requests=0),
    Case("pipelined", service(upper), b"a\nb\r\nc\n", b"A\nB\nC\n", requests=3),
    Case("with the connection", service(counting), b"a\nb\n", b"a 1\nb 2\n"),
    Case("with an optional connection", service(optional), b"a\n", b"a 7\n"),
    Case("a callable object", service(bytes.upper), b"a\n", b"A\n"),
    Case("no reply", service(lambda request: None), b"a\nb\n", b"", requests=2),
    Case("a list", service(lambda request: [request, b"x"]), b"a\nb\n", b"a\nx\nb\nx\n", requests=2),
    Case("a generator", service(lambda r: (r[i : i + 1] for i in range(2))), b"ab\ncd\n", b"a\nb\nc\nd\n"),
    Case("an empty iterable", service(lambda request: ()), b"a\n", b""),
    Case("an empty reply", service(lambda request: b""), b"a\n", b"\n"),
    Case("a bytearray", service(lambda request: bytearray(request)), b"a\n", b"a\n"),
    Case("memoryviews", service(lambda request: [memoryview(request)]), b"a\n", b"a\n"),
    Case("mixed replies keep their order", service(lambda r: [r] if r == b"2" else r), b"1\n2\n3\n", b"1\n2\n3\n"),
    Case("sends for itself", service(sends_itself), b"1\n2\n3\n", b"1\naside\n2\n3\n"),
    # Framings.
    Case("delimited", service(upper, forkd.Delimited(b"\0\0")), b"a\0b\0\0c\0\0", b"A\0B\0\0C\0\0"),
    Case("length prefixed", service(upper, forkd.LengthPrefixed(2)), b"\0\2hi\0\0\0\1x", b"\0\2HI\0\0\0\1X"),
    Case("netstrings", service(upper, forkd.Netstrings()), b"2:hi,0:,1:x,", b"2:HI,0:,1:X,"),
    Case("fixed", service(upper, forkd.Fixed(3)), b"abcdef", b"ABCDEF", requests=2),
    Case("chunks", service(upper, forkd.Chunks()), b"abc", b"ABC"),
    Case("one's own", service(add, Sums()), b"1+2;3+4;", b"=3;=7;", requests=2),
    Case("one's own, with a last one", service(add, Sums()), b"1+2;3+4", b"=3;=7;", requests=2),
    # Ending it.
    Case("close", service(until_quit(None)), b"a\nquit\nb\n", b"A\n", End.CLOSED, requests=2),
    Case("close with words", service(until_quit(b"bye")), b"a\nquit\nb\n", b"A\nbye\n", End.CLOSED, requests=2),
    Case("close in a generator", service(stops_itself), b"a\nb\n", b"a\nbye\n", End.CLOSED),
    Case("closes for itself", service(closes_itself), b"1\n2\n3\n", b"1\nlast\n", End.CLOSED, requests=2),
    Case("replies after its close", service(replies_too_late), b"1\n2\n3\n", b"1\n", End.ERROR, 2, 1, ValueError),
    # Errors.
    Case("exception", service(picky), b"a\nbad\nb\n", b"A\n", End.ERROR, 2, 1, ValueError),
    Case("exception in a generator", service(breaks_off), b"a\nb\n", b"a\n", End.ERROR, 1, 1, ValueError),
    Case("on_error", service(picky, on_error=apologise), b"a\nbad\nb\n", b"A\nValueError on 7\nB\n", errors=1),
    Case("on_error in a generator", service(breaks_off, on_error=apologise), b"a\n", b"a\nValueError on 7\n", errors=1),
    Case("on_error without words", service(picky, on_error=lambda *_: None), b"bad\nb\n", b"B\n", errors=1),
    Case(
        "on_error fails",
        service(picky, on_error=raising(KeyError("x"))),
        b"a\nbad\n",
        b"A\n",
        End.ERROR,
        2,
        2,
        KeyError,
    ),
    Case(
        "on_error closes", service(picky, on_error=raising(forkd.Close(b"x"))), b"a\nbad\n", b"A\nx\n", End.CLOSED, 2, 1
    ),
    Case("a text as reply", service(lambda request: "x"), b"a\nb\n", b"", End.ERROR, 1, 1, TypeError),
    Case("a number as reply", service(lambda request: 5), b"a\n", b"", End.ERROR, 1, 1, TypeError),
    Case("texts as replies", service(lambda request: [b"x", "y"]), b"a\n", b"x\n", End.ERROR, 1, 1, TypeError),
    Case("wrong reply, on_error", service(lambda r: "x", on_error=apologise), b"a\n", b"TypeError on 7\n", errors=1),
    Case(
        "a reply that does not fit",
        service(lambda request: request * 100, forkd.LengthPrefixed(1)),
        b"\1a\3abc",
        b"\x64" + b"a" * 100,
        End.ERROR,
        2,
        1,
        ValueError,
    ),
    Case(
        "last words that do not fit",
        service(lambda r: raising(forkd.Close(b"x" * 300))() if r == b"q" else r, forkd.LengthPrefixed(1)),
        b"\1a\1q",
        b"\1a",
        End.ERROR,
        2,
        1,
        ValueError,
    ),
    Case(
        "framing error of a handler",
        service(raising(forkd.OverLimit("x"))),
        b"a\n",
        b"",
        End.ERROR,
        1,
        1,
        forkd.OverLimit,
    ),
    Case("end of file of a handler", service(raising(EOFError())), b"a\n", b"", End.ERROR, 1, 1, EOFError),
    Case("SystemExit", service(raising(SystemExit(3)), on_error=apologise), b"a\nb\n", b"", End.EXIT, 1, 1, SystemExit),
    Case("KeyboardInterrupt", service(raising(KeyboardInterrupt())), b"a\n", b"", End.ERROR, 1, 1, KeyboardInterrupt),
    Case("a framing's mistake", service(add, BrokenSums()), b"1+2;", b"", End.ERROR, 0, 1, ZeroDivisionError),
    Case("a framing's copy", service(add, UncopiableSums()), b"1+2;", b"", End.ERROR, 0, 1, ZeroDivisionError),
    # Hooks.
    Case("banner", service(upper, on_connect=lambda c: b"hello %d" % c.number), b"a\n", b"hello 7\nA\n"),
    Case("banner of several", service(upper, on_connect=lambda c: [b"hello", b"there"]), b"a\n", b"hello\nthere\nA\n"),
    Case("no banner", service(upper, on_connect=lambda c: None), b"a\n", b"A\n"),
    Case("refused", service(upper, on_connect=raising(forkd.Close(b"busy"))), b"a\n", b"busy\n", End.CLOSED, 0),
    Case("refused silently", service(upper, on_connect=raising(forkd.Close())), b"a\n", b"", End.CLOSED, 0),
    Case("closed at once", service(upper, on_connect=lambda c: c.close()), b"a\n", b"", End.CLOSED, 0),
    Case(
        "on_connect has no file", service(upper, on_connect=raising(FileNotFoundError())), b"a\n", b"", End.ERROR, 0, 1
    ),
    Case("no file", service(raising(FileNotFoundError())), b"a\n", b"", End.ERROR, 1, 1, FileNotFoundError),
    Case(
        "on_connect fails", service(upper, on_connect=raising(ValueError())), b"a\n", b"", End.ERROR, 0, 1, ValueError
    ),
    Case("on_connect exits", service(upper, on_connect=raising(SystemExit())), b"a\n", b"", End.EXIT, 0, 1, SystemExit),
    Case("on_close", service(upper, on_close=lambda c: None), b"a\n", b"A\n"),
    Case("on_close fails", service(upper, on_close=raising(ValueError())), b"a\n", b"A\n", End.ERROR, 1, 1, ValueError),
    Case("on_close exits", service(upper, on_close=raising(SystemExit())), b"a\n", b"A\n", End.EXIT, 1, 1, SystemExit),
    Case(
        "on_close sends", service(upper, on_close=lambda c: c.send(b"x")), b"a\n", b"A\n", End.ERROR, 1, 1, ValueError
    ),
    # Mistakes of clients.
    Case("over limit", service(upper, forkd.Lines(3)), b"a\nbcd\nefgh\ni\n", b"A\nBCD\n", End.OVER_LIMIT, 2),
    Case("truncated", service(upper), b"a\nb\nc", b"A\nB\n", End.TRUNCATED, 2),
    Case("malformed", service(upper, forkd.Netstrings()), b"1:a,1:b,1:c;1:d,", b"1:A,1:B,", End.MALFORMED, 2),
    # Streams.
    Case("stream", copy_all, b"abcdefgh", b"abcdefgh", requests=1),
    Case("every way of reading", mixed_session, b"joe\n\2hi" + b"a\nb\n", b"joe:hi\nA\nB\nend\n"),
    Case("truncated in requests", mixed_session, b"joe\n\2hi" + b"a\nb", b"joe:hi\nA\n", End.TRUNCATED),
    Case("truncated in read_exactly", mixed_session, b"joe\n\2h", b"", End.TRUNCATED),
    Case("end of file let through", mixed_session, b"joe\n", b""),
    Case("end of file in a loop", until_end, b"a\nb\n", b"a\nb\n"),
    Case("truncated in a loop", until_end, b"a\nb", b"a\n", End.TRUNCATED),
    Case("over limit in a loop", until_end, b"a\n12345678\n", b"a\n", End.OVER_LIMIT),
    Case("a loop left", loop_in_the_middle, b"ab.cd", b"seen bye", End.CLOSED),
    Case("stream fails", forkd.stream(raising(ValueError())), b"a", b"", End.ERROR, 1, 1, ValueError),
    Case("stream exits", forkd.stream(raising(SystemExit())), b"a", b"", End.EXIT, 1, 1, SystemExit),
    Case("end of file of its own", forkd.stream(raising(EOFError())), b"a", b"", End.ERROR, 1, 1, EOFError),
    Case("stream ends at once", ends_at_once, b"a", b"", End.CLOSED),
]


@contextmanager
def pair(kind: int = socket.SOCK_STREAM) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yields the two ends of a connection. With SOCK_SEQPACKET each recv returns the bytes of one send."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        ours.settimeout(PATIENCE)
        yield ours, theirs


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.settimeout(PATIENCE)
            yield ours, theirs


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))


Serve = Callable[[socket.socket, Service[..., Any]], tuple[Outcome, memoryview]]
"""Serves one connection to its end; returns how it ended and the scoreboard row written meanwhile."""


def check(case: Case, serve: Serve, ours: socket.socket, theirs: socket.socket, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        ours.sendall(piece)
    ours.shutdown(socket.SHUT_WR)
    outcome, row = serve(theirs, case.service)
    assert (read_all(ours), outcome.end) == (case.replies, case.end)
    assert case.requests in (None, row[REQUESTS]) or isinstance(case.service.framing, forkd.Chunks)
    assert row[ERRORS] == case.errors
    assert row[BYTES_OUT] == len(case.replies)
    assert row[BYTES_IN] <= len(case.sent)
    assert {column: row[column] for column in COUNTED.values()} == {
        column: int(COUNTED.get(case.end) == column) for column in COUNTED.values()
    }
    if case.error is not None:
        assert type(outcome.error) is case.error
