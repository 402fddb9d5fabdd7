"""A client that reads nothing, sends a flood or breaks off does not disturb the other clients of its worker."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

import pytest

from tests.conftest import Forkd
from tests.server import Server, until

KINDS = {
    "event": ("fair:plain", {}),
    "threads": ("fair:plain", {"threads": 2}),
    "async": ("fair:awaited", {}),
}
CALLS = 50


def started(forkd: Forkd, kind: str, **keys: object) -> Server:
    """Starts a server with one worker of this kind."""
    app, more = KINDS[kind]
    return forkd(app, workers=1, worker='"event"', **more, **keys).serving()


def longest_wait(server: Server, calls: int = CALLS) -> float:
    """Returns the longest time, in seconds, that another client waits for a reply."""
    waits = []
    with server.connect() as client:
        for _ in range(calls):
            began = time.monotonic()
            assert said(client, b"a\n") == b"a\n"
            waits.append(time.monotonic() - began)
    return max(waits)


def said(client: socket.socket, request: bytes) -> bytes:
    """Returns the line that answers a request."""
    client.sendall(request)
    return line(client)


def line(client: socket.socket) -> bytes:
    got = b""
    while not got.endswith(b"\n") and (data := client.recv(1)):
        got += data
    return got


def cpu_seconds(pid: int) -> float:
    """Returns the processor time that a process has used so far (proc(5), schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def memory(pid: int) -> int:
    """Returns the resident memory of a process in bytes (proc(5), statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [b"reply", b"pieces", b"send"])
def test_a_client_that_reads_nothing_holds_up_no_other(forkd: Forkd, kind: str, way: bytes) -> None:
    server = started(forkd, kind, write_timeout=5)
    with server.connect() as slow:
        slow.sendall(way + b"\n")
        assert longest_wait(server) < 1
        [worker] = server.workers()
        assert memory(worker) < 120 * 1024 * 1024
        # The client still receives everything once it reads.
        got = 0
        while got < 8_000_000:
            got += len(slow.recv(1 << 20))


@pytest.mark.parametrize("kind", KINDS)
def test_many_requests_in_one_packet_hold_up_no_other(forkd: Forkd, kind: str) -> None:
    server = started(forkd, kind)
    requests = 3000
    with server.connect() as greedy:
        greedy.sendall(b"work 0.5\n" * requests)  # 1.5 s of work
        assert longest_wait(server, 10) < 0.5
        got = b""
        while len(got) < 9 * requests:
            got += greedy.recv(1 << 16)
        assert got == b"work 0.5\n" * requests
        greedy.shutdown(socket.SHUT_WR)
        assert greedy.recv(1) == b""


def test_replies_that_nobody_reads_are_bounded(forkd: Forkd) -> None:
    server = started(forkd, "async", write_timeout=30)
    [worker] = server.workers()
    with server.connect() as slow:
        before = memory(worker)
        slow.sendall(b"reply\n" * 100)  # 800 MB
        assert longest_wait(server) < 1
        assert memory(worker) - before < 100 * 1024 * 1024


@pytest.mark.slow
def test_a_reset_client_costs_nothing_while_its_handler_waits(forkd: Forkd) -> None:
    server = started(forkd, "async")
    [worker] = server.workers()
    with server.connect() as other:
        gone = server.connect()
        gone.sendall(b"wait 1500\n")
        assert said(other, b"a\n") == b"a\n"
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
        before = cpu_seconds(worker)
        assert said(other, b"wait 1000\n") == b"wait 1000\n"
        assert cpu_seconds(worker) - before < 0.2
    assert server.stop() == 0


def test_replies_before_a_request_that_takes_too_long_arrive(forkd: Forkd) -> None:
    server = started(forkd, "async", request_timeout=0.3)
    with server.connect() as client:
        client.sendall(b"a\nb\nwait 60000\n")
        assert (line(client), line(client), line(client)) == (b"a\n", b"b\n", b"")


@pytest.mark.slow
def test_a_read_that_is_cancelled_loses_nothing(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("fair:timed", workers=1, worker='"event"').serving()
    with server.connect() as client:
        for _ in range(4):
            until((tmp_path / "held-up").exists)
            (tmp_path / "held-up").unlink()
            client.sendall(b"hello\n")
            (tmp_path / "sent").touch()
            assert line(client) == b"timeout\n"
            assert line(client) == b"got hello\n"


def test_lines_read_with_a_timeout_all_arrive_once(forkd: Forkd) -> None:
    server = forkd("fair:pushed", workers=1, worker='"event"').serving()
    with server.connect() as client:
        for number in range(0, 3000, 3):
            client.sendall(b"".join(b"%d\n" % each for each in range(number, number + 3)))
        client.shutdown(socket.SHUT_WR)
        assert line(client) == b"3000\n"


def test_two_coroutines_send_and_two_may_not_read(forkd: Forkd) -> None:
    server = forkd("fair:twice", workers=1, worker='"event"', write_timeout=5).serving()
    with server.connect() as client:
        got = 0
        while got < 16_000_000:
            data = client.recv(min(1 << 20, 16_000_000 - got))
            assert data
            got += len(data)
        assert line(client) == b"\n"
        assert line(client) == b"another coroutine is already reading from this connection\n"
        client.sendall(b"x")
        assert client.recv(100) == b"got x"


@pytest.mark.slow
def test_a_connection_that_has_lost_bytes_ends(forkd: Forkd) -> None:
    """Nothing follows a gap in a client's stream, even if another connection's handler met the write_timeout."""
    server = forkd("fair:pushes", workers=1, worker='"event"', write_timeout=1).serving()
    with server.connect() as slow, server.connect() as speaker:
        until(lambda: server.status("test")["connections"]["open"] == 2)
        for number in range(60):
            assert said(speaker, b"%c\n" % (97 + number % 26)) == b"ok\n"
        got = b""
        while data := slow.recv(1 << 20):
            got += data
    *whole, _ = got.split(b"\n")
    assert all(len(each) == 300_000 and len(set(each)) == 1 for each in whole)


@pytest.mark.parametrize("how", ["closed", "reset", "slow"])
@pytest.mark.parametrize("kind", ["sync", *KINDS])
def test_a_generator_of_replies_is_closed_before_on_close(forkd: Forkd, tmp_path: Path, kind: str, how: str) -> None:
    app = "fair:endless_awaited" if kind == "async" else "fair:endless"
    keys = {"worker": '"sync"'} if kind == "sync" else {"worker": '"event"', **KINDS[kind][1]}
    server = forkd(app, workers=1, write_timeout=0.3, **keys).serving()
    with server.connect() as client:
        client.sendall(b"go\n")
        assert client.recv(1) == b"p"
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how != "slow":
            client.close()
        noted = tmp_path / "noted"
        until(lambda: noted.exists() and noted.read_text() == "generator closed\non_close\n")


def test_a_mark_that_comes_late_costs_no_more_than_its_bytes(forkd: Forkd) -> None:
    """`read_until` used to search all bytes again for each piece."""
    server = forkd("fair:until_mark", workers=1).serving()
    [worker] = server.workers()
    size = 20_000_000
    spent = []
    for total in (size // 4, size):
        before = cpu_seconds(worker)
        with server.connect() as client:
            for _ in range(total // 10_000):
                client.sendall(b"x" * 10_000)
            client.sendall(b"\r\n.\r\n")
            assert line(client) == b"%d\n" % (total + 5)
        spent.append(cpu_seconds(worker) - before)
    assert spent[1] < 10 * spent[0], spent
