"""Sockets whose end we have announced: the client can read everything, and no wait lasts for ever."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from forkd.workers import linger
from forkd.workers.linger import Lingering

NOW = 1000.0
REPLY_BYTES = 100_000


@contextmanager
def ended(reply: bytes = b"") -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yields a TCP client, and our socket, which has replied and shut down its side.

    The client has a small buffer, so a long reply is still on its way, in our send buffer.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(5)
        client.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * REPLY_BYTES)
            ours.sendall(reply)
            ours.shutdown(socket.SHUT_WR)
            yield client, ours


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def arrived(fd: int) -> None:
    """Returns when something can be read on `fd`."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    assert waiting.poll(5000)


def test_unread_input_does_not_reset_the_client() -> None:
    reply = b"x" * REPLY_BYTES
    lingering = Lingering()
    with ended(reply) as (client, ours):
        client.sendall(b"never read")
        arrived(ours.fileno())
        fd = lingering.add(ours, NOW)
        assert fd == ours.fileno()
        client.sendall(b"and more")
        assert read_all(client) == reply
        client.close()
        while not lingering.readable(fd):
            arrived(fd)
        assert ours.fileno() == -1
        assert len(lingering) == 0


def test_closing_with_unread_input_does_lose_the_reply() -> None:
    """The reason for this room (RFC 9112, section 9.6)."""
    with ended(b"x" * REPLY_BYTES) as (client, ours):
        client.sendall(b"never read")
        arrived(ours.fileno())
        ours.close()
        received = 0
        with suppress(ConnectionResetError):
            while data := client.recv(65536):
                received += len(data)
        assert received < REPLY_BYTES


def test_a_client_that_has_ended_is_done_at_once() -> None:
    lingering = Lingering()
    with ended(b"bye") as (client, ours):
        client.sendall(b"some more")
        client.shutdown(socket.SHUT_WR)
        client_has_ended = select.poll()
        client_has_ended.register(ours, select.POLLRDHUP)
        assert client_has_ended.poll(5000)
        assert lingering.add(ours, NOW) is None
        assert ours.fileno() == -1
        assert lingering.timeout(NOW) is None
        assert read_all(client) == b"bye"


def test_a_client_that_broke_off_is_done_at_once() -> None:
    lingering = Lingering()
    with ended() as (client, ours):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        arrived(ours.fileno())
        assert lingering.add(ours, NOW) is None
        assert len(lingering) == 0


def test_a_client_that_never_stops_sending_is_cut() -> None:
    lingering = Lingering()
    with ended() as (client, ours):
        fd = lingering.add(ours, NOW)
        assert fd is not None
        for sent in range(1024, linger.BYTES + 1024, 1024):
            client.sendall(b"x" * 1024)
            arrived(fd)
            assert lingering.readable(fd) == (sent == linger.BYTES)
        assert ours.fileno() == -1


def test_no_more_than_the_limit_is_read_at_once() -> None:
    ours, client = socket.socketpair()
    with ours, client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * linger.BYTES)
        client.sendall(b"x" * (linger.BYTES + 1))
        assert Lingering().add(ours, NOW) is None
        assert ours.fileno() == -1


def test_time_runs_from_the_end_that_was_announced() -> None:
    lingering = Lingering()
    with ended() as (_, first), ended() as (client, second):
        assert lingering.timeout(NOW) is None
        assert lingering.expire(NOW) == []
        one, other = lingering.add(first, NOW), lingering.add(second, NOW + 0.5)
        assert other is not None
        assert lingering.timeout(NOW + 0.5) == linger.SECONDS - 0.5
        client.sendall(b"what the client sends buys it no time")
        arrived(other)
        assert not lingering.readable(other)
        assert lingering.expire(NOW + linger.SECONDS - 0.001) == []
        assert lingering.expire(NOW + linger.SECONDS) == [one]
        assert (first.fileno(), len(lingering)) == (-1, 1)
        assert lingering.timeout(NOW + linger.SECONDS) == 0.5
        assert lingering.timeout(NOW + 100) == 0
        assert lingering.expire(NOW + 100) == [other]
        assert lingering.timeout(NOW + 100) is None


def test_the_oldest_of_too_many_goes_first() -> None:
    lingering = Lingering()
    with ExitStack() as stack:
        fds = []
        for number in range(linger.MOST + 2):
            ours, client = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(client)
            fds.append(lingering.add(ours, NOW + number / 1000))
            assert lingering.timeout(NOW) == (0 if number >= linger.MOST else linger.SECONDS)
        assert lingering.expire(NOW + 1) == fds[:2]
        assert len(lingering) == linger.MOST
        assert lingering.timeout(NOW + 1) == pytest.approx(linger.SECONDS + 0.002 - 1)
        assert lingering.expire(NOW + linger.SECONDS + 1) == fds[2:]
