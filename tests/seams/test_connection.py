"""A connection as a stream handler sees it: reading, sending, deadlines, addresses."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forkd
from forkd.ipc.deadlines import FIRST_GRACE, GRACE, Deadlines
from forkd.kernel.address import Address
from forkd.kernel.sockopts import timeval
from forkd.serving.connection import Connection

PATIENCE = 5.0
_PATIENT = Deadlines(5, 5, 5)


@contextmanager
def connected(
    *, limits: Deadlines = _PATIENT, kind: int = socket.SOCK_STREAM
) -> Iterator[tuple[socket.socket, Connection]]:
    """Yields a client's socket and our connection. With SOCK_SEQPACKET, each recv returns the bytes of one send."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        ours.settimeout(PATIENCE)
        connection = Connection(theirs, limits=limits)
        connection.prepare()
        yield ours, connection


# Reading.

JIFFY = 0.01  # the kernel counts SO_RCVTIMEO in ticks of at most this many seconds, of which the first may be short


def test_recv_gives_what_is_there_and_then_the_end() -> None:
    with connected() as (ours, connection):
        ours.sendall(b"abcde")
        ours.shutdown(socket.SHUT_WR)
        assert [connection.recv(3) for _ in range(4)] == [b"abc", b"de", b"", b""]
        assert connection.at_end
        assert connection.received == 5


@pytest.mark.parametrize(
    ("sent", "grace"),
    [
        pytest.param(b"", FIRST_GRACE, id="a client that has sent nothing"),
        pytest.param(b"abc", GRACE, id="a known one"),
    ],
)
@pytest.mark.parametrize("counted", [False, True], ids=["not yet counted", "counted"])
def test_a_client_that_has_been_heard_has_no_more_than_the_grace_when_the_worker_leaves(
    sent: bytes, grace: float, counted: bool
) -> None:
    with connected() as (ours, connection):
        if sent:
            ours.send(sent)
            connection.recv(100)
        if counted:
            assert connection.counted() == (len(sent), 0)
        began = monotonic()
        connection.hurry()
        assert began + grace <= connection.leave_by <= monotonic() + grace


def test_recv_gives_first_what_an_exact_read_left() -> None:
    with connected(kind=socket.SOCK_SEQPACKET) as (ours, connection):
        for piece in (b"line\nabc", b"def"):
            ours.send(piece)
        assert connection.read_until(b"\n") == b"line\n"
        assert [connection.recv(2), connection.recv(100), connection.recv(100)] == [b"ab", b"c", b"def"]


def test_read_exactly() -> None:
    with connected(kind=socket.SOCK_SEQPACKET) as (ours, connection):
        for piece in (b"ab", b"cdefg", b"h"):
            ours.send(piece)
        ours.shutdown(socket.SHUT_WR)
        assert [connection.read_exactly(n) for n in (3, 0, 1, 4, 0)] == [b"abc", b"", b"d", b"efgh", b""]
        with pytest.raises(EOFError) as ended:
            connection.read_exactly(1)
        assert not isinstance(ended.value, forkd.Truncated)


def test_read_until_finds_a_mark_in_pieces() -> None:
    with connected(kind=socket.SOCK_SEQPACKET) as (ours, connection):
        for piece in (b"one\r", b"\n\r", b"\ntwo\r\n\r\nthree"):
            ours.send(piece)
        ours.shutdown(socket.SHUT_WR)
        assert connection.read_until(b"\r\n\r\n") == b"one\r\n\r\n"
        assert connection.read_until(b"\r\n\r\n") == b"two\r\n\r\n"
        with pytest.raises(EOFError, match="the stream ended after 5 bytes") as ended:
            connection.read_until(b"\r\n\r\n")
        assert isinstance(ended.value, forkd.Truncated)


@pytest.mark.parametrize("pieces", [[b"123\n", b"45678"], [b"123\n4", b"5678\n"], [b"123\n45678\n"]])
def test_read_until_has_a_limit_however_the_bytes_come(pieces: list[bytes]) -> None:
    with connected(kind=socket.SOCK_SEQPACKET) as (ours, connection):
        for piece in pieces:
            ours.send(piece)
        assert connection.read_until(b"\n", 4) == b"123\n"
        with pytest.raises(forkd.OverLimit, match="within 5 bytes"):
            connection.read_until(b"\n", 5)
        assert connection.read_exactly(5) == b"45678", "the bytes that were too long must still be there"


@pytest.mark.parametrize(
    "read",
    [
        lambda connection: connection.recv(0),
        lambda connection: connection.recv(-1),
        lambda connection: connection.read_exactly(-1),
        lambda connection: connection.read_until(b""),
    ],
)
def test_reading_nonsense_is_a_mistake(read: Callable[[Connection], object]) -> None:
    with connected() as (ours, connection):
        ours.sendall(b"abc")
        with pytest.raises(ValueError, match=r"at least one byte|cannot read"):
            read(connection)
        assert connection.recv(10) == b"abc"


def test_bytes_left_by_read_until_go_to_requests() -> None:
    with connected() as (ours, connection):
        ours.sendall(b"HELLO\nfirst\nsecond\nthi")
        assert connection.read_until(b"\n") == b"HELLO\n"
        requests = connection.requests(forkd.Lines())
        assert [next(requests), next(requests)] == [b"first", b"second"]
        ours.sendall(b"rd\n")
        ours.shutdown(socket.SHUT_WR)
        assert list(requests) == [b"third"]


def test_requests_may_follow_one_another_with_different_framings() -> None:
    framing = forkd.Lines()
    with connected(kind=socket.SOCK_SEQPACKET) as (ours, connection):
        for piece in (b"a\n", b"b\n", b"xxyy"):
            ours.send(piece)
        ours.shutdown(socket.SHUT_WR)
        assert [request for _, request in zip(range(2), connection.requests(framing), strict=False)] == [b"a", b"b"]
        assert list(connection.requests(forkd.Fixed(2))) == [b"xx", b"yy"]


def test_requests_before_an_end_of_the_framing_are_given_first() -> None:
    with connected() as (ours, connection):
        ours.sendall(b"a\nbcdef\n")
        requests = connection.requests(forkd.Lines(3))
        assert next(requests) == b"a"
        with pytest.raises(forkd.OverLimit):
            next(requests)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=9), max_size=9), st.lists(st.integers(0, 20), max_size=9))
def test_nothing_is_lost_or_doubled(pieces: list[bytes], sizes: list[int]) -> None:
    with connected(kind=socket.SOCK_SEQPACKET) as (ours, connection):
        for piece in pieces:
            ours.send(piece)
        ours.shutdown(socket.SHUT_WR)
        read = bytearray()
        for size in sizes:
            try:
                read += connection.read_exactly(size)
            except EOFError:
                break
        while data := connection.recv(1000):
            read += data
        assert bytes(read) == b"".join(pieces)


# Deadlines.


@pytest.mark.parametrize(
    ("sent", "read", "what"),
    [
        (b"", lambda connection: connection.recv(1), "idle"),
        (b"", lambda connection: connection.read_exactly(5), "idle"),
        (b"ab", lambda connection: connection.read_exactly(5), "read"),
        (b"", lambda connection: connection.read_until(b"\n"), "idle"),
        (b"ab", lambda connection: connection.read_until(b"\n"), "read"),
        (b"", lambda connection: list(connection.requests(forkd.Lines())), "idle"),
    ],
)
def test_silence_is_a_timeout_error_and_the_bytes_stay(
    sent: bytes, read: Callable[[Connection], object], what: str
) -> None:
    limits = Deadlines(idle_timeout=0.02 if what == "idle" else 5, read_timeout=0.02 if what == "read" else 5)
    with connected(limits=limits) as (ours, connection):
        ours.sendall(sent)
        begun = monotonic()
        with pytest.raises(TimeoutError, match=f"{what}_timeout of 0.02 s is over"):
            read(connection)
        assert monotonic() - begun >= 0.02 - JIFFY
        ours.sendall(b"more")
        assert connection.read_exactly(len(sent) + 4) == sent + b"more", "a handler may continue after a timeout"


def test_an_exact_read_has_one_deadline_for_all_its_bytes() -> None:
    with connected(limits=Deadlines(5, 0.05, 5)) as (ours, connection), ThreadPoolExecutor(1) as pool:
        ours.settimeout(0.01)
        begun = monotonic()
        reading = pool.submit(connection.read_exactly, 1000)
        while not reading.done():
            ours.sendall(b"x")
            with pytest.raises(TimeoutError):
                ours.recv(1)  # nothing arrives: the pause between two bytes of the drip
        with pytest.raises(TimeoutError, match="read_timeout"):
            reading.result()
        assert 0.05 <= monotonic() - begun < PATIENCE


def test_the_deadline_of_one_read_does_not_touch_the_next() -> None:
    with connected(limits=Deadlines(0.02, 5, 5), kind=socket.SOCK_SEQPACKET) as (ours, connection):
        for piece in (b"ab", b"cd"):
            ours.send(piece)
        assert connection.read_exactly(4) == b"abcd"
        with pytest.raises(TimeoutError, match="idle_timeout"):
            connection.recv(1)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1, (1, 0)), (0.05, (0, 50_000)), (1.5, (1, 500_000)), (1e-9, (0, 1)), (0, (315_360_000, 0))],
)
def test_timeval(seconds: float, expected: tuple[int, int]) -> None:
    assert struct.unpack("ll", timeval(seconds)) == expected


# Sending.


@pytest.mark.parametrize("data", [b"", b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_send_takes_any_bytes(data: bytes) -> None:
    with connected() as (ours, connection):
        connection.send(data)
        connection.close()
        assert ours.recv(10) == bytes(data)
        assert connection.sent == len(data)


def test_send_waits_until_all_is_taken() -> None:
    data = os.urandom(5_000_000)
    with connected() as (ours, connection), ThreadPoolExecutor(1) as pool:
        sending = pool.submit(connection.send, data)
        assert read_exactly(ours, len(data)) == data
        sending.result(PATIENCE)
        assert connection.sent == len(data)


def test_a_slow_reader_is_a_timeout_error() -> None:
    with connected(limits=Deadlines(5, 5, 0.02)) as (ours, connection):
        with pytest.raises(TimeoutError, match=r"write_timeout of 0\.02 s is over"):
            connection.send(b"x" * 5_000_000)
        with pytest.raises(TimeoutError, match=r"write_timeout of 0\.02 s is over"):
            connection.send(b"x")  # there is no room for a single byte
        assert len(read_exactly(ours, connection.sent)) == connection.sent
        connection.send(b"again")
        assert ours.recv(10) == b"again"


def test_a_client_that_is_gone_is_a_connection_error() -> None:
    with connected() as (ours, connection):
        ours.close()
        with pytest.raises(ConnectionError, match="the client broke the connection"):
            connection.send(b"x")
        connection.close()


def test_the_end_of_our_side_leaves_the_other_open() -> None:
    with connected() as (ours, connection):
        connection.send(b"last")
        connection.close()
        connection.close()
        assert [ours.recv(10), ours.recv(10)] == [b"last", b""]
        ours.sendall(b"still here")
        assert connection.recv(100) == b"still here"
        with pytest.raises(ValueError, match=r"nothing can be sent after close\(\)"):
            connection.send(b"x")


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += sock.recv(size - len(data))
    return bytes(data)


# Addresses. Each listener stays open until its connection has been examined.


@contextmanager
def accepted(listener: socket.socket, client: socket.socket, to: Any) -> Iterator[Connection]:
    with listener, client:
        client.connect(to)
        theirs, peer = listener.accept()
        with theirs:
            yield Connection(theirs, peer=peer)


def test_addresses_ipv4() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.socket()
    client.bind(("127.0.0.2", 0))
    with accepted(listener, client, listener.getsockname()) as connection:
        assert connection.peer == Address("127.0.0.2", client.getsockname()[1])
        assert connection.local == Address("127.0.0.1", listener.getsockname()[1])
        assert str(connection.local) == f"127.0.0.1:{connection.local.port}"


def test_a_wildcard_listener_tells_what_the_client_called() -> None:
    listener = socket.create_server(("0.0.0.0", 0))
    with accepted(listener, socket.socket(), ("127.0.0.3", listener.getsockname()[1])) as connection:
        assert connection.local.host == "127.0.0.3"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_addresses_ipv6() -> None:
    listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with accepted(listener, socket.socket(socket.AF_INET6), listener.getsockname()) as connection:
        assert connection.peer.host == connection.local.host == "::1"
        assert str(connection.local) == f"[::1]:{listener.getsockname()[1]}"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ipv4_over_a_dual_stack_listener_is_shown_as_ipv4() -> None:
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with accepted(listener, socket.socket(), ("127.0.0.1", listener.getsockname()[1])) as connection:
        assert connection.peer.host == connection.local.host == "127.0.0.1"
        assert str(connection.local) == f"127.0.0.1:{listener.getsockname()[1]}"


def unix(name: str | bytes | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    if name is not None:
        sock.bind(name)
    return sock


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "unix:"),
        ("client.sock", "unix:{folder}/client.sock"),
        (b"client-\xff.sock", "unix:{folder}/client-\\xff.sock"),
        (b"\0forkd-test-%d" % os.getpid(), f"unix:@forkd-test-{os.getpid()}"),
        (b"\0forkd-test-\xff%d" % os.getpid(), f"unix:@forkd-test-\\xff{os.getpid()}"),
    ],
    ids=["unnamed", "named", "no text", "abstract", "abstract, no text"],
)
def test_addresses_unix(tmp_path: Path, name: str | bytes | None, expected: str) -> None:
    if isinstance(name, bytes) and not name.startswith(b"\0"):
        name = os.fsencode(tmp_path) + b"/" + name
    elif isinstance(name, str):
        name = str(tmp_path / name)
    listener = unix(str(tmp_path / "listener.sock"))
    listener.listen()
    with accepted(listener, unix(name), listener.getsockname()) as connection:
        assert str(connection.peer) == expected.format(folder=tmp_path)
        assert str(connection.local) == f"unix:{tmp_path}/listener.sock"
        str(connection.peer).encode()


def test_addresses_of_an_abstract_listener() -> None:
    listener = unix(b"\0forkd-test-listener-%d" % os.getpid())
    listener.listen()
    with accepted(listener, unix(None), listener.getsockname()) as connection:
        assert connection.local == Address(f"@forkd-test-listener-{os.getpid()}", 0, "unix")


def test_the_peer_is_asked_for_where_accept_did_not_tell() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        theirs, _ = listener.accept()
        with theirs:
            assert Connection(theirs).peer == Address("127.0.0.1", client.getsockname()[1])
