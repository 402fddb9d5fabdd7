"""The request loop over real sockets: what a client sends, what it receives, and how it ends.

The cases of `tests.cases` run here as in a `sync` worker; `test_event` runs them for the other kinds.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import forkd
from forkd.ipc.deadlines import GRACE, Deadlines
from forkd.ipc.meter import Meter, bucket
from forkd.ipc.scoreboard import (
    BUCKETS,
    BYTES_IN,
    BYTES_OUT,
    ERRORS,
    HISTOGRAM,
    OVER_LIMIT,
    REQUESTS,
    RESET,
    ROW_BYTES,
    SLOWEST,
    TIMED_OUT,
)
from forkd.services import chargen
from forkd.serving import exchange
from forkd.serving.connection import Connection
from forkd.serving.conversation import HELD_NS
from forkd.serving.exchange import converse
from forkd.serving.outcome import End, Outcome
from forkd.serving.service import Service
from tests.cases import (
    CASES,
    PATIENCE,
    Case,
    apologise,
    check,
    pair,
    raising,
    read_all,
    service,
    tcp_pair,
    upper,
)


def serve(
    sock: socket.socket,
    service: Service[..., Any],
    limits: Deadlines = Deadlines(5, 5, 5),  # noqa: B008  # immutable
    started: Callable[[Connection], object] = lambda connection: None,
    meter: type[Meter] = Meter,
) -> tuple[Outcome, memoryview]:
    row = memoryview(bytearray(ROW_BYTES)).cast("Q")
    connection = Connection(sock, service="test", number=7, limits=limits)
    connection.prepare()
    started(connection)
    return converse(connection, service, meter(row)), row


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_whole(case: Case) -> None:
    with pair() as (ours, theirs):
        check(case, serve, ours, theirs, [case.sent])


@every_case
def test_over_tcp(case: Case) -> None:
    with tcp_pair() as (ours, theirs):
        check(case, serve, ours, theirs, [case.sent])


@every_case
def test_split_at_any_byte(case: Case) -> None:
    for at in range(1, len(case.sent)):
        with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
            check(case, serve, ours, theirs, [case.sent[:at], case.sent[at:]])


@every_case
def test_byte_by_byte(case: Case) -> None:
    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        check(case, serve, ours, theirs, (bytes([byte]) for byte in case.sent))


def test_the_names_of_the_cases_are_different() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


# How replies travel. How many replies are held back depends on the handlers' time, so these tests set the clock.

Handlers = Callable[[int], type[Meter]]


@pytest.fixture(params=["quick", "general"])
def handlers_take(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Handlers:
    """Sets how many nanoseconds each handler takes, by the clock of a `QuickConversation` or by a separate meter."""

    class Paced(Meter):
        def began(self, request: bytes = b"") -> int:
            return 0

        def ended(self, began: int) -> int:
            return self.taken

        taken = 0

    def take(nanoseconds: int) -> type[Meter]:
        if request.param == "general":
            Paced.taken = nanoseconds
            return Paced
        monkeypatch.setattr(exchange, "monotonic_ns", count(0, nanoseconds).__next__)
        return Meter

    return take


def test_pipelined_replies_leave_in_one_piece(handlers_take: Handlers) -> None:
    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        ours.send(b"a\nb\nc\n")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, service(upper), meter=handlers_take(0))
        assert ours.recv(100) == b"A\nB\nC\n"
        assert ours.recv(100) == b""


def test_large_replies_do_not_pile_up(handlers_take: Handlers) -> None:
    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        ours.send(b"a\nb\nc\n")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, service(lambda request: request * 40_000), meter=handlers_take(0))
        assert [len(ours.recv(1 << 20)) for _ in range(3)] == [80_002, 40_001, 0]


def test_a_reply_does_not_wait_for_slow_handlers_behind_it(handlers_take: Handlers) -> None:
    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        ours.send(b"a\nb\n")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, service(upper), meter=handlers_take(HELD_NS + 1))
        assert [ours.recv(100) for _ in range(3)] == [b"A\n", b"B\n", b""]


def test_how_long_each_request_took_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that arrive alone, requests that arrive together, and requests whose handlers fail."""
    monkeypatch.setattr(exchange, "monotonic_ns", count(0, 5_000).__next__)

    def handler(request: bytes) -> bytes:
        return {b"good": request}[request]

    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        for sent in (b"good\n", b"bad\n", b"good\ngood\nbad\ngood\n"):
            ours.send(sent)
        ours.shutdown(socket.SHUT_WR)
        outcome, row = serve(theirs, service(handler, on_error=lambda error, connection: b"sorry"))
        assert read_all(ours) == b"good\nsorry\ngood\ngood\nsorry\ngood\n"
    assert outcome == Outcome(End.CLIENT)
    assert [(at, row[HISTOGRAM + at]) for at in range(BUCKETS) if row[HISTOGRAM + at]] == [(bucket(5_000), 6)]
    assert (row[REQUESTS], row[SLOWEST]) == (6, 5_000)


def test_a_reply_of_a_kind_of_bytes_is_one_among_others() -> None:
    class Text(bytes):
        pass

    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        ours.send(b"a\nb\n")
        ours.send(b"c\n")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, service(lambda request: Text(request) if request != b"a" else request))
        assert read_all(ours) == b"a\nb\nc\n"


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
            served = pool.submit(serve, theirs, service(handler), Deadlines(idle_timeout=0.02))
            assert served.result(PATIENCE)[0].end is End.IDLE
        assert read_all(ours) == b"ask\n"


def test_a_request_that_is_cut_short_is_one_also_where_a_handler_has_read_the_end() -> None:
    @forkd.service(forkd.Lines())
    def answer(request: bytes, connection: Connection) -> bytes:
        assert connection.recv(10) == b""
        return request

    with pair() as (ours, theirs):
        ours.sendall(b"one\ntw")
        ours.shutdown(socket.SHUT_WR)
        outcome, _ = serve(theirs, answer)
        assert (read_all(ours), outcome.end) == (b"one\n", End.TRUNCATED)


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
    assert (connections[0].received, connections[0].sent) == (0, 0), "what is left here is added to a worker's row"


# Peers that are gone or slow.


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
        (b"", Deadlines(0.02, 5, 5), End.IDLE, b""),
        (b"a\n", Deadlines(0.02, 5, 5), End.IDLE, b"A\n"),
        (b"half", Deadlines(5, 0.02, 5), End.READ, b""),
        (b"a\nhalf", Deadlines(5, 0.02, 5), End.READ, b"A\n"),
        (b"half", Deadlines(0, 0.02, 0), End.READ, b""),
    ],
)
def test_silence(sent: bytes, limits: Deadlines, end: End, replies: bytes) -> None:
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
    """Sends `data` repeatedly, with pauses, until the service has ended."""
    pause = threading.Event()
    served.add_done_callback(lambda _: pause.set())
    while not pause.wait(seconds):
        sock.sendall(data)


@pytest.mark.parametrize(("data", "seconds"), [(b"x", 0.01), (b"x", 0.0005)], ids=["slowly", "quickly"])
def test_a_dripping_client_does_not_restart_the_deadline(data: bytes, seconds: float) -> None:
    with pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, theirs, service(upper, forkd.Lines(1 << 30)), Deadlines(5, 0.05, 5))
        drip(ours, data, seconds, served)
        assert served.result()[0].end is End.READ


def test_a_busy_pipelining_client_is_no_dripping_one() -> None:
    # Each piece ends one request and begins the next, so a request is always pending, but none takes long.
    with pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, theirs, service(upper), Deadlines(5, 0.1, 5))
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
        outcome, _ = serve(theirs, session, Deadlines(0.02, 5, 5))
    assert outcome.end is End.IDLE


def test_a_slow_reader_is_cut() -> None:
    with pair() as (ours, theirs):
        ours.send(b"a\n")
        outcome, row = serve(theirs, service(lambda request: b"x" * 10_000_000), Deadlines(5, 5, 0.05))
        assert outcome.end is End.WRITE
        assert row[TIMED_OUT] == 1
        assert 0 < row[BYTES_OUT] == len(read_all(ours))


def test_a_dripping_reader_does_not_restart_the_deadline() -> None:
    with pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        ours.send(b"a\n")
        served = pool.submit(serve, theirs, service(lambda request: b"x" * 100_000_000), Deadlines(5, 5, 0.05))
        done = threading.Event()
        served.add_done_callback(lambda _: done.set())
        while not done.wait(0.01):
            ours.recv(4096)
        assert served.result()[0].end is End.WRITE


# A worker that leaves.


@pytest.fixture
def leave() -> Iterator[Callable[[Connection], None]]:
    """Makes SIGUSR1 the order to leave, as SIGTERM is in a worker. Yields the function that sets the connection."""
    connections: list[Connection] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: connections[-1].hurry())
    # The worse case: with SA_RESTART, the kernel would restart a recv(2) that has no timeout (signal(7)).
    signal.siginterrupt(signal.SIGUSR1, False)
    yield connections.append
    signal.signal(signal.SIGUSR1, before)


def order_to_leave() -> None:
    """Sends the signal while the main thread serves, as the master does."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def blocked_in_recv(theirs: socket.socket) -> None:
    """Returns once the main thread waits in a system call on our socket (proc(5), /proc/PID/task/TID/syscall)."""
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
        outcome, row = serve(theirs, service(upper), Deadlines(idle_timeout, 5, 5), leave)
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
        assert serve(theirs, service(upper), Deadlines(5, 0.1, 5), leave)[0].end is End.READ
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
        blocked_in_recv(theirs)  # in send(2), because the buffers are full
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
