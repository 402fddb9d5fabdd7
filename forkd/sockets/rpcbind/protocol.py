"""The port mapper's protocol, version 2 (RFC 1833, section 3), as bytes: makes calls, reads replies, orders both.

A call is an XDR message of RFC 5531 in a record of its own (section 11 there). Replies are limited in length and
checked: a reply that does not answer our call is an error, whatever it says. Pure: `registry` has the sockets
for the machine's own port mapper, `lookup` those for any other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from forkd.errors import ForkdError, UnreachableError

PORT: Final = 111
LIMIT: Final = 1024
"""The most bytes of a reply; a longer one is not read."""

_PROGRAM: Final = 100000
_VERSION: Final = 2
_RPC: Final = 2
_TCP: Final = 6
_LAST: Final = 0x80000000
_DENIED: Final = {0: "it speaks another version of RPC", 1: "it requires other credentials"}
_REFUSED: Final = {
    1: "it is not a port mapper",
    2: "it does not speak version 2 of the protocol there",
    3: "it does not know the procedure",
    4: "it could not decode the call",
    5: "it failed",
}


class Procedure(IntEnum):
    """The calls that we make."""

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
"""A sequence of calls: yields each call, is sent its answer, and returns what went wrong, or an empty string."""


def call(number: int, procedure: Procedure, mapping: Mapping) -> bytes:
    """Encodes a call for a stream; its reply will have the same number."""
    no_one = (0, 0, 0, 0)  # flavour and length of the credentials and of the verifier: none
    words = (number, 0, _RPC, _PROGRAM, _VERSION, procedure, *no_one, *mapping[:2], _TCP, mapping.port)
    return struct.pack(f">I{len(words)}I", _LAST | 4 * len(words), *words)


class RpcRecord:
    """Collects the next record of a stream from its fragments, however the bytes are split on the way."""

    def __init__(self) -> None:
        self._come = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """Returns the record once it is complete. UnreachableError if it is too long or more follows."""
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
                    raise _nonsense("it sent more than one reply")
                return bytes(message)
        if max(at, len(self._come)) > LIMIT:
            raise _nonsense(f"its reply is longer than {LIMIT} bytes")
        return None


def answer(message: bytes, number: int, procedure: Procedure) -> int:
    """Returns the result in a reply to call `number`: a port, or 1 for yes and 0 for no. Raises UnreachableError."""
    words: tuple[int, ...] = struct.unpack(f">{len(message) // 4}I", message[: len(message) // 4 * 4])
    if len(message) % 4 or len(words) < 4 or words[:2] != (number, 1):
        raise _nonsense("its answer is not a reply to the call")
    if words[2] != 0:
        raise _nonsense(_DENIED.get(words[3], "it rejects the call"))
    verifier = -(-words[4] // 4) if len(words) > 4 else 0  # its length in words, rounded up
    rest = words[5 + verifier :]
    if rest and rest[0]:
        raise _nonsense(_REFUSED.get(rest[0], "it refuses the call"))
    most = 65535 if procedure is Procedure.GETPORT else 1
    if len(rest) != 2 or rest[1] > most:
        raise _nonsense("its answer makes no sense")
    return rest[1]


def register(mapping: Mapping, stale: Callable[[int], bool]) -> Script:
    """Maps the program to our port, replacing a port that is `stale` but not one where another server listens.

    Repeat it from time to time: an existing mapping of ours is left alone.
    """
    port = 0
    for _ in range(2):
        if (yield Procedure.SET, mapping):
            return ""
        port = yield Procedure.GETPORT, mapping
        if port == mapping.port:  # RFC 1833 refuses SET for an existing mapping; rpcbind does not
            return ""
        if port and not stale(port):
            return f"another server is registered, on port {port} (rpcinfo -p shows it)"
        if port:  # rpcbind may have removed it already, if it found no one listening there
            yield Procedure.UNSET, mapping
    if port:
        return f"a dead server is registered, on port {port}, and only its owner or root may remove that (rpcinfo -d)"
    return "the port mapper refuses it"


def withdraw(mapping: Mapping) -> Script:
    """Removes the program's mapping if it still leads to our port. UNSET itself names no port and removes any."""
    if (yield Procedure.GETPORT, mapping) == mapping.port:
        yield Procedure.UNSET, mapping
    return ""


def _nonsense(what: str) -> ForkdError:
    return UnreachableError(f"the port mapper does not make sense: {what}")
