"""Bytes to frames and replies to bytes: where one request ends and the next begins.

Sans-IO and pure: bytes come in as arguments, requests go out as return values. It must not know
sockets, time, handlers or settings. However the bytes were split on the way, the same requests
come out, and the same error after them. One framing object serves one connection, which makes
its own with `copy()`. `Framing` says what the four methods do; the others say only what a request
is. The story goes on in `connection`, which feeds a framing and calls the handler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, TypeGuard, TypeVar, runtime_checkable

Request = TypeVar("Request", covariant=True)
"""What a framing makes of bytes: `bytes` for those here, any type for one of yours."""


@runtime_checkable
class Framing(Protocol[Request]):
    """What a service needs to know of its protocol; any object with these four methods is one.

    A framing whose requests are bytes is served quicker when it is a `QuickFraming` as well.
    A framing may also have an attribute `pending: int`, the bytes it holds of an incomplete
    request, 0 for none: the time a peer has to finish a request runs from the feed that made it
    more than 0. A framing without it counts as pending after each feed that gave no request.
    """

    def feed(self, data: bytes) -> Sequence[Request]:
        """The requests that `data`, the next bytes of the stream, completes, in their order.

        Bytes that break the rules raise FramingError (OverLimit: a request is too long). The
        requests that the same feed completed before the break go into the error's `requests`, so
        that they are still answered; a last one may stand for the break itself, for a handler that
        tells the client why. A framing that raised is not fed again.
        """

    def encode(self, reply: bytes) -> bytes:
        """One reply of a handler as it goes to the peer; ValueError if it cannot be sent."""

    def end(self) -> Sequence[Request]:
        """The requests that the end of the stream completes, mostly none; Truncated inside a request."""

    def copy(self) -> Self:
        """A fresh framing with the same parameters, for a new connection."""


class QuickFraming(Protocol):
    """A framing whose requests are bytes, and which dresses several replies at once."""

    pending: int

    def encode_all(self, replies: list[bytes]) -> bytes:
        """The replies as they go to the peer, one behind the other."""


def is_quick(framing: object) -> TypeGuard[QuickFraming]:
    """Whether it is such a framing: of those here most are."""
    return hasattr(framing, "encode_all") and hasattr(framing, "pending")
