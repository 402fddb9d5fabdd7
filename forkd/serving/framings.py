"""The framings that come with forkd: bytes to requests, replies to bytes."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, Literal, Self

from forkd.errors import FramingError, OverLimit, Truncated

LINE_LIMIT: Final = 64 * 1024
"""Bytes of the longest line, and of the longest request before a mark, unless told otherwise."""

BLOCK_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of the longest request whose length is sent ahead, unless told otherwise."""

_LENGTH_FORMATS: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}

_CARRIAGE_RETURN, _COLON, _COMMA, _ZERO, _NINE = b"\r:,09"

_CARRIAGE_RETURN, _COLON, _COMMA, _ZERO, _NINE = b"\r:,09"

_CARRIAGE_RETURN, _COLON, _COMMA, _ZERO, _NINE = b"\r:,09"

_CARRIAGE_RETURN, _COLON, _COMMA, _ZERO, _NINE = b"\r:,09"

_CARRIAGE_RETURN, _COLON, _COMMA, _ZERO, _NINE = b"\r:,09"


class _Holding:
    """What the framings with a memory share: the bytes of a request that is not whole yet."""

    __slots__ = ("_held", "_next", "pending")

    def __init__(self) -> None:
        # Beside the bytes because every feed reads it, here and in the connection.
        self.pending = 0
        # Not a list of pieces: a peer that sends two bytes at a time would make each cost forty.
        self._held = bytearray()
        # No byte held before this place has to be looked at again: without it, a request of 16 MB
        # in small pieces would cost the square of its length.
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
        """What was held and `data`; nothing, and all of it held, while it is too little to tell."""
        self._hold(data, self._next)
        return self._release() if self.pending >= self._next else b""


class Delimited(_Holding):
    """A request is what stands before `mark`, one or more bytes; a reply gets the mark.

    For messages that end in a NUL, say, or in an empty line (`b"\\r\\n\\r\\n"`). A request may be
    empty. A mark inside a reply is not looked for. OverLimit: more than `limit` bytes before the
    mark, noticed as soon as they have come, mark or no mark.
    """

    __slots__ = ("_crlf", "_longest_mark", "_size", "limit", "mark")

    def __init__(self, mark: bytes, limit: int = LINE_LIMIT) -> None:
        super().__init__()
        self.mark: Final = _checked_mark(mark)
        self._size: Final = len(mark)
        self.limit: Final = _checked_count("limit", limit)
        # What tells Lines from this: the mark may have a carriage return before it.
        self._crlf = False
        self._longest_mark = mark

    def __repr__(self) -> str:
        return f"Delimited(mark={self.mark!r}, limit={self.limit})"

    def feed(self, data: bytes) -> Sequence[bytes]:
        if self.pending:
            return self._feed_held(data)
        at = data.find(self.mark)
        # Nearly always: exactly one request. (With `at` 0, data[-1] is the newline itself.)
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
                raise _over(self.limit)
            self._hold(b"", self._first_unsearched(held))
            return []
        rest = data[at + len(self.mark) - before :]
        del held[at:]
        if self._crlf and held.endswith(b"\r"):
            del held[-1]
        if len(held) > self.limit:
            raise _over(self.limit)
        return self._feed_many(rest, [self._release()])

    def _feed_many(self, data: bytes, requests: list[bytes]) -> list[bytes]:
        """`requests` and those in `data`, which starts where a request starts."""
        found = data.split(self.mark)
        rest = found.pop()
        if self._crlf and b"\r" in data:
            found = [line.removesuffix(b"\r") for line in found]
        if len(data) > self.limit:
            for place, request in enumerate(found):
                if len(request) > self.limit:
                    raise _over(self.limit, requests + found[:place])
            if self._is_over(rest):
                raise _over(self.limit, requests + found)
        if rest:
            self._hold(rest, self._first_unsearched(rest))
        return requests + found

    def _first_unsearched(self, start: bytes | bytearray) -> int:
        # The last bytes may be the beginning of a mark that the next feed completes.
        return max(0, len(start) - len(self.mark) + 1)

    def _is_over(self, start: bytes | bytearray) -> bool:
        """Whether a request that starts like this, with no mark yet, is too long wherever its mark comes."""
        if len(start) <= self.limit:
            return False
        # A mark that has begun does not count.
        mark = self._longest_mark
        begun = next((size for size in range(len(mark) - 1, 0, -1) if start.endswith(mark[:size])), 0)
        return len(start) - begun > self.limit


class Lines(Delimited):
    """A request is a line without its end; a reply gets `end`.

    Where `end` is a newline, a carriage return before it belongs to it, so that telnet(1) and the
    protocols whose lines end in both (RFC 5321, section 2.3.8) are understood. OverLimit: more than
    `limit` bytes without the end, noticed as soon as they have come, end or no end.
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


class LengthPrefixed(_Holding):
    """A request is a length in `size` bytes (1, 2, 4 or 8), then that many bytes; replies likewise.

    The length is unsigned, does not count itself, and has its highest byte first (`order` "big") or
    last ("little"). DNS over TCP is one of them (RFC 1035, section 4.2.2: `size` 2). OverLimit: a
    length of more than `limit` bytes, noticed before any of those. A reply whose length has no room
    in `size` bytes is a ValueError.
    """

    __slots__ = ("_length", "limit", "order", "size")

    def __init__(self, size: int = 4, order: Literal["big", "little"] = "big", limit: int = BLOCK_LIMIT) -> None:
        super().__init__()
        if _checked_count("size", size) not in _LENGTH_FORMATS:
            raise ValueError(f"size must be 1, 2, 4 or 8 bytes, not {size}")
        if order not in ("big", "little"):
            raise ValueError(f'order must be "big" or "little", not {order!r}')
        self.size: Final = size
        self.order: Final = order
        self.limit: Final = _checked_count("limit", limit)
        self._length: Final = Struct((">" if order == "big" else "<") + _LENGTH_FORMATS[size])

    def __repr__(self) -> str:
        return f"LengthPrefixed(size={self.size}, order={self.order!r}, limit={self.limit})"

    def feed(self, data: bytes) -> Sequence[bytes]:
        if self.pending:
            data = self._resume(data)
        requests: list[bytes] = []
        at, wanted = 0, self.size
        while (start := at + self.size) <= len(data):
            (length,) = self._length.unpack_from(data, at)
            if length > self.limit:
                raise _over(self.limit, requests)
            end = start + length
            if end > len(data):
                wanted = end - at
                break
            requests.append(data[start:end])
            at = end
        if at < len(data):
            self._hold(data[at:], wanted)
        return requests

    def encode(self, reply: bytes) -> bytes:
        if len(reply) >> (8 * self.size):
            raise ValueError(f"a reply of {len(reply)} bytes does not fit a length field of size {self.size}")
        return self._length.pack(len(reply)) + reply

    def copy(self) -> Self:
        return type(self)(self.size, self.order, self.limit)


class Netstrings(_Holding):
    """A request is a netstring: its length in decimal, a colon, so many bytes, a comma, as in `5:hello,`.

    After https://cr.yp.to/proto/netstrings.txt, strictly: FramingError if the length is not digits
    alone, has a leading zero (`0:,` is the empty one) or the comma is not there. OverLimit: a length
    of more than `limit` bytes, noticed at the digit that makes it so.
    """

    __slots__ = ("_most_digits", "limit")

    def __init__(self, limit: int = BLOCK_LIMIT) -> None:
        super().__init__()
        self.limit: Final = _checked_count("limit", limit)
        self._most_digits: Final = len(str(limit))

    def __repr__(self) -> str:
        return f"Netstrings(limit={self.limit})"

    def feed(self, data: bytes) -> Sequence[bytes]:
        if self.pending:
            data = self._resume(data)
        requests: list[bytes] = []
        at = wanted = 0
        while at < len(data):
            head_end = at + self._most_digits + 1
            colon = data.find(b":", at, head_end)
            head = data[at : colon if colon >= 0 else head_end]
            if colon < 0 or data[at] == _ZERO or not head.isdigit() or int(head) > self.limit:
                self._check_head(data[at:head_end], requests)
                if colon < 0:
                    wanted = len(head) + 1
                    break
            comma = colon + 1 + int(head)
            if comma >= len(data):
                wanted = comma + 1 - at
                break
            if data[comma] != _COMMA:
                raise FramingError("a netstring does not end in a comma", requests)
            requests.append(data[colon + 1 : comma])
            at = comma + 1
        if at < len(data):
            self._hold(data[at:], wanted)
        return requests

    def encode(self, reply: bytes) -> bytes:
        return b"%d:%b," % (len(reply), reply)

    def encode_all(self, replies: list[bytes]) -> bytes:
        return b"".join([b"%d:%b," % (len(reply), reply) for reply in replies])

    def copy(self) -> Self:
        return type(self)(self.limit)

    def _check_head(self, head: bytes, requests: list[bytes]) -> None:
        """Raise at the first byte with which no netstring within the limit can go on."""
        # Byte by byte, so that the verdict is the same however they were split. They are few: one
        # digit more than the limit has either stands after a leading zero or is over it.
        length = 0
        for place, byte in enumerate(head):
            if byte == _COLON and place:
                return
            if not _ZERO <= byte <= _NINE or (place and not length):
                raise FramingError("a netstring's length is digits without a leading zero, then a colon", requests)
            length = length * 10 + byte - _ZERO
            if length > self.limit:
                raise _over(self.limit, requests)


class Fixed(_Holding):
    """A request is `size` bytes, and so is the next. A reply goes as it is, of any length."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size: Final = _checked_count("size", size)

    def __repr__(self) -> str:
        return f"Fixed(size={self.size})"

    def feed(self, data: bytes) -> Sequence[bytes]:
        if self.pending:
            data = self._resume(data)
        size = self.size
        if len(data) == size:
            return [data]
        whole = len(data) - len(data) % size
        if whole < len(data):
            self._hold(data[whole:], size)
        return [data[at : at + size] for at in range(0, whole, size)]

    def encode(self, reply: bytes) -> bytes:
        return reply

    def encode_all(self, replies: list[bytes]) -> bytes:
        return b"".join(replies)

    def copy(self) -> Self:
        return type(self)(self.size)


class Chunks:
    """A request is whatever has arrived, however the network cut it. A reply goes as it is.

    For services to which the cuts mean nothing: echo (RFC 862), discard (RFC 863).
    """

    __slots__ = ()

    pending: Final = 0

    def __repr__(self) -> str:
        return "Chunks()"

    def feed(self, data: bytes) -> Sequence[bytes]:
        return [data] if data else []

    def encode(self, reply: bytes) -> bytes:
        return reply

    def encode_all(self, replies: list[bytes]) -> bytes:
        return b"".join(replies)

    def end(self) -> Sequence[bytes]:
        return []

    def copy(self) -> Self:
        return type(self)()


def _over(limit: int, requests: Sequence[bytes] = ()) -> OverLimit:
    return OverLimit(f"a request is longer than {limit} bytes", requests)


def _checked_count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number of bytes, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1 byte, not {value}")
    return value


def _checked_mark(value: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"what ends a request must be bytes, not {value!r}")
    if not value:
        raise ValueError("what ends a request must be at least 1 byte, not none")
    return value
