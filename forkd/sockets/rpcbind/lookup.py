"""Lookup: an RPC program's number and a host to the address where that host serves it (`forkd call --rpc`).

The host's own port mapper is asked (RFC 1833), over TCP; what it may answer stands in `portmap`, and how
it is reached, and why it is not, in `dial`.
"""

from __future__ import annotations

import re
import socket
from time import monotonic
from typing import Final

from forkd.errors import BrokenOffError, ForkdError, TimedOutError, UnreachableError, UsageError
from forkd.kernel.address import Address, parse
from forkd.sockets import dial
from forkd.sockets.rpcbind import protocol
from forkd.sockets.rpcbind.protocol import Mapping, Procedure, RpcRecord

_NUMBER: Final = r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}"


def parse_program(text: str) -> Mapping:
    """The program that PROGRAM[:VERSION] writes, in decimal or 0x hex, version 1 unless told; UsageError if none."""
    found = re.fullmatch(f"({_NUMBER})(?::({_NUMBER}))?", text)
    numbers = [int(each, 16 if each[:2] in ("0x", "0X") else 10) for each in found.groups("1")] if found else []
    if not numbers or not 1 <= numbers[0] <= 0xFFFFFFFF or numbers[1] > 0xFFFFFFFF:
        raise UsageError(f"{text!r} is no RPC program: write PROGRAM or PROGRAM:VERSION, as in 0x20049001:1")
    return Mapping(*numbers)


def parse_host(text: str) -> str:
    """The host that HOST, [IPV6] or IPV6 writes; UsageError where a port is written as well."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return parse(f"[{bare}]:{protocol.PORT}" if ":" in bare else f"{bare}:{protocol.PORT}").host
    except ForkdError:
        raise UsageError(
            f"{text!r} is no host: with --rpc, write one without a port, for the port mapper tells it"
        ) from None


def look_up(host: str, program: Mapping, *, timeout: float = 5.0, source: str | None = None) -> Address:
    """Where `host` serves the program, by what its port mapper says.

    Each address is tried for `timeout` seconds, and so long may the answer take. Raises UnreachableError
    where there is no port mapper or the program is not registered, TimedOutError and BrokenOffError.
    """
    mapper = Address(host, protocol.PORT)
    try:
        with dial.connect(mapper, timeout=timeout, source=source) as sock:
            port = _ask(sock, program, timeout)
    except (UnreachableError, TimedOutError, BrokenOffError) as error:
        raise type(error)(f"no answer from the port mapper of {host}: {error}") from None
    if not port:
        raise UnreachableError(
            f"program {program} is not registered with the port mapper of {host} (rpcinfo -p {host})"
        )
    return Address(host, port)


def _ask(sock: socket.socket, program: Mapping, timeout: float) -> int:
    until = monotonic() + timeout
    record, message = RpcRecord(), None
    try:
        sock.settimeout(timeout)
        sock.sendall(protocol.call(1, Procedure.GETPORT, program))
        while message is None:
            sock.settimeout(max(until - monotonic(), 0.001))
            if not (data := sock.recv(protocol.LIMIT)):
                raise BrokenOffError("it ended the connection")
            message = record.feed(data)  # which is bounded, so this ends
    except TimeoutError:
        raise TimedOutError(f"it said nothing whole within {timeout:g} s") from None
    except OSError as error:
        raise BrokenOffError(f"it broke the connection off ({error.strerror})") from None
    return protocol.answer(message, 1, Procedure.GETPORT)
