"""What the framings that come with forkd share: the bytes of an incomplete request, and checks of their parameters."""

from __future__ import annotations

from collections.abc import Sequence

from forkd.errors import OverLimit, Truncated


class Holding:
    """Keeps the bytes of an incomplete request between two feeds."""

    __slots__ = ("_held", "_next", "pending")

    def __init__(self) -> None:
        # Kept as a number because every feed reads it, here and in the connection.
        self.pending = 0
        # Not a list of pieces: if a client sent two bytes at a time, each piece would cost forty.
        self._held = bytearray()
        # The held bytes before this place need not be searched again. Otherwise a request of 16 MB in small
        # pieces would cost the square of its length.
        self._next = 0

    def end(self) -> Sequence[bytes]:
        if self.pending:
            raise Truncated(f"the stream ended inside a request, after {self.pending} of its bytes")
        return []

    def _hold(self, start: bytes, look_next: int) -> None:
        self._held += start
        self._next = look_next
        self.pending = len(self._held)

    def _release(self) -> bytes:
        released = bytes(self._held)
        self._held.clear()
        self.pending = 0
        return released

    def _resume(self, data: bytes) -> bytes:
        """Returns the held bytes and `data`; or holds both and returns nothing while they are too few to decide."""
        self._hold(data, self._next)
        return self._release() if self.pending >= self._next else b""


def over_limit(limit: int, requests: Sequence[bytes] = ()) -> OverLimit:
    return OverLimit(f"a request is longer than {limit} bytes", requests)


def checked_count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number of bytes, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1 byte, not {value}")
    return value
