"""The loop of a load test, against sockets whose other end the test holds."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forkd.cli.load.link import Target
from forkd.cli.load.loop import ClientLoop
from forkd.cli.load.plan import LoadPlan, shares
from forkd.cli.load.tally import Tally, durations
from forkd.serving.counted_framings import Chunks, Fixed, Netstrings
from tests.server import LIMIT, until

# A limit, in seconds, that tests exceed on purpose.
SOON = 0.06
MS = 1_000_000

Behaviour = Callable[[socket.socket, int], object]


class Server:
    """A listener in this process. A thread per connection calls `behave(connection, number)`, numbered in order."""

    def __init__(self, behave: Behaviour, *, family: int = socket.AF_INET, path: str = "", open: bool = True) -> None:
        self.accepted = 0
        self.listener = socket.socket(family)
        self.listener.bind(path or ("127.0.0.1", 0))
        self.target = Target(family, self.listener.getsockname())
        self._behave = behave
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        if open:
            self.open()

    def open(self) -> None:
        self.listener.listen(64)
        self._start(self._accept)

    def _start(self, work: Callable[..., object], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.accepted += 1
                self._connections.append(connection)
                self._start(self._talk, connection, self.accepted)

    def _talk(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(ConnectionError, BrokenPipeError):
            self._behave(connection, number)

    def close(self) -> None:
        for each in (self.listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self._threads:
            thread.join(LIMIT)


Serving = Callable[..., Server]


@pytest.fixture
def serving() -> Iterator[Serving]:
    with contextlib.ExitStack() as servers:

        def start(behave: Behaviour, **keys: Any) -> Server:
            server = Server(behave, **keys)
            servers.callback(server.close)
            return server

        yield start


def loaded(target: Target, tally: Tally | None = None, **keys: Any) -> Tally:
    """Returns the figures of a whole test, which must be short."""
    plan = LoadPlan(**{"connections": 1, "timeout": LIMIT, **keys}).checked()
    (share,) = shares(plan)
    tally = Tally() if tally is None else tally
    leash, held = os.pipe()
    try:
        ClientLoop(plan, share, target, tally, leash).run()
    finally:
        os.close(held)
        os.close(leash)
    return tally


def counted(tally: Tally) -> int:
    return sum(count for _, count in durations(tally.latencies))


def failed(tally: Tally) -> dict[str, int]:
    return {name: count for name, count in tally.failures.items() if count}


# Behaviours, each for a single connection.


def echo(connection: socket.socket, number: int) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def reset(connection: socket.socket) -> None:
    """Closes with RST instead of FIN: SO_LINGER of 0 seconds, see socket(7)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def last_word(connection: socket.socket, data: bytes) -> None:
    """Sends and ends in one segment, as forkd's workers do, then waits for the client's end."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(100):
        pass


# Successes.


def test_every_request_is_sent_once_and_answered(serving: Serving) -> None:
    got: list[bytes] = []

    def behave(connection: socket.socket, number: int) -> None:
        while data := connection.recv(65536):
            got.append(data)
            connection.sendall(data)

    tally = loaded(serving(behave).target, connections=3, requests=100, bodies=(b"one", b"two"), expect="echo")
    assert (tally["answered"], counted(tally), tally["connected"]) == (100, 100, 3)
    assert (tally["bytes_in"], tally["bytes_out"]) == (400, 400)
    assert failed(tally) == {}
    assert sorted(set(got)) == [b"one\n", b"two\n"]
    assert abs(got.count(b"one\n") - got.count(b"two\n")) <= 3
    assert tally.seconds > 0


def test_a_pipeline_leaves_in_one_send(serving: Serving) -> None:
    got: list[bytes] = []

    def behave(connection: socket.socket, number: int) -> None:
        while data := connection.recv(65536):
            got.append(data)
            connection.sendall(data)

    tally = loaded(serving(behave).target, requests=50, pipeline=20, expect="echo")
    assert (tally["answered"], failed(tally)) == (50, {})
    assert got == [b"hello\n" * 20, b"hello\n" * 20, b"hello\n" * 10]


def test_a_pipeline_of_several_requests_keeps_their_order(serving: Serving) -> None:
    bodies = (b"a", b"bb", b"ccc")
    tally = loaded(serving(echo).target, requests=200, pipeline=7, bodies=bodies, expect="echo", connections=2)
    assert (tally["answered"], failed(tally)) == (200, {})


@pytest.mark.parametrize("framing", [Netstrings(), Fixed(5), Chunks()], ids=repr)
def test_replies_in_single_bytes_are_put_together(serving: Serving, framing: Any) -> None:
    def drip(connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(65536):
            for byte in data:
                connection.sendall(bytes([byte]))

    tally = loaded(serving(drip).target, requests=10, pipeline=3, framing=framing, expect="echo")
    assert (tally["answered"], failed(tally)) == (10, {})


def test_requests_that_do_not_fit_the_kernels_buffer_leave_in_pieces(serving: Serving) -> None:
    tally = loaded(serving(echo).target, requests=3, bodies=(b"x" * (6 << 20),), framing=Chunks(), expect="echo")
    assert (tally["answered"], failed(tally)) == (3, {})
    assert tally["bytes_out"] == tally["bytes_in"] == 3 * (6 << 20)


def test_a_connection_a_request(serving: Serving) -> None:
    server = serving(echo)
    tally = loaded(server.target, requests=20, per_connection=1, connections=2)
    assert (tally["answered"], tally["connected"], failed(tally)) == (20, 20, {})
    assert server.accepted == 20
    assert sum(count for _, count in durations(tally.connects)) == 20


def test_several_requests_a_connection(serving: Serving) -> None:
    server = serving(echo)
    tally = loaded(server.target, requests=21, per_connection=4, pipeline=3)
    assert (tally["answered"], tally["connected"], failed(tally)) == (21, 6, {})


def test_a_server_that_ends_after_each_reply_is_not_a_failure(serving: Serving) -> None:
    def polite(connection: socket.socket, number: int) -> None:
        last_word(connection, connection.recv(100))

    tally = loaded(serving(polite).target, requests=20)
    assert (tally["answered"], tally["connected"], failed(tally)) == (20, 20, {})


def test_a_unix_socket(serving: Serving, tmp_path: Path) -> None:
    for path in (str(tmp_path / "s"), "\0forkd-test-load"):
        tally = loaded(serving(echo, family=socket.AF_UNIX, path=path).target, requests=10, connections=2)
        assert (tally["answered"], failed(tally)) == (10, {})


def test_batches_that_are_made_on_the_way(serving: Serving) -> None:
    body = b"x" * 2000
    tally = loaded(serving(echo).target, requests=300, pipeline=100, bodies=(body,), expect="echo")
    assert (tally["answered"], counted(tally), failed(tally)) == (300, 300, {})
    assert tally["bytes_out"] == 300 * 2001


# Failures: each is counted by class, and the run continues.


def test_a_reset_loses_the_requests_in_flight(serving: Serving) -> None:
    def behave(connection: socket.socket, number: int) -> None:
        if number == 1:
            connection.recv(100)
            reset(connection)
        else:
            echo(connection, number)

    tally = loaded(serving(behave).target, requests=20, pipeline=4)
    assert failed(tally) == {"reset": 4}
    assert (tally["answered"], tally["connected"]) == (16, 2)


def test_a_reply_that_is_cut_short(serving: Serving) -> None:
    def behave(connection: socket.socket, number: int) -> None:
        if number == 1:
            connection.recv(100)
            last_word(connection, b"hello\nhel")
        else:
            echo(connection, number)

    tally = loaded(serving(behave).target, requests=10, pipeline=2)
    assert failed(tally) == {"cut short": 1}
    assert tally["answered"] == 9


def test_a_wrong_reply_is_counted_and_the_connection_goes_on(serving: Serving) -> None:
    def behave(connection: socket.socket, number: int) -> None:
        turn = 0
        while data := connection.recv(100):
            connection.sendall(data if turn % 5 else b"nothing\n")
            turn += 1

    tally = loaded(serving(behave).target, requests=20, expect="echo")
    assert (failed(tally), tally["answered"], tally["connected"]) == ({"wrong": 4}, 20, 1)


def test_an_unexpected_reply_is_wrong(serving: Serving) -> None:
    def behave(connection: socket.socket, number: int) -> None:
        connection.recv(100)
        connection.sendall(b"hello\nhello\n")
        echo(connection, number)

    tally = loaded(serving(behave).target, requests=3)
    assert (failed(tally), tally["answered"]) == ({"wrong": 1}, 3)


def test_broken_framing_is_wrong_and_ends_the_connection(serving: Serving) -> None:
    def behave(connection: socket.socket, number: int) -> None:
        if number == 1:
            connection.recv(100)
            connection.sendall(b"no netstring")
        echo(connection, number)

    tally = loaded(serving(behave).target, requests=5, framing=Netstrings())
    assert (failed(tally), tally["answered"], tally["connected"]) == ({"wrong": 1}, 4, 2)


def test_silence_is_limited(serving: Serving) -> None:
    def behave(connection: socket.socket, number: int) -> None:
        if number > 1:
            echo(connection, number)
        while connection.recv(100):
            pass

    tally = loaded(serving(behave).target, requests=5, pipeline=2, timeout=SOON)
    assert (failed(tally), tally["answered"]) == ({"timed out": 2}, 3)


def test_the_end_of_the_time_waits_for_requests_in_flight(serving: Serving) -> None:
    def behave(connection: socket.socket, number: int) -> None:
        data = connection.recv(100)
        until(lambda: tally.seconds >= SOON)
        connection.sendall(data)

    tally = Tally()
    loaded(serving(behave).target, tally, duration=SOON)
    assert (tally["answered"], failed(tally)) == (1, {})
    assert tally.seconds >= SOON


def test_refused_ones_are_counted_and_tried_again(serving: Serving) -> None:
    server = serving(echo, open=False)
    tally = Tally()

    def open_when_refused() -> None:
        until(lambda: tally["refused"] >= 2)
        server.open()

    opener = threading.Thread(target=open_when_refused)
    opener.start()
    loaded(server.target, tally, requests=5)
    opener.join()
    assert (tally["answered"], tally["connected"], list(failed(tally))) == (5, 1, ["refused"])
    assert tally["errno"] == errno.ECONNREFUSED


def test_no_server_for_the_whole_time(serving: Serving, tmp_path: Path) -> None:
    for target in (serving(echo, open=False).target, Target(socket.AF_UNIX, str(tmp_path / "none"))):
        tally = loaded(target, duration=SOON, connections=2)
        assert (tally["answered"], tally["connected"], list(failed(tally))) == (0, 0, ["refused"])


def test_a_number_of_requests_without_a_server_has_an_end(serving: Serving) -> None:
    def once(connection: socket.socket, number: int) -> None:
        server.listener.close()
        last_word(connection, connection.recv(100))

    for behave, answered in (echo, 0), (once, 1):
        server = serving(behave, open=answered > 0)
        tally = loaded(server.target, requests=5, connect_timeout=SOON)
        assert (tally["answered"], list(failed(tally))) == (answered, ["refused"])


def test_a_full_queue_of_a_unix_socket_times_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first.connect(str(tmp_path / "s"))
        target = Target(socket.AF_UNIX, str(tmp_path / "s"))
        tally = loaded(target, duration=4 * SOON, connect_timeout=SOON)
    assert (tally["connected"], list(failed(tally))) == (0, ["timed out"])


# The clock.


class Stalling:
    """Answers at once, except the third request, which waits until the test is `seconds` old."""

    def __init__(self, tally: Tally, seconds: float) -> None:
        self.tally = tally
        self.seconds = seconds
        self.turn = 0

    def __call__(self, connection: socket.socket, number: int) -> None:
        while data := connection.recv(100):
            self.turn += 1
            if self.turn == 3:
                until(lambda: self.tally.seconds >= self.seconds)
            connection.sendall(data)


def over(tally: Tally, nanoseconds: int) -> int:
    return sum(count for took, count in durations(tally.latencies) if took > nanoseconds)


def test_requests_that_a_stall_held_up_have_waited_since_they_were_due(serving: Serving) -> None:
    tally = Tally()
    # A request is due every 5 ms. From the third, due at 10 ms, replies stop until 200 ms have passed. Every request
    # due in between waited for the rest of that time, not only the one in flight.
    loaded(serving(Stalling(tally, 0.2)).target, tally, requests=40, rate=200.0)
    assert tally["answered"] == 40
    assert over(tally, 100 * MS) >= 18
    assert over(tally, 150 * MS) >= 8
    assert tally["longest"] >= 188 * MS


def test_a_closed_loop_would_have_left_them_out(serving: Serving) -> None:
    tally = Tally()
    loaded(serving(Stalling(tally, 0.2)).target, tally, requests=40)
    assert tally["answered"] == 40
    assert tally["longest"] >= 100 * MS


def noting(came: list[float]) -> Behaviour:
    """An echo that records when each request arrived."""

    def behave(connection: socket.socket, number: int) -> None:
        while data := connection.recv(100):
            came.append(time.monotonic())
            connection.sendall(data)

    return behave


def test_no_request_leaves_before_it_is_due(serving: Serving) -> None:
    came: list[float] = []
    tally = loaded(serving(noting(came)).target, requests=20, rate=500.0, connections=2)
    began = tally["began"] / 1e9
    assert all(at - began >= number / 500 for number, at in enumerate(sorted(came)))


def test_requests_at_random_moments_leave_one_by_one(serving: Serving) -> None:
    came: list[float] = []
    tally = loaded(serving(noting(came)).target, requests=40, rate=500.0, poisson=True, connections=40)
    assert (tally["answered"], tally["unsent"], failed(tally)) == (40, 0, {})
    assert max(came) - min(came) > 0.01, "39 times 2 ms on average; less than this once in a trillion runs"


def test_a_time_holds_as_many_requests_as_are_due_in_it(serving: Serving) -> None:
    tally = loaded(serving(echo).target, duration=0.1, rate=200.0)
    assert (tally["answered"], tally["unsent"], failed(tally)) == (20, 0, {})


def test_requests_that_were_due_but_not_sent_are_reported(serving: Serving) -> None:
    def silent(connection: socket.socket, number: int) -> None:
        while connection.recv(100):
            pass

    tally = loaded(serving(silent).target, duration=SOON, timeout=2 * SOON, rate=1000.0, pipeline=2)
    assert tally["answered"] == 0
    assert list(failed(tally)) == ["timed out"]
    assert tally["unsent"] >= SOON * 1000 - 2 - tally["timed out"]


def test_an_open_loop_fills_its_pipelines_with_overdue_requests(serving: Serving) -> None:
    got: list[bytes] = []

    def behave(connection: socket.socket, number: int) -> None:
        data = connection.recv(100)
        until(lambda: tally.seconds > 0.05)
        while data:
            got.append(data)
            connection.sendall(data)
            data = connection.recv(65536)

    tally = Tally()
    loaded(serving(behave).target, tally, requests=100, rate=2000.0, pipeline=10)
    assert (tally["answered"], failed(tally)) == (100, {})
    assert max(data.count(b"\n") for data in got) > 1


def test_requests_of_the_warm_up_do_not_count(serving: Serving) -> None:
    got = []

    def behave(connection: socket.socket, number: int) -> None:
        while data := connection.recv(100):
            got.append(data)
            connection.sendall(data)

    for rate in (None, 500.0):
        got.clear()
        tally = loaded(serving(behave).target, requests=10, warmup=SOON, expect="echo", rate=rate)
        assert (counted(tally), failed(tally), tally["connected"]) == (tally["answered"], {}, 1)
        assert tally["answered"] == 10
        assert len(got) > 10


def test_the_end_of_the_leash_ends_it_at_once(serving: Serving) -> None:
    plan = LoadPlan(connections=2, duration=600.0)
    (share,) = shares(plan)
    tally = Tally()
    leash, held = os.pipe()
    server = serving(echo)

    def let_go() -> None:
        until(lambda: tally["answered"] > 10)
        os.close(held)

    holder = threading.Thread(target=let_go)
    holder.start()
    ClientLoop(plan, share, server.target, tally, leash).run()
    holder.join()
    os.close(leash)
    assert tally["answered"] > 10
    assert 0 < tally.seconds < LIMIT
