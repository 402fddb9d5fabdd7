"""Applies one framing to one stream: pieces in, requests out, and a clock for the request that has begun.

It never waits: its caller hands it the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from forkd.errors import FramingError
from forkd.serving.framing import Framing

Request = TypeVar("Request")


class Clocked(Protocol):
    """A connection, as far as its clock is concerned; `deadline` is None while no request is half received."""

    deadline: float | None

    def start_clock(self) -> None: ...

    def stop_clock(self) -> None: ...


class Decoder(Generic[Request]):
    """`pending`: whether a request is half received. `broken`: the error that ended the stream, if one did."""

    __slots__ = ("_connection", "_feed", "broken", "framing", "pending", "tells_pending")

    def __init__(self, connection: Clocked, framing: Framing[Request]) -> None:
        self._connection = connection
        self.framing = framing
        self._feed = framing.feed
        self.tells_pending = hasattr(framing, "pending")
        self.pending: bool | int = False
        self.broken: FramingError | None = None

    def hear(self, data: bytes) -> Sequence[Request]:
        """Returns the requests that `data`, the next bytes of the stream, completes. Call `wait` once they are
        answered.
        """
        try:
            requests = self._feed(data)
        except FramingError as error:
            requests = self.breaks(error)
        self.hears(requests)
        return requests

    def breaks(self, error: FramingError) -> Sequence[Request]:
        """Notes that the stream has broken its rules; returns the requests before the error."""
        self.broken = error
        return error.requests  # type: ignore[return-value]  # the framing's own requests

    def hears(self, requests: Sequence[Request]) -> None:
        """Notes that the latest bytes completed these requests."""
        self.pending = self.framing.pending if self.tells_pending else not requests  # type: ignore[attr-defined]
        # Stop it before a handler reads from the connection, and so that each request gets a clock of its own.
        if requests and self._connection.deadline is not None:
            self._connection.stop_clock()

    def wait(self) -> None:
        """Gives a request that has begun its time to be completed, starting now."""
        if self.pending:
            self._connection.start_clock()
        elif self._connection.deadline is not None:
            self._connection.stop_clock()

    def end(self) -> Sequence[Request]:
        """Returns the requests that the end of the stream completes; raises Truncated inside one."""
        if self._connection.deadline is not None:
            self._connection.stop_clock()
        return self.framing.end()
