"""Counts the replies in the bytes that arrived, and how many of them are wrong.

Pure and quick: the loop of a load test (`loop`) calls a `Counter` once per receive, with the bytes as they came. If
nothing is expected and the framing allows it, replies are counted without cutting them out. Each connection has its
own counter; all counters of a process share one `Judge`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Protocol, TypeAlias, cast

from forkd.cli.load.plan import LoadPlan
from forkd.serving.counted_framings import Chunks, Fixed
from forkd.serving.delimited_framings import Delimited

Counter: TypeAlias = Callable[[bytes], int]
"""Returns how many replies the next bytes of the stream complete. Raises FramingError if they break its rules."""


class Judge:
    """Makes the counters of a plan, and holds how many replies they found `wrong` in total."""

    __slots__ = ("_expected", "_framing", "_whole", "wrong")

    def __init__(self, plan: LoadPlan) -> None:
        self.wrong = 0
        self._framing = plan.framing
        self._expected = [plan.expected(place) for place in range(len(plan.bodies))]
        # If every reply must be the same, whole replies can be compared without cutting them out.
        only = self._expected[0] if len(set(self._expected)) == 1 else None
        self._whole = plan.framing.encode(only) if isinstance(only, bytes) else b""

    def counter(self, first: int = 0) -> Counter:
        """Returns a counter for a new connection, whose first request is the one at `first` of the plan."""
        framing = self._framing.copy()
        texts = [each for each in self._expected if isinstance(each, bytes)]
        if isinstance(framing, Chunks) and len(texts) == len(self._expected):
            return _Checked(self, _Sizes([len(text) for text in texts], first), self._whole, first)
        if self._expected[0] is not None:
            return _Checked(self, cast("_Cutter", framing), self._whole, first)
        if isinstance(framing, Delimited) and len(framing.mark) == 1:
            return methodcaller("count", framing.mark)
        if isinstance(framing, Fixed):
            return _Measured(framing.size)
        return lambda data: len(framing.feed(data))

    def is_right(self, place: int, reply: bytes) -> bool:
        """True if a reply is what the request of that number expects, counting through the plan's in turn."""
        expected = self._expected[place % len(self._expected)]
        if isinstance(expected, re.Pattern):
            return expected.search(reply) is not None
        return expected is None or reply == expected


class _Cutter(Protocol):
    """The part of a framing that this room uses."""

    @property
    def pending(self) -> int: ...

    def feed(self, data: bytes) -> Sequence[bytes]: ...


class _Checked:
    """Cuts out replies and compares them, except in the usual case, where whole, correct replies need no cutting."""

    __slots__ = ("_cutter", "_judge", "_place", "_whole")

    def __init__(self, judge: Judge, cutter: _Cutter, whole: bytes, first: int) -> None:
        self._judge = judge
        self._cutter = cutter
        self._whole = whole
        self._place = first

    def __call__(self, data: bytes) -> int:
        whole = self._whole
        if whole and not self._cutter.pending:
            count = len(data) // len(whole)
            if data == whole * count:
                self._place += count
                return count
        replies = self._cutter.feed(data)
        for reply in replies:
            if not self._judge.is_right(self._place, reply):
                self._judge.wrong += 1
            self._place += 1
        return len(replies)


class _Measured:
    """Counts replies of a fixed size."""

    __slots__ = ("_held", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0

    def __call__(self, data: bytes) -> int:
        whole, self._held = divmod(self._held + len(data), self._size)
        return whole


class _Sizes:
    """Cuts a stream without marks by the lengths of the expected replies, in turn."""

    __slots__ = ("_held", "_sizes", "_turn")

    def __init__(self, sizes: list[int], first: int) -> None:
        self._sizes = sizes
        self._turn = first
        self._held = b""

    @property
    def pending(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> Sequence[bytes]:
        data = self._held + data
        at, found = 0, []
        while len(data) >= (end := at + self._sizes[self._turn % len(self._sizes)]) > at:
            found.append(data[at:end])
            at = end
            self._turn += 1
        self._held = data[at:]
        return found
