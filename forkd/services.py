"""The small standard services over TCP, as their RFCs define them; also the shortest examples of the API."""

from __future__ import annotations

import struct
import time as clock
from collections.abc import Iterator
from typing import Final

from forkd.serving.connection import Connection
from forkd.serving.counted_framings import Chunks
from forkd.serving.service import service, stream

# Seconds between the epochs of RFC 868 (1900-01-01) and Unix (1970-01-01).
_EPOCH_1900: Final = 2_208_988_800

_PRINTABLE: Final = bytes(range(32, 127))
_LINE_LENGTH: Final = 72

_QUOTES: Final = (
    b'"Simplicity is prerequisite for reliability." Edsger W. Dijkstra',
    b'"Be conservative in what you do, be liberal in what you accept from others." Jon Postel',
    b'"Controlling complexity is the essence of computer programming." Brian Kernighan',
    b'"Premature optimization is the root of all evil." Donald E. Knuth',
)


@service(Chunks())
def echo(data: bytes) -> bytes:
    """Echo Protocol (RFC 862): sends back what it receives."""
    return data


@service(Chunks())
def discard(data: bytes) -> None:
    """Discard Protocol (RFC 863): throws away what it receives."""


@stream
def chargen(connection: Connection) -> None:
    """Character Generator Protocol (RFC 864): sends lines of 72 characters until the client or the worker ends it.

    The client's input has no meaning here and stays unread.
    """
    block = b"".join(_chargen_lines())
    while not connection.leaving:
        connection.send(block)


@stream
def qotd(connection: Connection) -> None:
    """Quote of the Day Protocol (RFC 865): sends one quotation a day of under 512 characters, then ends."""
    connection.send(_QUOTES[int(clock.time() // 86400) % len(_QUOTES)] + b"\r\n")


@stream
def daytime(connection: Connection) -> None:
    """Daytime Protocol (RFC 867): sends the date and time as a readable line, then ends the connection.

    The RFC leaves the format open and suggests this one: weekday, month day, year time-zone.
    """
    # Not strftime: its names follow the locale, and the line is ASCII.
    now = clock.localtime(clock.time())  # localtime() alone asks a coarser clock, up to a tick behind
    weekday = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[now.tm_wday]
    month = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
             "November", "December")[now.tm_mon - 1]  # fmt: skip
    time_of_day = f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
    connection.send(f"{weekday}, {month} {now.tm_mday}, {now.tm_year} {time_of_day}-{now.tm_zone}\r\n".encode())


@stream
def time(connection: Connection) -> None:
    """Time Protocol (RFC 868): sends the seconds since 1900-01-01 UTC in 32 bits, big-endian, then ends the connection.

    The number wraps around in 2036; clients of the protocol must allow for that.
    """
    connection.send(struct.pack(">I", (int(clock.time()) + _EPOCH_1900) & 0xFFFFFFFF))


def _chargen_lines() -> Iterator[bytes]:
    """Yields the pattern that RFC 864 recommends: the 95 printable characters, shifted by one from line to line."""
    ring = _PRINTABLE + _PRINTABLE
    for start in range(len(_PRINTABLE)):
        yield ring[start : start + _LINE_LENGTH] + b"\r\n"
