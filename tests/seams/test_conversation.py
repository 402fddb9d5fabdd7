"""The request loop over real sockets: what a client sends, what it gets, how it ends.

`CASES` is the API as a list. Each is one conversation whose bytes and end are the same however the
network cuts it and whichever kind of worker runs it.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import forkd
from forkd.connection import GRACE, Connection, Limits
from forkd.conversation import End, Outcome, converse
from forkd.handler import Service
from forkd.scoreboard import (
    BYTES_IN,
    BYTES_OUT,
    ERRORS,
    MALFORMED,
    OVER_LIMIT,
    REQUESTS,
    RESET,
    ROW_BYTES,
    TIMED_OUT,
    TRUNCATED,
    Meter,
)
from forkd.services import chargen

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
    """Fails over b"bad", in the way that the tests of errors need."""
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
    """A user's own framing: requests are pairs of numbers, and it tells nothing of what is pending."""

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
    # What a handler takes and gives.
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
    Case("closed at once", service(upper, on_connect=Connection.close), b"a\n", b"", End.CLOSED, 0),
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
    # What a client does wrong.
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
    """The client's end and ours. With SOCK_SEQPACKET each recv gives what one send was."""
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


def serve(
    sock: socket.socket,
    service: Service[..., Any],
    limits: Limits = Limits(5, 5, 5),  # noqa: B008  # immutable
    started: Callable[[Connection], object] = lambda connection: None,
    meter: type[Meter] = Meter,
) -> tuple[Outcome, memoryview]:
    row = memoryview(bytearray(ROW_BYTES)).cast("Q")
    connection = Connection(sock, service="test", number=7, limits=limits)
    connection.prepare()
    started(connection)
    return converse(connection, service, meter(row)), row


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))


def check(case: Case, ours: socket.socket, theirs: socket.socket, pieces: Iterable[bytes]) -> None:
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


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_whole(case: Case) -> None:
    with pair() as (ours, theirs):
        check(case, ours, theirs, [case.sent])


@every_case
def test_over_tcp(case: Case) -> None:
    with tcp_pair() as (ours, theirs):
        check(case, ours, theirs, [case.sent])


@every_case
def test_split_at_any_byte(case: Case) -> None:
    for at in range(1, len(case.sent)):
        with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
            check(case, ours, theirs, [case.sent[:at], case.sent[at:]])


@every_case
def test_byte_by_byte(case: Case) -> None:
    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        check(case, ours, theirs, (bytes([byte]) for byte in case.sent))


def test_the_names_of_the_cases_are_different() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


# How replies travel. What is held depends on how long handlers take, so these have a clock of their own.


class Quick(Meter):
    """Every handler takes no time at all."""

    def began(self, request: bytes = b"") -> int:
        return 0

    def ended(self, began: int, requests: int = 1) -> int:
        return 0


class Slow(Quick):
    """Every handler takes as long as replies are held at most."""

    def ended(self, began: int, requests: int = 1) -> int:
        return 2_000_001


def test_pipelined_replies_leave_in_one_piece() -> None:
    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        ours.send(b"a\nb\nc\n")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, service(upper), meter=Quick)
        assert ours.recv(100) == b"A\nB\nC\n"
        assert ours.recv(100) == b""


def test_large_replies_do_not_pile_up() -> None:
    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        ours.send(b"a\nb\nc\n")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, service(lambda request: request * 40_000), meter=Quick)
        assert [len(ours.recv(1 << 20)) for _ in range(3)] == [80_002, 40_001, 0]


def test_a_reply_does_not_wait_for_slow_handlers_behind_it() -> None:
    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        ours.send(b"a\nb\n")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, service(upper), meter=Slow)
        assert [ours.recv(100) for _ in range(3)] == [b"A\n", b"B\n", b""]


def test_replies_of_a_generator_are_sent_as_they_come() -> None:
    def handler(request: bytes) -> Iterator[bytes]:
        assert ours.recv(100) == b"before\n"
        yield b"one"
        assert ours.recv(100) == b"one\n"
        yield b"two"
        assert ours.recv(100) == b"two\n"

    with pair() as (ours, theirs):
        ours.send(b"before\nx\n")
        ours.shutdown(socket.SHUT_WR)
        outcome, _ = serve(theirs, service(lambda request: request if request == b"before" else handler(request)))
        assert outcome == Outcome(End.CLIENT)


def test_what_a_handler_reads_comes_after_the_replies_before_it() -> None:
    def handler(request: bytes, connection: forkd.Connection) -> bytes:
        if request == b"ask":
            with pytest.raises(TimeoutError):
                connection.read_exactly(3)
            assert ours.recv(100) == b"before\n"
        return request

    with pair() as (ours, theirs):
        ours.send(b"before\nask\n")
        with ThreadPoolExecutor(1) as pool:
            served = pool.submit(serve, theirs, service(handler), Limits(idle_timeout=0.02))
            assert served.result(PATIENCE)[0].end is End.IDLE
        assert read_all(ours) == b"ask\n"


def test_on_close_comes_last() -> None:
    said: list[object] = []

    def last(connection: forkd.Connection) -> None:
        said.append(connection.data["requests"])
        said.append(read_all(ours))

    def handler(request: bytes, connection: forkd.Connection) -> bytes:
        connection.data.setdefault("requests", []).append(request)
        return request

    with pair() as (ours, theirs):
        ours.send(b"a\nb\n")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, service(handler, on_close=last))
    assert said == [[b"a", b"b"], b"a\nb\n"]


def test_an_end_is_counted_though_on_close_fails() -> None:
    with pair() as (ours, theirs):
        ours.send(b"12345")
        outcome, row = serve(theirs, service(upper, forkd.Lines(3), on_close=raising(ValueError())))
    assert outcome.end is End.ERROR
    assert (row[OVER_LIMIT], row[ERRORS]) == (1, 1)


def test_the_bytes_are_counted_once() -> None:
    with pair() as (ours, theirs):
        ours.sendall(b"a\n" * 10)
        ours.shutdown(socket.SHUT_WR)
        connections: list[Connection] = []
        _, row = serve(theirs, service(upper), started=connections.append)
    assert (row[BYTES_IN], row[BYTES_OUT]) == (20, 20)
    assert (connections[0].received, connections[0].sent) == (0, 0), "a worker adds what is left here to its row"


# Peers that are gone, or slow.


def reset(sock: socket.socket) -> None:
    """Makes close(2) send a reset (socket(7), SO_LINGER with a time of 0)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_a_reset_amid_a_reply_is_an_outcome() -> None:
    def handler(request: bytes) -> Iterator[bytes]:
        yield b"first"
        reset(ours)
        while True:
            yield b"x" * 1000

    with tcp_pair() as (ours, theirs):
        ours.send(b"a\n")
        outcome, row = serve(theirs, service(handler, on_error=apologise))
    assert outcome.end is End.RESET
    assert isinstance(outcome.error, ConnectionError)
    assert (row[RESET], row[ERRORS]) == (1, 0)


@pytest.mark.parametrize("sent", [b"", b"half a req", b"a\n"])
def test_a_reset_between_requests_is_an_outcome(sent: bytes) -> None:
    with tcp_pair() as (ours, theirs):
        ours.sendall(sent)
        reset(ours)
        outcome, row = serve(theirs, service(lambda request: None))
    assert outcome.end is End.RESET
    assert row[RESET] == 1


@pytest.mark.parametrize(
    ("sent", "limits", "end", "replies"),
    [
        (b"", Limits(0.02, 5, 5), End.IDLE, b""),
        (b"a\n", Limits(0.02, 5, 5), End.IDLE, b"A\n"),
        (b"half", Limits(5, 0.02, 5), End.READ, b""),
        (b"a\nhalf", Limits(5, 0.02, 5), End.READ, b"A\n"),
        (b"half", Limits(0, 0.02, 0), End.READ, b""),
    ],
)
def test_silence(sent: bytes, limits: Limits, end: End, replies: bytes) -> None:
    with pair() as (ours, theirs):
        ours.sendall(sent)
        begun = monotonic()
        outcome, row = serve(theirs, service(upper), limits)
        assert monotonic() - begun >= 0.02
        assert outcome.end is end
        assert isinstance(outcome.error, TimeoutError)
        assert str(outcome.error) == f"{end.value} of 0.02 s is over"
        assert row[TIMED_OUT] == 1
        assert read_all(ours) == replies


def drip(sock: socket.socket, data: bytes, seconds: float, served: Future[Any]) -> None:
    """Sends `data` again and again, with a pause, until the service has ended."""
    pause = threading.Event()
    served.add_done_callback(lambda _: pause.set())
    while not pause.wait(seconds):
        sock.sendall(data)


@pytest.mark.parametrize(("data", "seconds"), [(b"x", 0.01), (b"x", 0.0005)], ids=["slowly", "quickly"])
def test_a_dripping_client_does_not_restart_the_deadline(data: bytes, seconds: float) -> None:
    with pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, theirs, service(upper, forkd.Lines(1 << 30)), Limits(5, 0.05, 5))
        drip(ours, data, seconds, served)
        assert served.result()[0].end is End.READ


def test_a_busy_pipelining_client_is_no_dripping_one() -> None:
    # Each piece ends one request and begins the next: there is always one pending, and none takes long.
    with pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, theirs, service(upper), Limits(5, 0.1, 5))
        begun = monotonic()
        ours.sendall(b"a")
        while monotonic() < begun + 0.15:
            ours.sendall(b"b\na")
            assert ours.recv(100).endswith(b"\n")
        ours.sendall(b"\n")
        ours.shutdown(socket.SHUT_WR)
        assert served.result()[0] == Outcome(End.CLIENT)


def test_a_handlers_own_reading_has_its_own_deadline() -> None:
    @forkd.stream
    def session(connection: forkd.Connection) -> None:
        for request in connection.requests(forkd.Lines()):
            connection.send(request)
            break
        connection.recv(1)

    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        ours.send(b"in pie")
        ours.send(b"ces\n")
        outcome, _ = serve(theirs, session, Limits(0.02, 5, 5))
    assert outcome.end is End.IDLE


def test_a_slow_reader_is_cut() -> None:
    with pair() as (ours, theirs):
        ours.send(b"a\n")
        outcome, row = serve(theirs, service(lambda request: b"x" * 10_000_000), Limits(5, 5, 0.05))
        assert outcome.end is End.WRITE
        assert row[TIMED_OUT] == 1
        assert 0 < row[BYTES_OUT] == len(read_all(ours))


def test_a_dripping_reader_does_not_restart_the_deadline() -> None:
    with pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        ours.send(b"a\n")
        served = pool.submit(serve, theirs, service(lambda request: b"x" * 100_000_000), Limits(5, 5, 0.05))
        done = threading.Event()
        served.add_done_callback(lambda _: done.set())
        while not done.wait(0.01):
            ours.recv(4096)
        assert served.result()[0].end is End.WRITE


# A worker that leaves.


@pytest.fixture
def leave() -> Iterator[Callable[[Connection], None]]:
    """Makes SIGUSR1 the order to leave, as a worker's TERM is; gives what takes the connection."""
    connections: list[Connection] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: connections[-1].hurry())
    # With SA_RESTART the kernel would restart a recv(2) that has no timeout (signal(7)): the worse case.
    signal.siginterrupt(signal.SIGUSR1, False)
    yield connections.append
    signal.signal(signal.SIGUSR1, before)


def order_to_leave() -> None:
    """As the master does it: the signal, while the main thread serves."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def blocked_in_recv(theirs: socket.socket) -> None:
    """Returns when the main thread waits in a system call on our socket (proc(5), /proc/PID/task/TID/syscall)."""
    call = Path(f"/proc/self/task/{os.getpid()}/syscall")
    limit = monotonic() + PATIENCE
    while call.read_text().split()[1:2] != [hex(theirs.fileno())]:
        assert monotonic() < limit, "the service never waited for its client"


@pytest.mark.parametrize("idle_timeout", [5, 0], ids=["with a limit", "for ever"])
def test_an_idle_connection_ends_within_the_grace(leave: Callable[[Connection], None], idle_timeout: float) -> None:
    def client() -> float:
        ours.sendall(b"a\n")
        assert ours.recv(100) == b"A\n"
        blocked_in_recv(theirs)
        order_to_leave()
        begun = monotonic()
        assert ours.recv(100) == b""
        return monotonic() - begun

    with tcp_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        waited = pool.submit(client)
        outcome, row = serve(theirs, service(upper), Limits(idle_timeout, 5, 5), leave)
        assert outcome.end is End.LEAVING
        assert row[TIMED_OUT] == row[RESET] == 0
        assert GRACE * 0.9 <= waited.result() < 1


def test_a_request_within_the_grace_is_answered(leave: Callable[[Connection], None]) -> None:
    def client() -> bytes:
        blocked_in_recv(theirs)
        order_to_leave()
        ours.sendall(b"late\n")
        return read_all(ours)

    with tcp_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        read = pool.submit(client)
        assert serve(theirs, service(upper), started=leave)[0].end is End.LEAVING
        assert read.result() == b"LATE\n"


def test_a_request_half_received_is_read_to_its_end(leave: Callable[[Connection], None]) -> None:
    def client() -> bytes:
        ours.sendall(b"one\nha")
        assert ours.recv(100) == b"ONE\n"
        blocked_in_recv(theirs)
        order_to_leave()
        ours.settimeout(GRACE * 2)
        with pytest.raises(TimeoutError):
            ours.recv(100)
        ours.settimeout(PATIENCE)
        ours.sendall(b"lf\n")
        return read_all(ours)

    with tcp_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        read = pool.submit(client)
        assert serve(theirs, service(upper), started=leave)[0].end is End.LEAVING
        assert read.result() == b"HALF\n"


def test_a_half_request_has_its_deadline_still(leave: Callable[[Connection], None]) -> None:
    def client() -> bytes:
        ours.sendall(b"half")
        blocked_in_recv(theirs)
        order_to_leave()
        return read_all(ours)

    with tcp_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        read = pool.submit(client)
        assert serve(theirs, service(upper), Limits(5, 0.1, 5), leave)[0].end is End.READ
        assert read.result() == b""


def test_a_handler_is_not_disturbed(leave: Callable[[Connection], None]) -> None:
    def handler(request: bytes) -> bytes:
        order_to_leave()
        return request * 1000

    with tcp_pair() as (ours, theirs):
        ours.sendall(b"a\nb\n")
        outcome, row = serve(theirs, service(handler), started=leave)
        assert read_all(ours) == b"a" * 1000 + b"\n" + b"b" * 1000 + b"\n"
        assert outcome.end is End.LEAVING
        assert row[REQUESTS] == 2


def test_a_signal_amid_a_long_reply_loses_nothing(leave: Callable[[Connection], None]) -> None:
    size = 8_000_000

    def client() -> int:
        ours.sendall(b"a\n")
        first = len(ours.recv(1000))
        blocked_in_recv(theirs)  # in send(2) rather: the buffers are full
        order_to_leave()
        return first + len(read_all(ours))

    with tcp_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        read = pool.submit(client)
        outcome, _ = serve(theirs, service(lambda request: b"x" * size), started=leave)
        assert outcome.end is End.LEAVING
        assert read.result() == size + 1


@pytest.mark.slow
def test_a_chatty_client_gets_its_last_reply_whole(leave: Callable[[Connection], None]) -> None:
    def client() -> tuple[int, int]:
        asked = answered = 0
        while True:
            ours.sendall(b"again\n")
            asked += 1
            reply = ours.recv(100)
            if not reply:
                return asked, answered
            assert reply == b"AGAIN\n"
            answered += 1
            if answered == 10:
                order_to_leave()

    with tcp_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        counts = pool.submit(client)
        outcome, row = serve(theirs, service(upper), started=leave)
        assert outcome.end is End.LEAVING
        asked, answered = counts.result()
        assert answered == row[REQUESTS]
        assert asked == answered + 1


@pytest.mark.parametrize(
    "read",
    [
        lambda connection: connection.recv(10),
        lambda connection: connection.read_exactly(10),
        lambda connection: connection.read_until(b"\n"),
        lambda connection: list(connection.requests(forkd.Lines())),
    ],
    ids=["recv", "read_exactly", "read_until", "requests"],
)
def test_a_stream_ends_when_the_worker_leaves(
    leave: Callable[[Connection], None], read: Callable[[Connection], object]
) -> None:
    def client() -> bytes:
        blocked_in_recv(theirs)
        order_to_leave()
        return read_all(ours)

    with tcp_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        rest = pool.submit(client)
        outcome, row = serve(theirs, forkd.stream(read), started=leave)
        assert outcome == Outcome(End.LEAVING)
        assert row[ERRORS] == 0
        assert rest.result() == b""


def test_a_stream_that_only_sends_can_see_that_the_worker_leaves(leave: Callable[[Connection], None]) -> None:
    def client() -> bytes:
        first = ours.recv(10)
        order_to_leave()
        return first + read_all(ours)

    with tcp_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        read = pool.submit(client)
        outcome, _ = serve(theirs, chargen, started=leave)
        assert outcome.end is End.LEAVING
        assert read.result().endswith(b"\r\n")
