"""The counts of a process of a load test: one row of 64-bit words in memory shared with the first process.

Each row has one writer (`loop`), and its reader (`run`) sees numbers that only grow. Durations are counted in the
layout of HdrHistogram (lowest value 1 ns, three significant digits), one word per bucket, so that recording one is an
addition and passing them on takes no pause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

FAILURES: Final = ("refused", "unreachable", "timed out", "reset", "cut short", "wrong")
"""How a request can fail or, for the first three, a connection that should have carried some."""

COUNTERS: Final = (
    "answered",  # replies, including wrong ones
    "bytes_in",
    "bytes_out",
    "connected",  # connections made
    "unsent",  # requests that were due but not sent before the end
    *FAILURES,
)
_TIMES: Final = ("began", "ended")  # of the counted part, in nanoseconds of the monotonic clock; 0 for not yet
_HIGHEST: Final = ("longest", "longest_connect", "errno")  # errno is that of the last failed connect(2)
_NAMES: Final = (*COUNTERS, *_TIMES, *_HIGHEST)

LONGEST: Final = 10**15
"""The longest duration that has a bucket, in nanoseconds."""

# A value of up to 11 bits has a bucket of its own; for larger ones, the 11 highest bits select the bucket.
_DIGITS: Final = 11
_HALF: Final = 1 << (_DIGITS - 1)
BUCKETS: Final = (LONGEST.bit_length() - _DIGITS + 2) * _HALF

WORDS: Final = len(_NAMES) + 2 * BUCKETS
BYTES: Final = WORDS * 8


class Tally:
    """One row, or the sum of several. `latencies` and `connects` are counts, indexed by `bucket`."""

    __slots__ = ("_words", "connects", "latencies")

    def __init__(self, memory: memoryview | None = None) -> None:
        self._words = memoryview(bytearray(BYTES) if memory is None else memory).cast("B").cast("Q")
        self.latencies = self._words[len(_NAMES) : len(_NAMES) + BUCKETS]
        self.connects = self._words[len(_NAMES) + BUCKETS :]

    def __getitem__(self, name: str) -> int:
        return self._words[_NAMES.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[_NAMES.index(name)] = value

    @property
    def failures(self) -> dict[str, int]:
        return {name: self[name] for name in FAILURES}

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def seconds(self) -> float:
        """Seconds from the first request that counts to the last reply, or to the end of the test."""
        return max(0, self["ended"] - self["began"]) / 1e9 if self["began"] else 0.0

    def clear_requests(self) -> None:
        """Forgets everything but the connections: what came before does not count."""
        for name in _NAMES:
            if name not in ("connected", "longest_connect"):
                self[name] = 0
        self.latencies[:] = memoryview(bytearray(BUCKETS * 8)).cast("Q")


def total(tallies: Iterable[Tally]) -> Tally:
    """Returns the sum of the rows, as a snapshot."""
    summed = Tally()
    rows = list(tallies)
    for name in COUNTERS:
        summed[name] = sum(row[name] for row in rows)
    for name in _HIGHEST:
        summed[name] = max((row[name] for row in rows), default=0)
    summed["began"] = min((row["began"] for row in rows if row["began"]), default=0)
    summed["ended"] = max((row["ended"] for row in rows), default=0)
    for row in rows:
        for into, counts in (summed.latencies, row.latencies), (summed.connects, row.connects):
            for place, count in _counted(counts):
                into[place] += count
    return summed


def bucket(nanoseconds: int) -> int:
    """Returns the index of a duration's bucket; `loop` repeats these lines inline, for speed."""
    shift = nanoseconds.bit_length() - _DIGITS
    return (shift << (_DIGITS - 1)) + (nanoseconds >> shift) if shift > 0 else nanoseconds


def durations(counts: memoryview) -> Iterator[tuple[int, int]]:
    """Yields each duration that was counted, as the lowest value of its bucket, and how often."""
    for place, count in _counted(counts):
        shift = max(0, (place >> (_DIGITS - 1)) - 1)
        yield (place - (shift << (_DIGITS - 1))) << shift, count


def _counted(counts: memoryview) -> Iterator[tuple[int, int]]:
    return ((place, count) for place, count in enumerate(counts.tolist()) if count)
