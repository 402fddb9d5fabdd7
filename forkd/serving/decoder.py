"""What one framing makes of one stream: pieces in, requests out, and a clock for the request that has begun.

Whoever has the bytes hands them over; nothing is waited for here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from forkd.errors import FramingError
from forkd.serving.framing import Framing

Request = TypeVar("Request")


class Clocked(Protocol):
    """The connection, as far as its clock goes; `deadline` is None while no request is half received."""

    deadline: float | None

    def start_clock(self) -> None: ...

    def stop_clock(self) -> None: ...


class Decoder(Generic[Request]):
    """`pending` tells whether a request is half received; `broken` is the error that ended the stream, if one did."""

    __slots__ = ("_connection", "_feed", "broken", "framing", "pending", "tells_pending")

    def __init__(self, connection: Clocked, framing: Framing[Request]) -> None:
        self._connection = connection
        self.framing = framing
        self._feed = framing.feed
        self.tells_pending = hasattr(framing, "pending")
        self.pending: bool | int = False
        self.broken: FramingError | None = None

    def hear(self, data: bytes) -> Sequence[Request]:
        """The requests that `data`, the next bytes of the stream, completes; when they are answered, `wait` follows."""
        try:
            requests = self._feed(data)
        except FramingError as error:
            requests = self.breaks(error)
        self.hears(requests)
        return requests

    def breaks(self, error: FramingError) -> Sequence[Request]:
        """The stream breaks its rules; gives the requests before the break."""
        self.broken = error
        return error.requests  # type: ignore[return-value]  # the framing's own requests

    def hears(self, requests: Sequence[Request]) -> None:
        """So many requests were completed by what came."""
        self.pending = self.framing.pending if self.tells_pending else not requests  # type: ignore[attr-defined]
        # Stopped before a handler reads for itself, and so that each request has a clock of its own.
        if requests and self._connection.deadline is not None:
            self._connection.stop_clock()

    def wait(self) -> None:
        """A request that has begun has its time to be whole, from now on."""
        if self.pending:
            self._connection.start_clock()
        elif self._connection.deadline is not None:
            self._connection.stop_clock()

    def end(self) -> Sequence[Request]:
        """The requests that the end of the stream completes; raises Truncated inside one."""
        if self._connection.deadline is not None:
            self._connection.stop_clock()
        return self.framing.end()
