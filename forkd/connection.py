"""One accepted socket: what a handler sees of it, and its deadlines.

Sockets block, and the kernel keeps the time: SO_RCVTIMEO and SO_SNDTIMEO cost no system call a
request, where settimeout() costs a poll before each. Their traps (socket(7)) are dealt with here:
they restart with every byte, so that a request that comes in pieces gets a clock of its own, and
they report EAGAIN. What is made of the bytes is `conversation`'s affair.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

from forkd.address import Address, from_sockaddr
from forkd.errors import ForkdError, FramingError, OverLimit, Truncated
from forkd.framing import Framing

Request = TypeVar("Request")

RECEIVE_BYTES: Final = 65536
GRACE: Final = 0.05
"""Seconds for which a leaving worker still reads from a silent client before it ends the connection."""

# A timeout of 0 means for ever. It is set as ten years, for only a socket with a timeout has its
# calls interrupted by a signal whatever SA_RESTART says (signal(7)), which is how `hurry` works.
_FOR_EVER: Final = 315_360_000.0


class Limits(NamedTuple):
    """How long a connection may take over what, in seconds; 0 means for ever."""

    idle_timeout: float = 60
    read_timeout: float = 20
    write_timeout: float = 30


class DeadlineError(ForkdError, TimeoutError):
    """The peer was silent (`idle`), slow with a request (`read`) or slow to take a reply (`write`)."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        super().__init__(f"{what}_timeout of {seconds:g} s is over")


class PeerGone(ForkdError, ConnectionError):
    """The peer broke the connection off (reset, or gone while a reply was on its way)."""


class Leaving(ForkdError):
    """The worker leaves, and the peer has nothing under way: internal, never seen by a handler."""


def timeval(seconds: float) -> bytes:
    """A struct timeval for SO_RCVTIMEO and SO_SNDTIMEO; at least a microsecond, for 0 would mean no limit."""
    microseconds = max(1, round((seconds or _FOR_EVER) * 1_000_000))
    return struct.pack("ll", *divmod(microseconds, 1_000_000))


class Connection:
    """One client, from accept to close.

    `service` is the service's name, `number` counts this worker's connections from 1, `data` is
    the handler's own, `resources` is what the service's lifespan gave.
    """

    __slots__ = (
        "_deadline",
        "_held",
        "_limits",
        "_local",
        "_peer",
        "_socket",
        "at_end",
        "data",
        "leaving",
        "number",
        "received",
        "resources",
        "sent",
        "service",
    )

    def __init__(
        self,
        sock: socket.socket,
        *,
        service: str = "",
        number: int = 1,
        limits: Limits = Limits(),  # noqa: B008  # immutable
        resources: Any = None,
        peer: object = None,
    ) -> None:
        self._socket = sock
        self._peer = peer
        self._local: Address | None = None
        self._limits = limits
        self._held = b""
        self._deadline: float | None = None
        self.service = service
        self.number = number
        self.data: dict[Any, Any] = {}
        self.resources = resources
        self.leaving = False
        self.at_end = False
        self.received = 0
        self.sent = 0

    @property
    def peer(self) -> Address:
        """The client's address, as it is seen from here."""
        if not isinstance(self._peer, Address):
            sockaddr = self._socket.getpeername() if self._peer is None else self._peer
            self._peer = from_sockaddr(self._socket.family, sockaddr)
        return self._peer

    @property
    def local(self) -> Address:
        """The address that the client called, also where the listener is a wildcard."""
        if self._local is None:
            self._local = from_sockaddr(self._socket.family, self._socket.getsockname())
        return self._local

    def recv(self, n: int) -> bytes:
        """At most `n` bytes, as soon as there are any; `b""` at the stream's end.

        Raises DeadlineError (a TimeoutError) after `idle_timeout` of silence, PeerGone (a
        ConnectionError) when the client broke off. When the worker has been told to leave, a
        silent client's stream ends.
        """
        if self._held:
            data, self._held = self._held[:n], self._held[n:]
            return data
        try:
            return self.receive(n)
        except Leaving:
            return b""

    def read_exactly(self, n: int) -> bytes:
        """Just `n` bytes; raises EOFError where the stream ends before.

        The first byte may take `idle_timeout`, all of them `read_timeout` from then on.
        """
        return self._read(lambda held: n if len(held) >= n else None)

    def read_until(self, mark: bytes, limit: int = 65536) -> bytes:
        """The bytes up to and with `mark`; raises EOFError at the stream's end, OverLimit beyond `limit` bytes.

        The deadlines are those of `read_exactly`.
        """
        if not mark:
            raise ValueError("read_until needs a mark of at least one byte")

        def found(held: bytes) -> int | None:
            at = held.find(mark)
            if at + len(mark) > limit or (at < 0 and len(held) >= limit):
                raise OverLimit(f"no {mark!r} within {limit} bytes")
            return None if at < 0 else at + len(mark)

        return self._read(found)

    def send(self, data: bytes) -> None:
        """Sends all of `data` as it is, without framing.

        Raises DeadlineError (a TimeoutError) when the client has not taken it within
        `write_timeout`, PeerGone (a ConnectionError) when the client broke off.
        """
        began = monotonic()
        try:
            sent = self._socket.send(data)
            self.sent += sent
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:], began)
        except BlockingIOError:
            raise DeadlineError("write", self._limits.write_timeout) from None
        except OSError as error:
            raise PeerGone(f"the client broke off: {error.strerror}") from error

    def requests(self, framing: Framing[Request]) -> Iterator[Request]:
        """The requests that `framing` cuts out of the rest of the stream, to its end.

        For a stream handler that comes to a part which is a request loop. Raises OverLimit,
        Truncated and the deadlines' errors. Bytes behind the last request taken stay with the
        framing: `recv` does not see them again.
        """
        try:
            for batch in self.batches(framing.copy()):
                yield from batch
        except Leaving:
            return

    def close(self) -> None:
        """Ends our side: the client reads what was sent, then the end of the stream."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the client was faster

    # What follows is for forkd's own rooms.

    def batches(self, framing: Framing[Request]) -> Iterator[Sequence[Request]]:
        """The requests as they arrive together, one sequence a receive that completed any.

        Besides what `requests` raises: Leaving, between two requests of a worker told to leave.
        """
        feed, receive = framing.feed, self.receive
        tells_pending = hasattr(framing, "pending")
        data = self._take_held() or receive(RECEIVE_BYTES)
        while data:
            try:
                batch = feed(data)
            except FramingError as error:
                yield error.requests  # type: ignore[misc]  # the framing's own requests
                raise
            if batch:
                yield batch
            pending = framing.pending if tells_pending else not batch  # type: ignore[attr-defined]
            if pending:
                self._start_clock()
            elif self._deadline is not None:
                self._stop_clock()
            data = receive(RECEIVE_BYTES)
        last = framing.end()
        if last:
            yield last

    def receive(self, size: int) -> bytes:
        """What recv(2) gives, within the deadline in force; Leaving when the worker leaves and all is quiet."""
        if self._deadline is not None:
            self._set_receive_timeout(max(self._deadline - monotonic(), 0.000001))
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            raise self._silence() from None
        except OSError as error:
            raise PeerGone(f"the client broke off: {error.strerror}") from error
        if not data:
            self.at_end = True
        self.received += len(data)
        return data

    def hurry(self) -> None:
        """The worker leaves: between requests, wait for no more than GRACE; a request begun is still read.

        Called by a signal handler, so it neither raises nor waits. The interrupted recv(2) starts
        again with the new timeout; had the handler raised instead, bytes already received could be lost.
        """
        self.leaving = True
        if self._deadline is None:
            self._set_receive_timeout(GRACE)

    def prepare(self) -> None:
        """Sets the socket's timeouts, where the listener did not hand them down."""
        self._stop_clock()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self._limits.write_timeout))

    def _take_held(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def _read(self, measure: Any) -> bytes:
        """Reads until `measure` tells how many of the bytes held are wanted."""
        pieces = bytearray(self._take_held())
        try:
            while (size := measure(pieces)) is None:
                if pieces:
                    self._start_clock()
                data = self.receive(RECEIVE_BYTES)
                if not data:
                    raise _end_of_stream(len(pieces))
                pieces += data
        except Leaving:
            raise _end_of_stream(0) from None
        finally:
            if self._deadline is not None:
                self._stop_clock()
        self._held = bytes(pieces[size:])
        return bytes(pieces[:size])

    def _send_rest(self, rest: memoryview, began: float) -> None:
        """Goes on after a short send(2): the deadline passed, or a signal came in between."""
        allowed = self._limits.write_timeout or _FOR_EVER
        try:
            while rest:
                left = began + allowed - monotonic()
                if left <= 0:
                    raise DeadlineError("write", allowed)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(left))
                sent = self._socket.send(rest)
                self.sent += sent
                rest = rest[sent:]
        finally:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self._limits.write_timeout))

    def _start_clock(self) -> None:
        if self._deadline is None:
            self._deadline = monotonic() + (self._limits.read_timeout or _FOR_EVER)

    def _stop_clock(self) -> None:
        self._deadline = None
        self._set_receive_timeout(self._limits.idle_timeout)
        if self.leaving:  # asked after the call: `hurry` may have come in between
            self._set_receive_timeout(GRACE)

    def _silence(self) -> ForkdError:
        if self._deadline is not None:
            return DeadlineError("read", self._limits.read_timeout)
        if self.leaving:
            return Leaving("the worker leaves")
        return DeadlineError("idle", self._limits.idle_timeout)

    def _set_receive_timeout(self, seconds: float) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(seconds))


class EndOfStream(Truncated, EOFError):
    """The stream ended inside what a stream handler was reading."""


def _end_of_stream(held: int) -> EOFError:
    return (
        EndOfStream(f"the stream ended after {held} bytes of what was asked for") if held else EOFError("end of stream")
    )
