"""What a framing is: it cuts the bytes of a stream into requests, and turns replies into bytes.

Pure: bytes come in as arguments, requests go out as return values. A framing knows nothing of sockets, time, handlers
or settings. However the network splits the bytes, the same requests come out, and the same error after them. The story
continues in `connection`, which feeds a framing, and in `conversation`, which calls the handler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, TypeGuard, TypeVar, runtime_checkable

Request = TypeVar("Request", covariant=True)
"""The type of a request: `bytes` for the framings that come with forkd, any type for your own."""


@runtime_checkable
class Framing(Protocol[Request]):
    """What a service must know about its protocol. Any object with these four methods is a framing.

    `Request` is the type of a request: `bytes` for the framings that come with forkd, any type for your own. A framing
    object serves one connection; forkd calls `copy()` to get one for each.

    A framing may also have an attribute `pending: int`: how many bytes of an incomplete request it holds, 0 if none.
    The client's `read_timeout` runs from the feed that makes it positive. Without this attribute, a request counts as
    begun after every feed that completed none.

    A framing whose requests are `bytes` is served faster if it has both `pending` and a method `encode_all(replies:
    list[bytes]) -> bytes`, which encodes several replies at once.

        class Words:
            # Requests are separated by blanks.
            def __init__(self) -> None:
                self.held = b""

            @property
            def pending(self) -> int:
                return len(self.held)

            def feed(self, data: bytes) -> list[bytes]:
                *words, self.held = (self.held + data).split(b" ")
                if len(self.held) > 1000:
                    raise forkd.OverLimit("a word is longer than 1000 bytes", words)
                return words

            def encode(self, reply: bytes) -> bytes:
                return reply + b" "

            def end(self) -> list[bytes]:
                return [self.held] if self.held else []

            def copy(self) -> "Words":
                return Words()
    """

    def feed(self, data: bytes) -> Sequence[Request]:
        """Returns the requests that `data`, the next bytes of the stream, completes, in order.

        Raises FramingError if the bytes break the protocol, or OverLimit, a subclass, if a request is too long.
        Requests that the same feed completed before the error belong in the error's `requests`; they are still
        answered. The last of them may stand for the error itself, so that a handler can report it to the client. A
        framing that has raised is not fed again.
        """

    def encode(self, reply: bytes) -> bytes:
        """Returns the bytes to send for one reply of a handler. Raises ValueError if the reply cannot be sent."""

    def end(self) -> Sequence[Request]:
        """Returns the requests that the end of the stream completes, usually none.

        Raises Truncated if the stream ends inside a request.
        """

    def copy(self) -> Self:
        """Returns a fresh framing with the same parameters, for a new connection."""


class QuickFraming(Protocol):
    """A framing whose requests are bytes, and which encodes several replies at once."""

    pending: int

    def encode_all(self, replies: list[bytes]) -> bytes:
        """Returns the bytes to send for these replies, in order."""


def is_quick(framing: object) -> TypeGuard[QuickFraming]:
    """Whether a framing can encode several replies at once. All that come with forkd but `LengthPrefixed` can."""
    return hasattr(framing, "encode_all") and hasattr(framing, "pending")
