"""Counting a worker's requests into its row of the scoreboard, and reading its black box."""

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
"""At PEER: the peer (`peer_record`), since when, how many requests before it, its size and one, its first bytes."""
IN_HAND_AT: Final = PEER * 8

DONE: Final = struct.Struct("QQ")
"""At BUSY_SINCE: that no request is in hand, and how many there were."""
DONE_AT: Final = BUSY_SINCE * 8

# Durations are counted log-linearly: one bucket for all under 1024 ns, then eight to each octave, so
# that a bucket is at most an eighth (12.5 %) wide; 31 octaves reach 36 minutes.
_LINEAR_BITS: Final = 10
LEAST_NS: Final = 1 << _LINEAR_BITS


def peer_record(peer: bytes) -> bytes:
    """A peer as it stands in a row."""
    return _PEER.pack(len(peer), peer)


def bucket(nanoseconds: int) -> int:
    """The number of the bucket, 0 to BUCKETS - 1, that a duration falls into."""
    octave = nanoseconds.bit_length() - _LINEAR_BITS - 1
    if octave < 0:
        return 0
    place = octave * 8 + (nanoseconds >> (octave + _LINEAR_BITS - 3)) - 7
    return place if place < BUCKETS else BUCKETS - 1


def bucket_top(place: int) -> int:
    """The longest duration, in nanoseconds, that falls into bucket `place`."""
    octave, part = divmod(place - 1, 8)
    if octave < 0:
        return (1 << _LINEAR_BITS) - 1
    return ((part + 9) << (octave + _LINEAR_BITS - 3)) - 1


# The words of most durations, those under 131 us, looked up instead of reckoned at every request.
COMMON_NS: Final = 1 << 17
COMMON_SHIFT: Final = _LINEAR_BITS - 3
COMMON: Final = tuple(HISTOGRAM + bucket(step << COMMON_SHIFT) for step in range(COMMON_NS >> COMMON_SHIFT))


class BlackBox(NamedTuple):
    """What a worker was doing: the peer it served, and of the request in hand its size and first bytes.

    A worker wrote it, so it is text to show and nothing else. `size` is None where no handler was at work,
    or where the service keeps no bytes of requests.
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
    """What a conversation is counted with: a `Meter`, or several threads' share of one."""

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
    """A worker's pen: the only thing that writes its row. `keeps` the first bytes of requests, or does not.

    `met` is whom the row is known to tell of: whoever else has written a peer there sets it to None. `requests` and
    `slowest` are as in the row, and quicker to look at; whoever else counts there counts here, too. `durations` are
    those of requests that are over and not counted yet, which `rests` does.
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
        """Notes whom the worker serves from now on."""
        if peer is not self.met:
            self.met = peer
            _PEER.pack_into(self.row, PEER * 8, len(peer), peer)

    def closed(self) -> None:
        row = self.row
        row[OPEN] -= 1
        if not row[OPEN]:
            row[STATE] = IDLE

    def shares(self, connections: int | None) -> None:
        """How many connections this worker has, beside others that accept; None: it accepts no more."""
        self.row[SHARE] = 0 if connections is None else connections + 1

    def retires(self) -> None:
        """This worker has served long enough."""
        self.row[RETIRING] = 1

    def began(self, request: bytes = b"") -> int:
        """A handler starts on `request`; gives the time, in nanoseconds, for `ended`."""
        now = monotonic_ns()
        # `shows`, without the call: this happens at every request.
        if self.keeps:
            _REQUEST.pack_into(self.row, REQUEST * 8, len(request) + 1, request)
        self.row[BUSY_SINCE] = now
        return now

    def shows(self, began: int, request: bytes) -> None:
        """The request in hand, and since when."""
        if self.keeps:
            _REQUEST.pack_into(self.row, REQUEST * 8, len(request) + 1, request)  # 0 is for none
        self.row[BUSY_SINCE] = began

    def ended(self, began: int) -> int:
        """A handler has returned; gives the time, in nanoseconds."""
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
        """No handler is at work: counts what is over."""
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
        """One more request, or a stream handler's whole session."""
        self.requests += 1
        self.row[REQUESTS] = self.requests

    def resumed(self, request: bytes) -> None:
        """A handler goes on, which had waited for the client."""
        self.shows(monotonic_ns(), request)

    def paused(self) -> None:
        """A handler waits for the client."""
        self.row[BUSY_SINCE] = 0

    def counted(self, column: int) -> None:
        self.row[column] += 1

    def moved(self, received: int, sent: int) -> None:
        self.row[BYTES_IN] += received
        self.row[BYTES_OUT] += sent
