"""What happened on a connection, for the record that `access = true` asks for.

Without that setting it costs nothing: nothing here is then called during a request.
"""

from __future__ import annotations

from time import monotonic
from typing import NamedTuple

from forkd.ipc.meter import Pen
from forkd.ipc.scoreboard import BYTES_IN, BYTES_OUT, REQUESTS


class Account(NamedTuple):
    """A connection's seconds from accept to end, the requests that were handled, and the bytes in each direction."""

    seconds: float
    requests: int
    bytes_in: int
    bytes_out: int


class Mark:
    """The numbers of a worker's row when a connection begins.

    With one connection at a time, what is added until its end belongs to it.
    """

    __slots__ = ("_before", "_row", "_since")

    def __init__(self, row: memoryview) -> None:
        self._row = row
        self._since = monotonic()
        self._before = _counts(row)

    def account(self) -> Account:
        before, now = self._before, _counts(self._row)
        return Account(monotonic() - self._since, *(max(0, now[at] - before[at]) for at in range(3)))


class TallyPen:
    """A worker's pen for one connection among many: it counts for the connection what it counts for the worker."""

    __slots__ = ("_bytes_in", "_bytes_out", "_pen", "_requests", "_since")

    def __init__(self, pen: Pen) -> None:
        self._pen = pen
        self._since = monotonic()
        self._requests = self._bytes_in = self._bytes_out = 0

    def account(self) -> Account:
        return Account(monotonic() - self._since, self._requests, self._bytes_in, self._bytes_out)

    def opened(self) -> None:
        self._pen.opened()

    def closed(self) -> None:
        self._pen.closed()

    def meets(self, peer: bytes) -> None:
        self._pen.meets(peer)

    def began(self, request: bytes = b"") -> int:
        return self._pen.began(request)

    def ended(self, began: int) -> int:
        self._requests += 1
        return self._pen.ended(began)

    def resumed(self, request: bytes) -> None:
        self._pen.resumed(request)

    def paused(self) -> None:
        self._pen.paused()

    def served(self) -> None:
        self._requests += 1
        self._pen.served()

    def counted(self, column: int) -> None:
        self._pen.counted(column)

    def moved(self, received: int, sent: int) -> None:
        self._bytes_in += received
        self._bytes_out += sent
        self._pen.moved(received, sent)


def _counts(row: memoryview) -> tuple[int, int, int]:
    return row[REQUESTS], row[BYTES_IN], row[BYTES_OUT]
