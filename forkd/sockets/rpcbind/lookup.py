"""Finds the address of an RPC program on a host (`forkd call --rpc`).

It asks the host's own port mapper over TCP (RFC 1833). `protocol` knows what that may answer, `sockets.dial`
connects to it.
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
    """Parses PROGRAM[:VERSION], decimal or 0x hex; the version is 1 by default. Raises UsageError."""
    found = re.fullmatch(f"({_NUMBER})(?::({_NUMBER}))?", text)
    numbers = [int(each, 16 if each[:2] in ("0x", "0X") else 10) for each in found.groups("1")] if found else []
    if not numbers or not 1 <= numbers[0] <= 0xFFFFFFFF or numbers[1] > 0xFFFFFFFF:
        raise UsageError(f"{text!r} is not an RPC program: write PROGRAM or PROGRAM:VERSION, as in 0x20049001:1")
    return Mapping(*numbers)


def parse_host(text: str) -> str:
    """Parses HOST, [IPV6] or IPV6; UsageError if there is a port as well."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return parse(f"[{bare}]:{protocol.PORT}" if ":" in bare else f"{bare}:{protocol.PORT}").host
    except ForkdError:
        raise UsageError(
            f"{text!r} is not a host: with --rpc, write it without a port; the port mapper supplies that"
        ) from None


def look_up(host: str, program: Mapping, *, timeout: float = 5.0, source: str | None = None) -> Address:
    """Asks the port mapper of `host` where that host serves the program.

    Each address is tried for `timeout` seconds, and the answer may take as long again. Raises UnreachableError
    if there is no port mapper or the program is not registered, TimedOutError and BrokenOffError.
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
                raise BrokenOffError("it closed the connection")
            message = record.feed(data)  # limited in length, so this ends
    except TimeoutError:
        raise TimedOutError(f"no complete answer within {timeout:g} s") from None
    except OSError as error:
        raise BrokenOffError(f"the connection broke ({error.strerror})") from None
    return protocol.answer(message, 1, Procedure.GETPORT)
