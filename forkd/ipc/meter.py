"""Counts a worker's connections and requests into its row of the scoreboard, and reads its black box.

`scoreboard` says where in a row each number is. A `Meter` is called several times for every request, so its
methods write to the row directly and call nothing that they can do without.
"""

from __future__ import annotations

import struct
from time import monotonic_ns
from typing import Final, NamedTuple, Protocol

from forkd.ipc.scoreboard import (
    ACCEPTED,
    BOOTING,
    BUCKETS,
    BUSY,
    BUSY_SINCE,
    BYTES_IN,
    BYTES_OUT,
    GAUGES,
    HISTOGRAM,
    IDLE,
    LEFT,
    OPEN,
    PEER,
    PEER_BYTES,
    REQUEST,
    REQUEST_BYTES,
    REQUESTS,
    RETIRING,
    SHARE,
    SLOWEST,
    STATE,
)

_PEER: Final = struct.Struct(f"=Q{PEER_BYTES}s")
_REQUEST: Final = struct.Struct(f"Q{REQUEST_BYTES}s")

IN_HAND: Final = struct.Struct(f"{_PEER.size}sQQQ{REQUEST_BYTES}s")
"""At PEER: the peer (`peer_record`), when the request began, requests before it, its size plus one, first bytes."""
IN_HAND_AT: Final = PEER * 8

DONE: Final = struct.Struct("QQ")
"""At BUSY_SINCE: 0, because no request is in hand, and the number of requests so far."""
DONE_AT: Final = BUSY_SINCE * 8

# Durations are counted log-linearly: one bucket for all below 1024 ns, then eight for each octave, so that
# a bucket is at most an eighth (12.5 %) wide. 31 octaves reach 36 minutes.
_LINEAR_BITS: Final = 10
LEAST_NS: Final = 1 << _LINEAR_BITS


def peer_record(peer: bytes) -> bytes:
    """Packs a peer as it is stored in a row."""
    return _PEER.pack(len(peer), peer)


def bucket(nanoseconds: int) -> int:
    """Returns the bucket, 0 to BUCKETS - 1, of a duration."""
    octave = nanoseconds.bit_length() - _LINEAR_BITS - 1
    if octave < 0:
        return 0
    place = octave * 8 + (nanoseconds >> (octave + _LINEAR_BITS - 3)) - 7
    return place if place < BUCKETS else BUCKETS - 1


def bucket_top(place: int) -> int:
    """Returns the longest duration, in nanoseconds, in bucket `place`."""
    octave, part = divmod(place - 1, 8)
    if octave < 0:
        return (1 << _LINEAR_BITS) - 1
    return ((part + 9) << (octave + _LINEAR_BITS - 3)) - 1


# The words of the usual durations, those below 131 us: looked up instead of computed for every request.
COMMON_NS: Final = 1 << 17
COMMON_SHIFT: Final = _LINEAR_BITS - 3
COMMON: Final = tuple(HISTOGRAM + bucket(step << COMMON_SHIFT) for step in range(COMMON_NS >> COMMON_SHIFT))


class BlackBox(NamedTuple):
    """What a worker was doing: the peer it served, and the size and first bytes of the request in hand.

    A worker wrote it, so it is only good for showing. `size` is None if no handler was at work, or if the service
    keeps no bytes of requests.
    """

    peer: str
    size: int | None
    begins: bytes

    @classmethod
    def of(cls, row: memoryview) -> BlackBox:
        """Reads the black box in a worker's row."""
        length, peer = _PEER.unpack_from(row, PEER * 8)
        size, request = _REQUEST.unpack_from(row, REQUEST * 8)
        kept = row[BUSY_SINCE] and size
        text = peer[: min(length, PEER_BYTES)].decode(errors="backslashreplace")
        return cls(text, size - 1 if kept else None, request[: min(size - 1, REQUEST_BYTES)] if kept else b"")


class Pen(Protocol):
    """What a conversation counts with: a `Meter`, or one of several pens that share it."""

    def opened(self) -> None: ...
    def closed(self) -> None: ...
    def meets(self, peer: bytes) -> None: ...
    def began(self, request: bytes = ...) -> int: ...
    def ended(self, began: int) -> int: ...
    def resumed(self, request: bytes) -> None: ...
    def paused(self) -> None: ...
    def served(self) -> None: ...
    def counted(self, column: int) -> None: ...
    def moved(self, received: int, sent: int) -> None: ...


class Meter:
    """A worker's pen: nothing else writes its row. `keeps` says whether to keep the first bytes of requests.

    `met` is the peer that is known to be in the row; code that writes a peer there itself sets it to None. `requests`
    and `slowest` are copies of words of the row that are faster to read; code that counts in the row counts here as
    well. `durations` are those of requests that have ended but that `rests` has not counted yet.
    """

    __slots__ = ("durations", "keeps", "met", "requests", "row", "slowest")

    def __init__(self, row: memoryview, *, keeps: bool = True) -> None:
        self.row = row
        self.keeps = keeps
        self.met: bytes | None = None
        self.requests: int = row[REQUESTS]
        self.slowest: int = row[SLOWEST]
        self.durations: list[int] = []

    def booting(self) -> None:
        self.meets(b"")
        for gauge in GAUGES:
            self.row[gauge] = 0
        self.row[STATE] = BOOTING

    def idle(self) -> None:
        self.row[STATE] = IDLE

    def left(self) -> None:
        self.row[STATE] = LEFT

    def opened(self) -> None:
        row = self.row
        row[STATE] = BUSY
        row[OPEN] += 1
        row[ACCEPTED] += 1

    def meets(self, peer: bytes) -> None:
        """Notes the peer that the worker now serves."""
        if peer is not self.met:
            self.met = peer
            _PEER.pack_into(self.row, PEER * 8, len(peer), peer)

    def closed(self) -> None:
        row = self.row
        row[OPEN] -= 1
        if not row[OPEN]:
            row[STATE] = IDLE

    def shares(self, connections: int | None) -> None:
        """Notes how many connections this worker has, for others that accept; None: it accepts no more."""
        self.row[SHARE] = 0 if connections is None else connections + 1

    def retires(self) -> None:
        """Notes that this worker has served long enough."""
        self.row[RETIRING] = 1

    def began(self, request: bytes = b"") -> int:
        """Notes that a handler starts on `request`. Returns the time, in nanoseconds, for `ended`."""
        now = monotonic_ns()
        # `shows`, inlined: this runs for every request.
        if self.keeps:
            _REQUEST.pack_into(self.row, REQUEST * 8, len(request) + 1, request)
        self.row[BUSY_SINCE] = now
        return now

    def shows(self, began: int, request: bytes) -> None:
        """Notes the request in hand and the time it began."""
        if self.keeps:
            _REQUEST.pack_into(self.row, REQUEST * 8, len(request) + 1, request)  # plus one: 0 means none
        self.row[BUSY_SINCE] = began

    def ended(self, began: int) -> int:
        """Counts a request whose handler has returned. Returns the time, in nanoseconds."""
        now = monotonic_ns()
        taken = now - began
        row = self.row
        row[BUSY_SINCE] = 0
        self.served()
        row[COMMON[taken >> COMMON_SHIFT] if taken < COMMON_NS else HISTOGRAM + bucket(taken)] += 1
        if taken > self.slowest:
            row[SLOWEST] = self.slowest = taken
        return now

    def rests(self) -> None:
        """Counts the requests that have ended, when no handler is at work."""
        durations, row = self.durations, self.row
        if not durations:
            return
        longest = max(durations)
        if longest < LEAST_NS:
            row[HISTOGRAM] += len(durations)
        else:
            for taken in durations:
                row[COMMON[taken >> COMMON_SHIFT] if taken < COMMON_NS else HISTOGRAM + bucket(taken)] += 1
        if longest > self.slowest:
            row[SLOWEST] = self.slowest = longest
        durations.clear()
        DONE.pack_into(row, DONE_AT, 0, self.requests)

    def served(self) -> None:
        """Counts one request, or the whole session of a stream handler."""
        self.requests += 1
        self.row[REQUESTS] = self.requests

    def resumed(self, request: bytes) -> None:
        """Notes that a handler which waited for the client continues."""
        self.shows(monotonic_ns(), request)

    def paused(self) -> None:
        """Notes that a handler waits for the client."""
        self.row[BUSY_SINCE] = 0

    def counted(self, column: int) -> None:
        self.row[column] += 1

    def moved(self, received: int, sent: int) -> None:
        self.row[BYTES_IN] += received
        self.row[BYTES_OUT] += sent
