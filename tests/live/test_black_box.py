"""The black box: a single record says what a worker was doing when it died."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from tests.conftest import Forkd
from tests.live.test_life import begin, call
from tests.server import Server, exchange, until


def record(server: Server, what: str = "crashed") -> str:
    """Returns the record of a worker's death."""
    [found] = server.said(rf"error worker {what} .*")
    return found[0]


def test_a_worker_killed_amid_a_request(forkd: Forkd) -> None:
    server = forkd("small:die", workers=1).serving()
    [pid] = server.workers()
    with server.connect() as client:
        for number in range(3):
            assert call(client, b"%d\n" % number) == b"%d\n" % number
        client.sendall(b"die 9\n")
        with suppress(ConnectionResetError):
            assert client.recv(100) == b""
        peer = client.getsockname()
    line = record(server)
    assert f"service=test worker=0 gen=1 pid={pid} age=" in line
    assert 'outcome="signal 9 (SIGKILL)"' in line
    assert f"requests=3 connections=1 peer={peer[0]}:{peer[1]} request=4 running=0" in line
    assert 'size=5 begins="die 9"' in line
    assert "why=" not in line


@pytest.mark.parametrize("status", [0, 3])
def test_a_handler_that_ends_its_process(forkd: Forkd, status: int) -> None:
    server = forkd("small:die", workers=1).serving()
    assert exchange(server.connect(), b"exit %d\n" % status) == b""
    assert f'outcome="exit status {status}" requests=0' in record(server)


def test_an_idle_worker_has_nothing_in_hand(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    assert exchange(server.connect(), b"one\n") == b"ONE\n"
    until(lambda: server.status("test")["connections"]["open"] == 0)
    os.kill(server.workers()[0], signal.SIGKILL)
    line = record(server)
    assert line.endswith("requests=1 connections=1"), "the record must name no peer and no request"


def test_bytes_of_any_kind_stand_in_it_escaped(forkd: Forkd) -> None:
    server = forkd("small:stubborn", workers=1).serving()
    with begin(server, b"\x1b[2J\xff\x00" + 100 * b"x" + b"\n"):
        os.kill(server.workers()[0], signal.SIGKILL)
        line = record(server)
    assert "size=106 begins=" in line
    assert r"\u001b[2J\\xff\u0000" + 58 * "x" + '"' in line
    assert "\x1b" not in line


def test_without_the_bytes(forkd: Forkd) -> None:
    server = forkd("small:die", workers=1, black_box="false").serving()
    with suppress(ConnectionResetError):
        exchange(server.connect(), b"die 11\n")
    line = record(server)
    assert "request=1 running=" in line
    assert "size" not in line
    assert "begins" not in line


def test_a_stream_tells_of_its_peer(forkd: Forkd) -> None:
    server = forkd("small:session", workers=1).serving()
    with server.connect() as client:
        assert call(client, b"here") == b"here"
        os.kill(server.workers()[0], signal.SIGKILL)
        host, port = client.getsockname()
        assert f"peer={host}:{port}" in record(server)


def test_a_timeout_says_so(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2, request_timeout=0.1).serving()
    with server.connect() as other:
        assert exchange(server.connect(), b"60\n") == b""
        line = record(server)
        assert 'outcome="signal 6 (SIGABRT)" why="request_timeout of 0.1 s is over"' in line
        assert "request=1 running=" in line
        assert any("small.py" in each and "in nap" in each for each in server.lines), "the stack of the worker"
        assert call(other, b"0\n") == b"slept 0\n"
    until(lambda: server.status("test")["workers"]["total"] == 2)


def test_a_worker_where_python_cannot_run_is_ended_too(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=1, request_timeout=0.1).serving()
    with begin(server, b"60\n"):
        os.kill(server.workers()[0], signal.SIGSTOP)
        line = record(server)
    assert 'outcome="signal 9 (SIGKILL)" why="request_timeout of 0.1 s is over"' in line
