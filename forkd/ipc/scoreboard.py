"""Shared rows of numbers, one writer per row: the master sees what workers do without exchanging messages.

A board is a memfd that the master, a fork server and its workers map. Row 0 is the header, which only the master
writes; every other row belongs to a slot, and is written by the one worker in that slot. A cell is a native, aligned
64-bit word, so a reader never sees half a number, and there are no locks that a dying process could hold. A row is a
page: two workers never share a cache line, and unused rows cost no memory. Readers show or compare these numbers;
they never use one as a PID, an index, a descriptor or a length. `meter` counts into a row, `status` presents it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from typing import Final

ROW_BYTES: Final = 4096
WORDS: Final = ROW_BYTES // 8
ROWS: Final = 8192

# The header's words.
PHASE: Final = 0
SPARE: Final = 1
HIGHEST: Final = 2

# A worker's words: gauges, which are cleared for the row's next worker, and counts, which only grow.
STATE: Final = 0
OPEN: Final = 2
RETIRING: Final = 3
SHARE: Final = 4  # an accepting event worker's open connections plus one; 0 for all other workers
ACCEPTED: Final = 8
ERRORS: Final = 10
BYTES_IN: Final = 11
BYTES_OUT: Final = 12
OVER_LIMIT: Final = 13
TRUNCATED: Final = 14
MALFORMED: Final = 15
TIMED_OUT: Final = 16
RESET: Final = 17
ACCEPT_FAILED: Final = 18
# These two lie between the peer and the request in hand, so that one write covers all that changes with a request.
BUSY_SINCE: Final = 48
REQUESTS: Final = 49
GAUGES: Final = (STATE, BUSY_SINCE, OPEN, RETIRING, SHARE)
COUNTS: Final = {
    "accepted": ACCEPTED,
    "requests": REQUESTS,
    "errors": ERRORS,
    "bytes_in": BYTES_IN,
    "bytes_out": BYTES_OUT,
    "over_limit": OVER_LIMIT,
    "truncated": TRUNCATED,
    "malformed": MALFORMED,
    "timed_out": TIMED_OUT,
    "reset": RESET,
    "accept_failed": ACCEPT_FAILED,
}
# The black box: the peer and the request in hand, in case the worker dies of it. Each is a length, then bytes.
PEER: Final = 32
PEER_BYTES: Final = 120
REQUEST: Final = 50
REQUEST_BYTES: Final = 64
SLOWEST: Final = 255
HISTOGRAM: Final = 256
BUCKETS: Final = WORDS - HISTOGRAM

# A worker's own STATE.
EMPTY: Final = 0
BOOTING: Final = 1
IDLE: Final = 2
BUSY: Final = 3
LEFT: Final = 4

# The service's PHASE, set by the master.
SERVING: Final = 0
STOPPING: Final = 1

_MOST: Final = 1 << 62


class Board:
    """The rows of one service, mapped from a memfd."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, ROWS * ROW_BYTES)
        self._words = memoryview(self._map).cast("Q")
        self.header = self.row(0)

    @classmethod
    def create(cls, name: str) -> Board:
        """Makes a new board; its descriptor is closed on exec unless it is passed on."""
        fd = os.memfd_create(f"forkd-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, ROWS * ROW_BYTES)
        # Otherwise a worker could truncate it, and the master's next read would end in SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(fd)

    def row(self, number: int) -> memoryview:
        """Returns the words of row `number`: 1 to ROWS - 1 for slots, 0 for the header."""
        return self._words[number * WORDS : (number + 1) * WORDS]

    def heal(self, number: int) -> None:
        """Clears words of row `number` that cannot be counts: overwritten ones, to which a worker could not add."""
        row = self.row(number)
        for place, word in enumerate(row):
            if word > _MOST:
                row[place] = 0

    def close(self) -> None:
        """Releases the memory, or leaves that to the end of the last row that is still in use."""
        os.close(self.fd)
        with suppress(BufferError):
            self.header.release()
            self._words.release()
            self._map.close()

    def idle(self) -> int:
        """Returns how many workers are waiting for a connection."""
        words, last = self._words, min(self.header[HIGHEST], ROWS - 1)
        return sum(1 for at in range(WORDS, (last + 1) * WORDS, WORDS) if words[at] == IDLE)

    def mean_share(self) -> float:
        """Returns the mean number of open connections of the event workers that accept."""
        words, last = self._words, min(self.header[HIGHEST], ROWS - 1)
        shares = [share for at in range(WORDS, (last + 1) * WORDS, WORDS) if (share := words[at + SHARE])]
        return sum(shares) / len(shares) - 1 if shares else 0.0

    def has_free(self, below: int) -> bool:
        """Whether an event worker that accepts has fewer than `below` connections and no request in hand."""
        words, last = self._words, min(self.header[HIGHEST], ROWS - 1)
        return any(
            0 < words[at + SHARE] <= below and not words[at + BUSY_SINCE]
            for at in range(WORDS, (last + 1) * WORDS, WORDS)
        )
