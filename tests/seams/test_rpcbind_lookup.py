"""From a program's number to its address, with a port mapper that answers, breaks off, hangs and lies."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest

from forkd.errors import BrokenOffError, ForkdError, TimedOutError, UnreachableError, UsageError
from forkd.kernel.address import Address
from forkd.sockets.rpcbind import protocol
from forkd.sockets.rpcbind.lookup import look_up, parse_host, parse_program
from forkd.sockets.rpcbind.protocol import Mapping
from tests.mapper import Mapper, Result

PROGRAM = Mapping(0x20049001, 1)


@pytest.fixture
def mapper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapper]:
    with closing(Mapper("127.0.0.1")) as found:
        monkeypatch.setattr(protocol, "PORT", found.port)
        yield found


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("100003", (100003, 1)),
        ("0x20049001", (0x20049001, 1)),
        ("0X20049001:0x10", (0x20049001, 16)),
        ("537169921:0", (0x20049001, 0)),
        ("4294967295:4294967295", (0xFFFFFFFF, 0xFFFFFFFF)),
    ],
)
def test_a_program_is_written_in_decimal_or_hexadecimal(text: str, program: tuple[int, int]) -> None:
    assert parse_program(text) == (*program, 0)


@pytest.mark.parametrize(
    "text", ["", "nfs", "0", "1:", ":1", "1:2:3", "-1", "0x", "4294967296", "1:4294967296", "1_0", "\u0661"]
)
def test_what_is_no_program_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="is not an RPC program"):
        parse_program(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("host.example", "host.example"),
        ("::1", "::1"),
        ("[fe80::1%lo]", "fe80::1%lo"),
        ("*", "*"),
    ],
)
def test_a_host_is_written_without_a_port(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("text", ["127.0.0.1:7007", "host:7007", "[::1]:7007", "unix:/run/x", "", "a b"])
def test_what_is_no_host_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="without a port"):
        parse_host(text)


def test_a_registered_program_is_found(mapper: Mapper) -> None:
    mapper.table[PROGRAM[:2]] = 40000
    assert look_up("127.0.0.1", PROGRAM) == Address("127.0.0.1", 40000)
    assert mapper.asked == [("GETPORT", PROGRAM[:2], 0)]


def test_a_program_that_is_not_registered(mapper: Mapper) -> None:
    with pytest.raises(UnreachableError, match=r"program 0x20049001 version 1 is not registered .* of 127\.0\.0\.1"):
        look_up("127.0.0.1", PROGRAM)


def test_no_port_mapper(mapper: Mapper) -> None:
    mapper.close()
    with pytest.raises(UnreachableError, match=r"no answer from the port mapper of 127\.0\.0\.1: .*ECONNREFUSED"):
        look_up("127.0.0.1", PROGRAM)


def test_a_port_mapper_that_hangs(mapper: Mapper) -> None:
    mapper.hangs = True
    with pytest.raises(TimedOutError, match=r"no answer from the port mapper .* within 0\.05 s"):
        look_up("127.0.0.1", PROGRAM, timeout=0.05)


def test_a_port_mapper_that_resets(mapper: Mapper) -> None:
    def reset(*_: object) -> Result:
        mapper.connections[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return None

    mapper.obey = reset
    with pytest.raises(BrokenOffError, match=r"no answer from the port mapper .*the connection broke"):
        look_up("127.0.0.1", PROGRAM)


@pytest.mark.parametrize(
    ("lie", "error", "why"),
    [
        (None, BrokenOffError, "it closed the connection"),
        (70000, UnreachableError, "makes no sense"),
        (b"220 mail.example ESMTP\r\n", UnreachableError, "longer than"),
        (bytes(100000), UnreachableError, "longer than"),
        (b"\x80\0\0\x04\0\0\0\x02", UnreachableError, "not a reply to the call"),
    ],
)
def test_a_port_mapper_that_lies(mapper: Mapper, lie: Result, error: type[ForkdError], why: str) -> None:
    mapper.obey = lambda *_: lie
    with pytest.raises(error, match=f"no answer from the port mapper .*{why}"):
        look_up("127.0.0.1", PROGRAM)
