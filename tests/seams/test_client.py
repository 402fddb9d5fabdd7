"""Connecting and the client, against real sockets: what is sent and printed, and the messages for failures."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pty
import random
import signal
import socket
import struct
import tempfile
import threading
import tty
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from forkd.cli import client
from forkd.errors import (
    AddressError,
    BrokenOffError,
    ForkdError,
    TimedOutError,
    UnreachableError,
    UsageError,
)
from forkd.kernel.address import Address, from_sockaddr, parse
from forkd.sockets import dial, explain

# Limits, in seconds, that tests exceed on purpose. Nothing else here takes noticeable time.
SOON = 0.05
LATER = 0.15

Behaviour = Callable[[socket.socket], object]


# Servers, each for a single connection.


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def count(connection: socket.socket) -> None:
    """Answers only after the client has ended its side."""
    total = 0
    while data := connection.recv(65536):
        total += len(data)
    connection.sendall(b"%d bytes\n" % total)


def reset(connection: socket.socket) -> None:
    """Closes with RST instead of FIN: SO_LINGER of 0 seconds, see socket(7)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def only_listen(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


@contextlib.contextmanager
def serving(behaviour: Behaviour, listener: socket.socket | None = None) -> Iterator[Address]:
    """Runs a server in a thread that accepts one connection, plays its part and closes it."""
    listener = listener or socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            behaviour(connection)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with listener:
        yield from_sockaddr(listener.family, listener.getsockname())
        server.join(10)
        assert not server.is_alive()


@contextlib.contextmanager
def silence() -> Iterator[Address]:
    """Yields a server that reads and sends nothing: the kernel completes the connection, but no process accepts it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield from_sockaddr(listener.family, listener.getsockname())


def piped(data: bytes) -> int:
    """Returns the read end of a pipe that holds `data` (at most what fits) and then ends."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def talk(
    address: Address,
    requests: Sequence[bytes] | None = None,
    said: bytes = b"",
    *,
    timeout: float | None = 10,
    end: bytes = b"\n",
    printed: bytearray | None = None,
) -> bytes:
    """Calls `address` with `requests`, or with `said` on a pipe. Returns the output, and adds it to `printed`."""
    reading = piped(said)
    with dial.connect(address) as sock, tempfile.TemporaryFile() as output:
        try:
            client.call(sock, requests, reading, output, timeout=timeout, end=end)
        finally:
            os.close(reading)
            output.seek(0)
            result = output.read()
            if printed is not None:
                printed += result
    return result


# What is sent and printed.


def test_each_request_gets_its_newline_and_every_reply_is_printed() -> None:
    with serving(echo) as address:
        assert talk(address, [b"one", b"two"], b"not read") == b"one\ntwo\n"


def test_the_end_of_a_request_can_be_chosen() -> None:
    with serving(echo) as address:
        assert talk(address, [b"one", b"two"], end=b"\r\n") == b"one\r\ntwo\r\n"


@pytest.mark.parametrize("requests", [None, []])
def test_without_requests_the_input_is_copied_as_it_is(requests: list[bytes] | None) -> None:
    with serving(echo) as address:
        assert talk(address, requests, b"one\n\0\xff\nno newline") == b"one\n\0\xff\nno newline"


def test_our_side_ends_with_the_input_and_the_rest_is_printed() -> None:
    with serving(count) as address:
        assert talk(address, None, b"12345") == b"5 bytes\n"


def test_our_side_ends_at_once_where_there_is_nothing_to_say() -> None:
    with serving(count) as address:
        assert talk(address) == b"0 bytes\n"


def test_a_server_may_speak_first_and_leave() -> None:
    with serving(lambda connection: connection.sendall(b"Tuesday\r\n")) as address:
        assert talk(address) == b"Tuesday\r\n"


def test_a_regular_file_is_an_input(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    path.write_bytes(b"x" * 300_000)
    with serving(count) as address, dial.connect(address) as sock, path.open("rb") as requests:
        reading, writing = os.pipe()
        client.call(sock, None, requests, writing)
        assert os.read(reading, 100) == b"300000 bytes\n"
        os.close(reading)
        os.close(writing)


def test_dev_null_is_an_input() -> None:
    with serving(count) as address, dial.connect(address) as sock, Path(os.devnull).open("rb") as nothing:
        client.call(sock, None, nothing, None)


def test_a_closed_input_is_an_empty_one() -> None:
    with serving(count) as address, dial.connect(address) as sock:
        closed = os.dup(0)
        os.close(closed)
        client.call(sock, None, closed, None)


def test_a_closed_input_counts_as_empty() -> None:
    with serving(count) as address, dial.connect(address) as sock:
        client.call(sock, None, None, None)


def test_a_socket_may_be_input_and_output_at_once() -> None:
    ours, theirs = socket.socketpair()
    with serving(echo) as address, dial.connect(address) as sock, ours, theirs:
        theirs.sendall(b"hello\n")
        theirs.shutdown(socket.SHUT_WR)
        client.call(sock, None, ours.fileno(), ours.fileno())
        assert theirs.recv(100) == b"hello\n"


@pytest.mark.slow
def test_much_flows_both_ways_through_pipes_at_the_same_time() -> None:
    block = random.Random(1).randbytes(1 << 20)
    blocks = 32
    in_reading, in_writing = os.pipe()
    out_reading, out_writing = os.pipe()
    received = hashlib.sha256()

    def say() -> None:
        with os.fdopen(in_writing, "wb") as pipe:
            for _ in range(blocks):
                pipe.write(block)

    def hear() -> None:
        with os.fdopen(out_reading, "rb") as pipe:
            while data := pipe.read(65536):
                received.update(data)

    threads = [threading.Thread(target=say, daemon=True), threading.Thread(target=hear, daemon=True)]
    with serving(echo) as address, dial.connect(address) as sock:
        for thread in threads:
            thread.start()
        client.call(sock, None, in_reading, out_writing, timeout=10)
    os.close(out_writing)
    for thread in threads:
        thread.join(10)
    os.close(in_reading)
    assert received.digest() == hashlib.sha256(block * blocks).digest()


def test_a_typed_line_is_answered_before_the_next_one() -> None:
    with typing(echo) as (typed, shown, _):
        for line in (b"one\n", b"two\n"):
            os.write(typed, line)
            assert os.read(shown, 100) == line


def test_on_a_terminal_a_line_that_was_left_open_is_ended() -> None:
    with serving(lambda connection: connection.sendall(b"> ")) as address:
        assert shown_on_a_terminal(address) == b"> \n"


def test_on_a_terminal_nothing_is_added_to_a_whole_line() -> None:
    with serving(lambda connection: connection.sendall(b"bye\n")) as address:
        assert shown_on_a_terminal(address) == b"bye\n"


def shown_on_a_terminal(address: Address) -> bytes:
    screen, terminal = pty.openpty()
    tty.setraw(terminal)  # otherwise the terminal turns \n into \r\n
    with dial.connect(address) as sock:
        client.call(sock, None, None, terminal)
    os.close(terminal)
    shown = b""
    with os.fdopen(screen, "rb", buffering=0) as rest, contextlib.suppress(OSError):  # its end is EIO (pty(7))
        while piece := rest.read(100):  # one write at a time
            shown += piece
    return shown


def test_an_output_without_a_reader_ends_the_call_quietly() -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"hello\n")
        only_listen(connection)

    reading, writing = os.pipe()
    os.close(reading)
    never_written, open_end = os.pipe()
    with serving(greet) as address, dial.connect(address) as sock:
        client.call(sock, None, never_written, writing)
    for descriptor in (writing, never_written, open_end):
        os.close(descriptor)


def test_an_output_that_cannot_be_written_is_reported() -> None:
    with serving(echo) as address, dial.connect(address) as sock, Path("/dev/full").open("wb") as full:  # noqa: SIM117
        with pytest.raises(ForkdError, match=r"standard output cannot be written: .*ENOSPC"):
            client.call(sock, [b"hello"], None, full)


def test_an_input_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with serving(echo) as address, dial.connect(address) as sock:  # noqa: SIM117
        with pytest.raises(ForkdError, match=r"standard input cannot be read: .*EISDIR"):
            client.call(sock, None, folder, None)
    os.close(folder)


def test_an_interrupt_passes_through() -> None:
    main = threading.main_thread().ident
    assert main

    def interrupt(connection: socket.socket) -> None:
        connection.recv(100)
        signal.pthread_kill(main, signal.SIGINT)
        only_listen(connection)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with serving(interrupt) as address, pytest.raises(KeyboardInterrupt):
            talk(address, [b"hello"])
    finally:
        signal.signal(signal.SIGINT, before)


# Broken connections and silence.


def test_a_reset_is_a_break() -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(100)
        reset(connection)

    with serving(break_off) as address, pytest.raises(BrokenOffError, match=f"{address} broke .*ECONNRESET") as caught:
        talk(address, [b"hello"])
    assert int(caught.value.exit_status) == 76


def test_bytes_before_a_break_are_printed() -> None:
    def answer_once(connection: socket.socket) -> None:
        connection.sendall(connection.recv(5))
        connection.recv(1)
        connection.sendall(b" last words")
        connection.close()  # unread bytes make the kernel send a reset: RFC 2525, 2.17

    printed = bytearray()
    with serving(answer_once) as address, pytest.raises(BrokenOffError):
        talk(address, None, b"hello, and much more", printed=printed)
    assert printed == b"hello last words"


def test_bytes_after_a_break_of_our_side_are_printed() -> None:
    ours, theirs = socket.socketpair()
    reading = piped(b"")
    with ours, theirs, tempfile.TemporaryFile() as output:
        theirs.shutdown(socket.SHUT_RD)
        theirs.sendall(b"last words")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenOffError, match=r"the server broke .*EPIPE"):
            client.call(ours, [b"hello"], reading, output, timeout=10)
        output.seek(0)
        assert output.read() == b"last words"
    os.close(reading)


def test_a_server_that_leaves_before_all_was_sent_broke_off(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    path.write_bytes(b"hello\n" * 1_000_000)

    def leave(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1, socket.MSG_PEEK)

    with serving(leave) as address, dial.connect(address) as sock, path.open("rb") as requests:  # noqa: SIM117
        with pytest.raises(BrokenOffError, match=r"before all requests were sent|ECONNRESET|EPIPE"):
            client.call(sock, None, requests, None)


def test_a_server_that_says_goodbye_while_a_request_is_readable_broke_off() -> None:
    with serving(lambda connection: connection.shutdown(socket.SHUT_WR)) as address, dial.connect(address) as sock:
        assert sock.recv(1, socket.MSG_PEEK) == b""  # the end arrives before the call begins
        reading = piped(b"hello\n")
        with pytest.raises(BrokenOffError, match="before all requests were sent"):
            client.call(sock, None, reading, None)
        os.close(reading)


def test_a_goodbye_after_the_last_request_so_far_is_a_good_end() -> None:
    def until_quit(connection: socket.socket) -> None:
        assert connection.recv(100) == b"quit\n"
        connection.sendall(b"bye\n")

    with typing(until_quit) as (typed, shown, calling):
        os.write(typed, b"quit\n")
        assert os.read(shown, 100) == b"bye\n"
        calling.join(10)  # although the input is still open
        assert not calling.is_alive()


@pytest.mark.parametrize("requests", [[b"hello"], None], ids=["after a request", "after the end of input"])
def test_silence_has_a_limit(requests: list[bytes] | None) -> None:
    with silence() as address, pytest.raises(TimedOutError, match=rf"{address} .*silent for 0\.05 s") as e:
        talk(address, requests, timeout=SOON)
    assert int(e.value.exit_status) == 75


def test_a_server_that_does_not_read_counts_as_silent(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    path.touch()
    os.truncate(path, 64 << 20)
    with silence() as address, dial.connect(address) as sock, path.open("rb") as requests:  # noqa: SIM117
        with pytest.raises(TimedOutError):
            client.call(sock, None, requests, None, timeout=SOON)


def test_the_limit_does_not_apply_to_the_user() -> None:
    # Leaves room for an echo that is late on a busy machine.
    with typing(echo, timeout=10 * SOON) as (typed, shown, _):
        os.write(typed, b"one\n")
        assert os.read(shown, 100) == b"one\n"
        with silence() as another, pytest.raises(TimedOutError):
            talk(another, timeout=10 * SOON + LATER)  # the first call would have given up by now
        os.write(typed, b"two\n")
        assert os.read(shown, 100) == b"two\n"


@contextlib.contextmanager
def typing(behaviour: Behaviour, timeout: float | None = 10) -> Iterator[tuple[int, int, threading.Thread]]:
    """Starts a call in a thread. Yields its input, its output and the thread, which must end without an error."""
    keyboard, typed = os.pipe()
    shown, screen = os.pipe()
    failures: list[ForkdError] = []

    def calling() -> None:
        try:
            with dial.connect(address) as sock:
                client.call(sock, None, keyboard, screen, timeout=timeout)
        except ForkdError as error:
            failures.append(error)
            os.write(screen, str(error).encode())

    with serving(behaviour) as address:
        thread = threading.Thread(target=calling, daemon=True)
        thread.start()
        yield typed, shown, thread
        os.close(typed)
        thread.join(10)
    for descriptor in (keyboard, shown, screen):
        os.close(descriptor)
    assert not thread.is_alive()
    assert failures == []


# Failed connections.


def refusing() -> tuple[socket.socket, Address]:
    """Returns a socket that is bound but does not listen, so no other process can take its address, and the address."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock, from_sockaddr(sock.family, sock.getsockname())


def test_a_closed_port_is_refused() -> None:
    sock, address = refusing()
    with sock, pytest.raises(UnreachableError) as caught:
        dial.connect(address)
    assert int(caught.value.exit_status) == 69
    assert str(caught.value).startswith(f"cannot connect to {address}: no process listens there (ECONNREFUSED); ")


def test_every_address_tried_is_reported() -> None:
    sock, address = refusing()
    with sock, pytest.raises(UnreachableError) as caught:
        dial.connect(parse(f"*:{address.port}"))
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"cannot connect to 127.0.0.1:{address.port} (*:{address.port}): ") for line in lines)
    assert len(lines) == len(socket.getaddrinfo(None, address.port, type=socket.SOCK_STREAM))


def test_the_next_address_is_tried_where_the_first_refuses() -> None:
    with serving(count) as address:
        assert talk(Address("*", address.port)) == b"0 bytes\n"


def fill(address: Address, held: contextlib.ExitStack) -> None:
    """Connects to a listener that accepts nothing, until its queue is full and a connect fails."""
    while True:
        held.enter_context(dial.connect(address, timeout=SOON))


def test_a_full_queue_is_a_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as held:
        address = from_sockaddr(listener.family, listener.getsockname())
        with pytest.raises(TimedOutError, match=rf"{address}: no answer within 0\.05 s \(ETIMEDOUT\)"):
            fill(address, held)


def test_a_time_out_outweighs_a_refusal() -> None:
    with silence() as address, contextlib.ExitStack() as held:
        with pytest.raises(TimedOutError):
            fill(address, held)
        with pytest.raises(TimedOutError, match=r"(?s)ECONNREFUSED.*ETIMEDOUT"):
            dial.connect(Address("*", address.port), timeout=SOON)


def test_a_full_queue_of_a_unix_socket_is_a_time_out(tmp_path: Path) -> None:
    address = Address(str(tmp_path / "full"), 0, "unix")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as held:
        listener.bind(address.host)
        listener.listen(0)
        with pytest.raises(TimedOutError, match=r"it accepted no one within 0\.05 s \(EAGAIN\)"):
            fill(address, held)


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets_are_called(tmp_path: Path, abstract: bool) -> None:
    name = f"\0forkd-test-{os.getpid()}" if abstract else str(tmp_path / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen()
    with serving(echo, listener) as address:
        assert talk(parse(str(address)), [b"hello"], timeout=SOON * 100) == b"hello\n"


def test_a_unix_socket_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    check_unix(path, "no process listens there, and a socket file would be stale (ECONNREFUSED)")


def test_a_unix_socket_that_is_not_there(tmp_path: Path) -> None:
    check_unix(tmp_path / "missing", "no such socket (ENOENT)")


def test_a_unix_socket_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_unix(tmp_path / "file" / "socket", "no such socket: its folder is a file (ENOTDIR)")


def test_a_unix_socket_of_another_type(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(tmp_path / "datagrams"))
        check_unix(tmp_path / "datagrams", "the socket is not a stream socket (EPROTOTYPE)")


def test_an_abstract_socket_that_is_not_there() -> None:
    with pytest.raises(UnreachableError, match=r"cannot connect to unix:@forkd-test-nobody: .*\(ECONNREFUSED\)"):
        dial.connect(parse("unix:@forkd-test-nobody"))


def check_unix(path: Path, words: str) -> None:
    with pytest.raises(UnreachableError) as caught:
        dial.connect(Address(str(path), 0, "unix"))
    assert str(caught.value).startswith(f"cannot connect to unix:{path}: {words}; ")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid"])
def test_a_name_that_is_not_found(host: str) -> None:
    # Without a network, no name server may be there to say so (by RFC 6761, 6.4, .invalid never resolves).
    with pytest.raises(UnreachableError, match=rf"cannot connect to {host}:7: no such host.* \(EAI_\w+\); check"):
        dial.connect(Address(host, 7))


@pytest.mark.parametrize("text", ["systemd:echo", "127.0.0.1:0"])
def test_addresses_that_cannot_be_called(text: str) -> None:
    with pytest.raises(UsageError, match=f"cannot connect to {text}: write"):
        dial.connect(parse(text))


# The local end.


def seen_peer(source: str | Address | None, target: str = "127.0.0.1") -> tuple[str, int]:
    """Returns the address that the server sees if the client calls `target` from `source`."""
    peers: list[tuple[str, int]] = []
    with serving(lambda connection: peers.append(connection.getpeername())) as address:
        dial.connect(Address(target, address.port), source=source).close()
    return peers[0]


@pytest.mark.parametrize("source", ["127.0.0.5", "127.0.0.5:0", Address("127.0.0.5")])
def test_the_server_sees_the_source(source: str | Address) -> None:
    assert seen_peer(source)[0] == "127.0.0.5"


def test_a_source_chooses_among_the_kinds_of_address() -> None:
    assert seen_peer("127.0.0.5", target="*")[0] == "127.0.0.5"


@pytest.mark.parametrize("host", ["127.0.0.5", "*"])
def test_the_server_sees_the_source_port_again_and_again(host: str) -> None:
    sock, address = refusing()
    sock.close()
    for _ in range(3):
        assert seen_peer(f"{host}:{address.port}")[1] == address.port


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.5", Address("127.0.0.5")),
        ("127.0.0.5:99", Address("127.0.0.5", 99)),
        ("host.example", Address("host.example")),
        ("::1", Address("::1")),
        ("[::1]", Address("::1")),
        ("[::1]:99", Address("::1", 99)),
        ("fe80::1%lo", Address("fe80::1%lo")),
    ],
)
def test_ways_to_write_a_source(text: str, address: Address) -> None:
    assert dial.parse_source(text) == address


@pytest.mark.parametrize("text", ["", "1.2.3.4.5", "[::1", "host:port"])
def test_invalid_sources(text: str) -> None:
    with pytest.raises(AddressError):
        dial.parse_source(text)


def test_a_source_that_is_not_ours() -> None:
    with pytest.raises(
        UnreachableError, match=r"cannot connect from 198\.18\.0\.1:0: .*no such address \(EADDRNOTAVAIL\)"
    ):
        dial.connect(Address("127.0.0.1", 7), source="198.18.0.1")


def test_a_source_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = from_sockaddr(listener.family, listener.getsockname())
        with pytest.raises(UnreachableError, match=f"cannot connect from {taken}: .*already in use .EADDRINUSE"):
            dial.connect(Address("127.0.0.1", 7), source=taken)


def test_a_source_name_that_is_not_found() -> None:
    with pytest.raises(UnreachableError, match=r"cannot connect from no-such-host\.invalid:0: no such host"):
        dial.connect(Address("127.0.0.1", 7), source="no-such-host.invalid")


@pytest.mark.parametrize(
    ("target", "source"), [("[::1]:7", "127.0.0.5"), ("unix:/x", "127.0.0.5"), ("[::1]:7", "unix:/x")]
)
def test_a_source_of_another_kind(target: str, source: str) -> None:
    with pytest.raises(UsageError, match=r"cannot connect to .* from .*: "):
        dial.connect(parse(target), source=source)


def test_a_socket_connected_to_itself_is_not_a_server() -> None:
    sock, address = refusing()
    sock.close()
    with pytest.raises(UnreachableError, match="ECONNREFUSED"):
        dial.connect(address, source=address)


# The meaning of each errno.

HERE = Address("198.18.0.1", 7)
PATH = Address("/run/forkd/echo.sock", 0, "unix")


@pytest.mark.parametrize(
    ("number", "address", "kind", "words"),
    [
        (errno.ECONNREFUSED, HERE, UnreachableError, "no process listens there (ECONNREFUSED)"),
        (errno.ETIMEDOUT, HERE, TimedOutError, "no answer until the kernel gave up (ETIMEDOUT)"),
        (
            errno.EHOSTUNREACH,
            HERE,
            UnreachableError,
            "host unreachable: it is down or a router refuses (EHOSTUNREACH)",
        ),
        (errno.ENETUNREACH, HERE, UnreachableError, "network unreachable: there is no route to it (ENETUNREACH)"),
        (errno.ENETDOWN, HERE, UnreachableError, "network unreachable: the network interface is down (ENETDOWN)"),
        (errno.EACCES, HERE, UnreachableError, "a route or a firewall prohibits it (EACCES)"),
        (errno.EPERM, HERE, UnreachableError, "a firewall or a security policy prohibits it (EPERM)"),
        (errno.EINVAL, HERE, UnreachableError, "the route is a black hole"),
        (errno.EADDRNOTAVAIL, HERE, UnreachableError, "no local address or port is free (EADDRNOTAVAIL)"),
        (errno.EADDRINUSE, HERE, UnreachableError, "another connection uses the local port (EADDRINUSE)"),
        (
            errno.EAFNOSUPPORT,
            HERE,
            UnreachableError,
            "this machine does not support that kind of address (EAFNOSUPPORT)",
        ),
        (errno.ENOPROTOOPT, HERE, UnreachableError, "the host refuses TCP itself (ENOPROTOOPT)"),
        (errno.ECONNRESET, HERE, BrokenOffError, "the server closed the connection at once (ECONNRESET)"),
        (errno.EMFILE, HERE, UnreachableError, "Too many open files (EMFILE)"),
        (9999, HERE, UnreachableError, "Unknown error 9999 (errno 9999)"),
        (errno.ENOENT, PATH, UnreachableError, "no such socket (ENOENT)"),
        (errno.ENOTDIR, PATH, UnreachableError, "no such socket: its folder is a file (ENOTDIR)"),
        (
            errno.ECONNREFUSED,
            PATH,
            UnreachableError,
            "no process listens there, and a socket file would be stale (ECONNREFUSED)",
        ),
        (errno.ENOTSOCK, PATH, UnreachableError, "the file is not a socket (ENOTSOCK)"),
        (errno.EPROTOTYPE, PATH, UnreachableError, "the socket is not a stream socket (EPROTOTYPE)"),
        (errno.EACCES, PATH, UnreachableError, "you may not write to the socket or enter its folder (EACCES)"),
        (errno.EPERM, PATH, UnreachableError, "a security policy prohibits it (EPERM)"),
        (
            errno.EAGAIN,
            PATH,
            TimedOutError,
            "the server's accept queue is full and it accepted no one within 2 s (EAGAIN)",
        ),
    ],
)
def test_an_errno_in_words(number: int, address: Address, kind: type[ForkdError], words: str) -> None:
    found = explain.explain(OSError(number, os.strerror(number)), address, timeout=2)
    assert type(found) is kind
    assert str(found).startswith(f"cannot connect to {address}: {words}")


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (socket.EAI_NONAME, "EAI_NONAME", "no such host"),
        (socket.EAI_NODATA, "EAI_NODATA", "no such host"),
        (socket.EAI_ADDRFAMILY, "EAI_ADDRFAMILY", "no such host"),
        (socket.EAI_AGAIN, "EAI_AGAIN", "the host is unknown because no name server answers"),
        (socket.EAI_FAIL, "EAI_FAIL", "the host is unknown because no name server answers"),
        (socket.EAI_MEMORY, "EAI_MEMORY", "Out of memory"),
        (-999, "EAI -999", "Unknown"),
    ],
)
def test_a_failed_lookup_in_words(number: int, name: str, words: str) -> None:
    for words_for, what in ((explain.explain, "connect to"), (explain.explain_source, "connect from")):
        found = words_for(socket.gaierror(number, words), Address("host.example", 7))
        assert type(found) is UnreachableError
        assert str(found).startswith(f"cannot {what} host.example:7: {words} ({name})")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EADDRNOTAVAIL, "this machine has no such address (EADDRNOTAVAIL)"),
        (errno.EADDRINUSE, "the port is already in use (EADDRINUSE)"),
        (errno.EACCES, "only root may use a port below 1024 (EACCES)"),
        (errno.EPERM, "a security policy prohibits it (EPERM)"),
        (errno.ENOBUFS, "No buffer space available (ENOBUFS)"),
    ],
)
def test_a_failed_source_in_words(number: int, words: str) -> None:
    found = explain.explain_source(OSError(number, os.strerror(number)), HERE)
    assert type(found) is UnreachableError
    assert str(found).startswith(f"cannot connect from {HERE}: {words}")


def test_our_own_limit_is_distinguished_from_the_kernels() -> None:
    found = explain.explain(TimeoutError("timed out"), HERE, name="host.example:7", timeout=2.5)
    assert type(found) is TimedOutError
    assert str(found).startswith(f"cannot connect to {HERE} (host.example:7): no answer within 2.5 s (ETIMEDOUT); ")
