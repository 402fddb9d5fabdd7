"""The life of a server: signals and commands, and what becomes of open connections."""

from __future__ import annotations

import signal

import pytest

from tests.conftest import Forkd
from tests.server import exchange, until


def test_it_serves_and_stops(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2).serving()
    assert exchange(server.connect(), b"hello\nworld\n") == b"HELLO\nWORLD\n"
    assert server.stop() == 0
    server.gone()
    assert not server.control_path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_each_stop_signal_leaves_nothing(forkd: Forkd, number: signal.Signals) -> None:
    server = forkd("small:shout", workers=2).serving()
    with server.connect() as idle:
        idle.sendall(b"here\n")
        assert idle.recv(100) == b"HERE\n"
        assert server.stop(number) == 0
        assert idle.recv(100) == b""
    server.gone()


def test_term_answers_the_request_that_has_begun(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=1).serving()
    with server.connect() as client:
        client.sendall(b"0.3\n")
        until(lambda: server.status("test")["workers"]["busy"] == 1)
        server.kill(signal.SIGTERM)
        assert client.recv(100) == b"slept 0.3\n"
        assert client.recv(100) == b""
    assert server.exited() == 0
