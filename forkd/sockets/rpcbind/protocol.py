"""The port mapper's protocol, version 2 (RFC 1833, 3), as bytes: calls made, replies read, and what is said when.

A call is an XDR message of RFC 5531 in a record of its own (there, 11). What a port mapper answers is
bounded and checked: a reply that is no answer to our call is told as such, whatever it says. Pure: the
sockets are `registry`'s, for the machine's own port mapper, and `lookup`'s, for any other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from forkd.errors import ForkdError, UnreachableError

PORT: Final = 111
LIMIT: Final = 1024
"""No reply to our calls is longer; a longer one is not read."""

_PROGRAM: Final = 100000
_VERSION: Final = 2
_RPC: Final = 2
_TCP: Final = 6
_LAST: Final = 0x80000000
_DENIED: Final = {0: "it speaks another version of RPC", 1: "it wants other credentials"}
_REFUSED: Final = {
    1: "it is no port mapper",
    2: "it does not speak version 2 of the protocol there",
    3: "it does not know the procedure",
    4: "it could not read the call",
    5: "it failed",
}


class Procedure(IntEnum):
    """What can be asked for."""

    SET = 1
    UNSET = 2
    GETPORT = 3


class Mapping(NamedTuple):
    """A version of an RPC program, and the TCP port where it is served."""

    program: int
    version: int
    port: int = 0

    def __str__(self) -> str:
        return f"{self.program:#x} version {self.version}"


Ask: TypeAlias = tuple[Procedure, Mapping]
Script: TypeAlias = Generator[Ask, int, str]
"""What is said to a port mapper: gives what to ask, is sent the answer, and returns what went wrong, if anything."""


def call(number: int, procedure: Procedure, mapping: Mapping) -> bytes:
    """A call as it goes over a stream; its reply has the same number."""
    nobody = (0, 0, 0, 0)  # the flavour and the length of credentials and verifier: none
    words = (number, 0, _RPC, _PROGRAM, _VERSION, procedure, *nobody, *mapping[:2], _TCP, mapping.port)
    return struct.pack(f">I{len(words)}I", _LAST | 4 * len(words), *words)


class RpcRecord:
    """The next record of a stream, gathered from its fragments, however the bytes are split on the way."""

    def __init__(self) -> None:
        self._come = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """The record, when it is complete. UnreachableError for one that is too long or followed by more."""
        self._come += data
        message = bytearray()
        at = 0
        while len(self._come) >= at + 4:
            (mark,) = struct.unpack_from(">I", self._come, at)
            begin, at = at + 4, at + 4 + (mark & ~_LAST)
            if at > LIMIT:
                break
            message += self._come[begin:at]
            if mark & _LAST and len(self._come) >= at:
                if len(self._come) > at:
                    raise _nonsense("it says more than it was asked")
                return bytes(message)
        if max(at, len(self._come)) > LIMIT:
            raise _nonsense(f"its reply is longer than {LIMIT} bytes")
        return None


def answer(message: bytes, number: int, procedure: Procedure) -> int:
    """The result that a reply to call `number` holds: a port, or 1 for yes and 0 for no. UnreachableError if none."""
    words: tuple[int, ...] = struct.unpack(f">{len(message) // 4}I", message[: len(message) // 4 * 4])
    if len(message) % 4 or len(words) < 4 or words[:2] != (number, 1):
        raise _nonsense("its answer is no reply to the call")
    if words[2] != 0:
        raise _nonsense(_DENIED.get(words[3], "it denies the call"))
    verifier = -(-words[4] // 4) if len(words) > 4 else 0  # its length in words, rounded up
    rest = words[5 + verifier :]
    if rest and rest[0]:
        raise _nonsense(_REFUSED.get(rest[0], "it refuses the call"))
    most = 65535 if procedure is Procedure.GETPORT else 1
    if len(rest) != 2 or rest[1] > most:
        raise _nonsense("its answer makes no sense")
    return rest[1]


def register(mapping: Mapping, stale: Callable[[int], bool]) -> Script:
    """Has the program mapped to our port; in place of a port that is `stale`, not of one where somebody is served.

    To be said again from time to time: what is mapped already is left as it is.
    """
    port = 0
    for _ in range(2):
        if (yield Procedure.SET, mapping):
            return ""
        port = yield Procedure.GETPORT, mapping
        if port == mapping.port:  # RFC 1833 refuses to set what is set; rpcbind does not
            return ""
        if port and not stale(port):
            return f"another server has it, on port {port} (rpcinfo -p shows it)"
        if port:  # rpcbind has removed it by now, if it found nobody there
            yield Procedure.UNSET, mapping
    if port:
        return f"port {port} has it, where nobody listens, and only its owner or root may remove that (rpcinfo -d)"
    return "the port mapper refuses it"


def withdraw(mapping: Mapping) -> Script:
    """Has the program's mapping removed if it still leads to our port: UNSET asks no port, and is obeyed for any."""
    if (yield Procedure.GETPORT, mapping) == mapping.port:
        yield Procedure.UNSET, mapping
    return ""


def _nonsense(what: str) -> ForkdError:
    return UnreachableError(f"the port mapper cannot be understood: {what}")
