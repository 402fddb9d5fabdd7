"""Framings whose requests end at a mark: `Lines` and `Delimited`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

from forkd.serving.holding import Holding, checked_count, over_limit

LINE_LIMIT: Final = 64 * 1024
"""Bytes of the longest request, without its mark, unless the framing is given another limit."""

_CARRIAGE_RETURN: Final = ord("\r")


class Delimited(Holding):
    r"""A request ends at `mark`, which is one or more bytes. A reply is sent with the mark behind it.

    For messages that end in a NUL byte, for example, or in an empty line (`b"\r\n\r\n"`). Requests come without the
    mark and may be empty. A mark inside a reply is not noticed.

    `limit` is the most bytes that a request may have before its mark. Beyond it the framing raises OverLimit as soon as
    that many bytes have arrived, with or without the mark. If the stream ends inside a request, it raises Truncated. A
    wrong `mark` or `limit` raises TypeError or ValueError.

        @forkd.service(forkd.Delimited(b"\0"))
        def shout(request: bytes) -> bytes:
            return request.upper()
    """

    __slots__ = ("_crlf", "_longest_mark", "_size", "limit", "mark")

    def __init__(self, mark: bytes, limit: int = LINE_LIMIT) -> None:
        super().__init__()
        self.mark: Final = _checked_mark(mark)
        self._size: Final = len(mark)
        self.limit: Final = checked_count("limit", limit)
        # Set by Lines: a carriage return may come before the mark.
        self._crlf = False
        self._longest_mark = mark

    def __repr__(self) -> str:
        return f"Delimited(mark={self.mark!r}, limit={self.limit})"

    def feed(self, data: bytes) -> Sequence[bytes]:
        if self.pending:
            return self._feed_held(data)
        at = data.find(self.mark)
        # The usual case: exactly one request. (If `at` is 0, data[-1] is the newline itself.)
        if at == len(data) - self._size and 0 <= at <= self.limit:
            return [data[: at - 1]] if self._crlf and data[at - 1] == _CARRIAGE_RETURN else [data[:at]]
        return self._feed_many(data, [])

    def encode(self, reply: bytes) -> bytes:
        return reply + self.mark

    def encode_all(self, replies: list[bytes]) -> bytes:
        return self.mark.join(replies) + self.mark

    def copy(self) -> Self:
        return type(self)(self.mark, self.limit)

    def _feed_held(self, data: bytes) -> list[bytes]:
        held = self._held
        before = len(held)
        held += data
        at = held.find(self.mark, self._next)
        if at < 0:
            if self._is_over(held):
                raise over_limit(self.limit)
            self._hold(b"", self._first_unsearched(held))
            return []
        rest = data[at + len(self.mark) - before :]
        del held[at:]
        if self._crlf and held.endswith(b"\r"):
            del held[-1]
        if len(held) > self.limit:
            raise over_limit(self.limit)
        return self._feed_many(rest, [self._release()])

    def _feed_many(self, data: bytes, requests: list[bytes]) -> list[bytes]:
        """Returns `requests` and those in `data`, which starts where a request starts."""
        found = data.split(self.mark)
        rest = found.pop()
        if self._crlf and b"\r" in data:
            found = [line.removesuffix(b"\r") for line in found]
        if len(data) > self.limit:
            for place, request in enumerate(found):
                if len(request) > self.limit:
                    raise over_limit(self.limit, requests + found[:place])
            if self._is_over(rest):
                raise over_limit(self.limit, requests + found)
        if rest:
            self._hold(rest, self._first_unsearched(rest))
        return requests + found

    def _first_unsearched(self, start: bytes | bytearray) -> int:
        # The last bytes may begin a mark that the next feed completes.
        return max(0, len(start) - len(self.mark) + 1)

    def _is_over(self, start: bytes | bytearray) -> bool:
        """Whether a request that starts like this, with no mark yet, is too long wherever its mark comes."""
        if len(start) <= self.limit:
            return False
        # The beginning of a mark does not count.
        mark = self._longest_mark
        begun = next((size for size in range(len(mark) - 1, 0, -1) if start.endswith(mark[:size])), 0)
        return len(start) - begun > self.limit


class Lines(Delimited):
    r"""A request is a line without its end. A reply is sent with `end` behind it.

    If `end` is a newline, a carriage return before it belongs to the end, so that clients of both habits are
    understood: those that send a bare newline, and those that send both (telnet(1), and protocols such as SMTP, RFC
    5321, section 2.3.8). For replies that end in both, give `end=b"\r\n"`.

    `limit` is the most bytes that a line may have before its end. Beyond it the framing raises OverLimit as soon as
    that many bytes have arrived, with or without the end. If the stream ends inside a line, it raises Truncated.

        @forkd.service(forkd.Lines(limit=1000))
        def reverse(line: bytes) -> bytes:
            return line[::-1]
    """

    __slots__ = ()

    def __init__(self, limit: int = LINE_LIMIT, end: bytes = b"\n") -> None:
        super().__init__(end, limit)
        if end == b"\n":
            self._crlf = True
            self._longest_mark = b"\r\n"

    def __repr__(self) -> str:
        return f"Lines(limit={self.limit}, end={self.mark!r})"

    def copy(self) -> Self:
        return type(self)(self.limit, self.mark)


def _checked_mark(value: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"the end of a request must be bytes, not {value!r}")
    if not value:
        raise ValueError("the end of a request must be at least 1 byte, not none")
    return value
