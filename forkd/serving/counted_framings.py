"""Framings that know a request's size before it is complete: `LengthPrefixed`, `Netstrings`, `Fixed`; also `Chunks`."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, Literal, Self

from forkd.errors import FramingError
from forkd.serving.holding import Holding, checked_count, over_limit

BLOCK_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of the longest request whose length is sent ahead, unless the framing is given another limit."""

_LENGTH_FORMATS: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}

_COLON, _COMMA, _ZERO, _NINE = b":,09"


class LengthPrefixed(Holding):
    """A request is a length in `size` bytes (1, 2, 4 or 8), then that many bytes. A reply is sent the same way.

    The length is unsigned, does not count itself, and is sent with its highest byte first (`order="big"`) or last
    (`order="little"`). DNS over TCP uses this framing with `size=2` (RFC 1035, section 4.2.2). Requests come without
    the length.

    `limit` is the largest length in bytes. A greater one raises OverLimit before any of the request's bytes are read.
    If the stream ends inside a request, the framing raises Truncated. A reply too long for a length of `size` bytes
    raises ValueError.

        @forkd.service(forkd.LengthPrefixed(size=2))
        def resolve(query: bytes) -> bytes:
            return answer_of(query)
    """

    __slots__ = ("_length", "limit", "order", "size")

    def __init__(self, size: int = 4, order: Literal["big", "little"] = "big", limit: int = BLOCK_LIMIT) -> None:
        super().__init__()
        if checked_count("size", size) not in _LENGTH_FORMATS:
            raise ValueError(f"size must be 1, 2, 4 or 8 bytes, not {size}")
        if order not in ("big", "little"):
            raise ValueError(f'order must be "big" or "little", not {order!r}')
        self.size: Final = size
        self.order: Final = order
        self.limit: Final = checked_count("limit", limit)
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
                raise over_limit(self.limit, requests)
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


class Netstrings(Holding):
    """A request is a netstring: its length in decimal, a colon, that many bytes, and a comma, as in `5:hello,`.

    A reply is sent the same way. The format is that of https://cr.yp.to/proto/netstrings.txt, strictly: a length that
    is not made of digits alone or has a leading zero (`0:,` is the empty netstring), or a missing comma, raises
    FramingError.

    `limit` is the largest length in bytes. A greater one raises OverLimit at the digit that exceeds it. If the stream
    ends inside a request, the framing raises Truncated.
    """

    __slots__ = ("_most_digits", "limit")

    def __init__(self, limit: int = BLOCK_LIMIT) -> None:
        super().__init__()
        self.limit: Final = checked_count("limit", limit)
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
        """Raises at the first byte after which no netstring within the limit is possible."""
        # Byte by byte, so that the verdict does not depend on how the bytes were split. There are few of them:
        # with one digit more than the limit has, a number has a leading zero or is over the limit.
        length = 0
        for place, byte in enumerate(head):
            if byte == _COLON and place:
                return
            if not _ZERO <= byte <= _NINE or (place and not length):
                raise FramingError("a netstring's length is digits without a leading zero, then a colon", requests)
            length = length * 10 + byte - _ZERO
            if length > self.limit:
                raise over_limit(self.limit, requests)


class Fixed(Holding):
    """Every request is `size` bytes long. A reply is sent as it is and may have any length.

    If the stream ends inside a request, the framing raises Truncated.
    """

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size: Final = checked_count("size", size)

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
    """A request is whatever bytes have arrived, however the network cut them. A reply is sent as it is.

    For services to which these cuts mean nothing, such as echo (RFC 862) and discard (RFC 863).
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
