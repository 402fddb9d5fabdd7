"""One accepted socket: what a handler sees of it, and its deadlines.

Sockets block, and the kernel keeps the time: SO_RCVTIMEO and SO_SNDTIMEO cost no system call a
request, where settimeout() costs a poll before each. Their traps (socket(7)) are dealt with here:
they restart with every byte, so that a request that comes in pieces gets a clock of its own, and
they report EAGAIN. What is made of the bytes is `conversation`'s affair.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, Final, TypeVar

from forkd.errors import DeadlineError, ForkdError, OverLimit, PeerGone, Truncated, WorkerLeaves
from forkd.ipc.deadlines import FIRST_GRACE, GRACE, PARKED_BYTES, STRAGGLERS, Deadlines
from forkd.kernel.address import Address, from_sockaddr
from forkd.kernel.sockopts import FOR_EVER, timeval
from forkd.serving.decoder import Decoder
from forkd.serving.framing import Framing

Request = TypeVar("Request")

RECEIVE_BYTES: Final = 65536
ROOMS: Final = (448, 4096, RECEIVE_BYTES)
"""Bytes of room for what comes: wider each time it has been filled, for the allocator is quicker with a smaller one.
The first is what Python's own allocator has, with the header of the object; all others are the C library's."""
# As plain numbers: combining the members of an enumeration costs more than sending.
DONT_WAIT: Final = int(socket.MSG_DONTWAIT)
_MORE: Final = int(socket.MSG_MORE)
_SMALL: Final = 2048  # bytes that send(2) hardly ever waits with, so that the clock need not be asked

Reading = Generator[None, bytes | None, bytes]
"""A wait for bytes, apart from how one waits: it yields for each piece, is sent it, and returns what was wanted."""


class Connection:
    """One client, from accept to close.

    `service` is the service's name, `number` counts this worker's connections from 1, `data` is
    the handler's own, `resources` is what the service's lifespan gave.
    """

    __slots__ = (
        "_data",
        "_flags",
        "_held",
        "_limits",
        "_local",
        "_peer",
        "_timed",
        "at_end",
        "closed",
        "cut",
        "deadline",
        "heard",
        "known",
        "latest",
        "leave_by",
        "leaving",
        "number",
        "parked",
        "parks",
        "received",
        "resources",
        "room",
        "sent",
        "service",
        "sock",
        "stalled",
        "unsent",
    )

    def __init__(
        self,
        sock: socket.socket,
        *,
        service: str = "",
        number: int = 1,
        limits: Deadlines = Deadlines(),  # noqa: B008  # immutable
        resources: Any = None,
        peer: object = None,
        parks: bool = False,
        room: int = ROOMS[0],
    ) -> None:
        self.sock = sock
        self._peer = peer
        self._local: Address | None = None
        self._limits = limits
        self._held = bytearray()
        self._data: dict[Any, Any] | None = None
        self._timed = True
        self.deadline: float | None = None
        self.heard = 0.0  # when `answering` last had something of it, and counted that itself
        self.leave_by = 0.0
        self.service = service
        self.number = number
        self.resources = resources
        self.leaving = False
        self.at_end = False
        self.closed = False
        self.cut = False
        self.latest = b""
        self.unsent: list[bytes] = []
        self.parks = parks
        self._flags = DONT_WAIT if parks else 0
        self.parked = bytearray()
        self.stalled: Callable[[], None] | None = None  # to call when it has something parked, whoever sent it
        self.room = room
        self.received = 0
        self.sent = 0
        self.known = False

    @property
    def data(self) -> dict[Any, Any]:
        """The handler's own, from the first to the last call for this connection."""
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def peer(self) -> Address:
        """The client's address, as it is seen from here."""
        if not isinstance(self._peer, Address):
            sockaddr = self.sock.getpeername() if self._peer is None else self._peer
            self._peer = from_sockaddr(self.sock.family, sockaddr)
        return self._peer

    @property
    def local(self) -> Address:
        """The address that the client called, also where the listener is a wildcard."""
        if self._local is None:
            self._local = from_sockaddr(self.sock.family, self.sock.getsockname())
        return self._local

    @local.setter
    def local(self, address: Address) -> None:
        self._local = address

    def recv(self, n: int) -> bytes:
        """At most `n` bytes, as soon as there are any; `b""` at the stream's end.

        Raises DeadlineError (a TimeoutError) after `idle_timeout` of silence, PeerGone (a
        ConnectionError) when the client broke off. When the worker has been told to leave, a
        silent client's stream ends.
        """
        if n < 1:
            raise ValueError(f"recv needs room for at least one byte, not {n}")
        if self._held:
            return self.take(n)
        if self.unsent:
            self.flush()
        try:
            return self.receive(n)
        except WorkerLeaves:
            return b""

    def read_exactly(self, n: int) -> bytes:
        """Just `n` bytes; raises EOFError where the stream ends before.

        The first byte may take `idle_timeout`, all of them `read_timeout` from then on. When it
        raises, what had come stays where the next read finds it.
        """
        return self._driven(self.exactly(n))

    def read_until(self, mark: bytes, limit: int = 65536) -> bytes:
        """The bytes up to and with `mark`; raises EOFError at the stream's end, OverLimit beyond `limit` bytes.

        The deadlines, and what becomes of the bytes when it raises, are as with `read_exactly`.
        """
        return self._driven(self.until(mark, limit))

    def send(self, data: bytes) -> None:
        """Sends all of `data` as it is, without framing, behind the replies given before.

        Raises DeadlineError (a TimeoutError) when the client has not taken it within
        `write_timeout`, PeerGone (a ConnectionError) when the client broke off.
        """
        if self.unsent:
            self.flush()
        self.transmit(data, 0)

    def requests(self, framing: Framing[Request]) -> Iterator[Request]:
        """The requests that `framing` cuts out of the rest of the stream, to its end.

        For a stream handler that comes to a part which is a request loop. Raises OverLimit,
        Truncated and the deadlines' errors. Bytes behind the last request taken stay with the
        framing: `recv` does not see them again.
        """
        if self.unsent:
            self.flush()
        decoder = Decoder(self, framing.copy())
        data = self.take()
        try:
            while data := data or self.receive(RECEIVE_BYTES):
                requests = decoder.hear(data)
                yield from requests
                if decoder.broken is not None:
                    raise decoder.broken
                decoder.wait()
                data = b""
        except WorkerLeaves:
            return
        finally:
            if self.deadline is not None:
                self.stop_clock()
        yield from decoder.end()

    def close(self) -> None:
        """Ends our side: the client reads what was sent, then the end of the stream.

        A request loop ends with it, once the handler has returned.
        """
        if self.closed:
            return
        with suppress(OSError):  # the client was faster
            self.flush(last=True)
        self.closed = True
        if not self.parked:
            self._shut()

    # What follows is for forkd's own rooms.

    def receive(self, size: int) -> bytes:
        """What recv(2) gives, within the deadline in force; Leaving when the worker leaves and all is quiet."""
        if self.parked:
            self.drain()
        if self.deadline is not None:
            # Looked at even when bytes wait in the socket: a peer that drips quickly never lets the kernel's run out.
            left = self.deadline - monotonic()
            if left <= 0:
                raise self.silence()
            self._set_receive_timeout(left)
        sock = self.sock
        patient = sock.gettimeout() is None
        if not patient:  # an `event` worker's, whose handler reads for itself all the same
            sock.setblocking(True)
        try:
            data = sock.recv(size)
        except BlockingIOError:
            raise self.silence() from None
        except OSError as error:
            raise PeerGone.by(error) from error
        finally:
            if not patient:
                sock.setblocking(False)
        return self.took(data)

    def arrived(self) -> bytes | None:
        """The next bytes of the stream, waited for unless the connection `parks`; None when none have come."""
        if not self.parks:
            return self.receive(self.room)
        try:
            return self.took(self.sock.recv(self.room, DONT_WAIT))
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerGone.by(error) from error

    def took(self, data: bytes) -> bytes:
        """Accounts for what has been received."""
        if not data:
            self.at_end = not self.cut
        elif len(data) == self.room:
            self.widen()
        self.received += len(data)
        self.latest = data
        return data

    def widen(self) -> None:
        """The room was filled: there may be more next time."""
        self.room = next((room for room in ROOMS if room > self.room), RECEIVE_BYTES)

    @property
    def room_for_the_next(self) -> int:
        """What a connection like this one begins with, so that what mostly comes is read at once."""
        return min(self.room, ROOMS[1])

    def flush(self, *, last: bool = False) -> None:
        """Sends the replies in `unsent`, in one piece; the `last` ones wait in the kernel for the end of our side.

        They leave in one packet with it (MSG_MORE of send(2)), so that a client which asks again as soon as
        it has its answer has learnt by then that it cannot.
        """
        unsent = self.unsent
        if unsent:
            data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
            unsent.clear()
            self.transmit(data, _MORE if last else 0)

    def hurry(self) -> None:
        """The worker leaves: between requests, wait a moment (GRACE) and no longer; a request begun is still read.

        Called by a signal handler, so it neither raises nor waits. The interrupted recv(2) starts
        again with the new timeout; had the handler raised instead, bytes already received could be lost.
        Said again, as orders are that may have been missed, it grants no new time but GRACE.
        """
        now = monotonic()
        if not self.leaving:
            self.leaving = True
            self.leave_by = now + (GRACE if self.known or self.received or self.heard else FIRST_GRACE)
        if self.deadline is None:
            self._set_receive_timeout(max(GRACE, self.leave_by - now))

    def last_call(self) -> None:
        """A leaving worker has answered all that has come: what is still on its way gets STRAGGLERS seconds."""
        if self.parks:
            self.leave_by = monotonic() + STRAGGLERS
        else:
            self._set_receive_timeout(STRAGGLERS)

    def counted(self) -> tuple[int, int]:
        """The bytes received and sent since this was last asked."""
        moved = self.received, self.sent
        self.known = self.known or self.received > 0
        self.received = self.sent = 0
        return moved

    def start_clock(self) -> None:
        """A request has begun: it has `read_timeout` to be whole, however many pieces it comes in."""
        if self.deadline is None:
            self.deadline = monotonic() + (self._limits.read_timeout or FOR_EVER)

    def stop_clock(self) -> None:
        """The request is whole: silence is measured by `idle_timeout` again."""
        self.deadline = None
        if self.parks and not self._timed:
            return  # nobody has waited in the kernel for this client
        self._set_receive_timeout(self._limits.idle_timeout)
        if self.leaving:  # asked after the call: `hurry` may have come in between
            self._set_receive_timeout(GRACE)
        self._timed = False

    def unpark(self) -> bool:
        """Sends what it can of what is parked; True when nothing is left."""
        parked = self.parked
        try:
            while parked:
                sent = self.sock.send(parked, DONT_WAIT)
                self.sent += sent
                del parked[:sent]
        except BlockingIOError:
            return False
        except OSError as error:
            raise PeerGone.by(error) from error
        if self.closed:
            self._shut()
        return True

    def drain(self) -> None:
        """Waits until the client has taken what is parked."""
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        until = monotonic() + (self._limits.write_timeout or FOR_EVER)
        while not self.unpark():
            left = until - monotonic()
            if left <= 0:
                raise self.too_slow()
            poll.poll(min(left, 86400) * 1000)

    def too_slow(self) -> DeadlineError:
        """The client has not taken its replies in time."""
        return DeadlineError("write", self._limits.write_timeout)

    def silence(self) -> ForkdError:
        """What it means that nothing came within the deadline in force."""
        if self.deadline is not None:
            return DeadlineError("read", self._limits.read_timeout)
        if self.leaving:
            return WorkerLeaves("the worker leaves")
        return DeadlineError("idle", self._limits.idle_timeout)

    def prepare(self) -> None:
        """Sets the socket's timeouts, where the listener did not hand them down."""
        self.stop_clock()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self._limits.write_timeout))

    def take(self, size: int | None = None) -> bytes:
        """The first of the bytes that were received and not asked for; all of them unless told how many."""
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def keep(self, data: bytes) -> None:
        """What was received and not asked for."""
        self._held += data

    def exactly(self, n: int) -> Reading:
        """Reading just `n` bytes, for whoever waits for what it yields for."""
        if n < 0:
            raise ValueError(f"read_exactly cannot read {n} bytes")
        return self._reading(lambda held: n if len(held) >= n else None)

    def until(self, mark: bytes, limit: int) -> Reading:
        """Reading up to and with `mark`, likewise."""
        if not mark:
            raise ValueError("read_until needs a mark of at least one byte")

        def found(held: bytearray) -> int | None:
            at = held.find(mark)
            if at + len(mark) > limit or (at < 0 and len(held) >= limit):
                raise OverLimit(f"no {mark!r} within {limit} bytes")
            return None if at < 0 else at + len(mark)

        return self._reading(found)

    def _driven(self, reading: Reading) -> bytes:
        """What a reading comes to, waiting in recv(2) for what it wants."""
        data = None
        try:
            while True:
                reading.send(data)
                try:
                    data = self.receive(RECEIVE_BYTES)
                except BaseException as error:
                    reading.throw(error)
                    raise
        except StopIteration as done:
            return bytes(done.value)

    def _reading(self, measure: Callable[[bytearray], int | None]) -> Reading:
        """Yields for each next piece of the stream, until `measure` tells how many of the bytes held are wanted."""
        if self.unsent:
            self.flush()
        held = self._held
        try:
            while (size := measure(held)) is None:
                if held:
                    self.start_clock()
                data = yield
                if not data:
                    raise _end_of_stream(len(held))
                held += data
        except WorkerLeaves:
            raise _end_of_stream(0) from None
        finally:
            if self.deadline is not None:
                self.stop_clock()
        return self.take(size)

    def transmit(self, data: bytes, flags: int = 0) -> None:
        """Sends all of `data`, or what the client takes now where the rest may be parked."""
        if self.parked or self.closed:
            self._send_late(data)
            return
        began = monotonic() if len(data) > _SMALL else None
        try:
            sent = self.sock.send(data, flags | self._flags)
        except OSError as error:
            sent = self.refuses(error)
        self.sent += sent
        if sent < len(data):
            self.falls_short(data, sent, began or monotonic())

    def refuses(self, error: OSError) -> int:
        """The client takes nothing: raises what that means, or gives 0 where it may wait."""
        if not isinstance(error, BlockingIOError):
            raise PeerGone.by(error) from error
        if not self.parks:
            raise self.too_slow() from None
        return 0

    def falls_short(self, data: bytes, sent: int, began: float) -> None:
        """The client has taken only so many bytes of `data`, since `began` (of the monotonic clock)."""
        if self.parks:
            self._park(data[sent:])
        else:
            self._send_rest(memoryview(data)[sent:], began)

    def _send_late(self, data: bytes) -> None:
        """Behind what the client has still to take, if that may be."""
        if self.closed:
            raise ValueError("nothing can be sent after close()")
        self._park(data)

    def _park(self, data: bytes) -> None:
        stalled = not self.parked
        self.parked += data
        if stalled and self.stalled is not None:
            self.stalled()
        if len(self.parked) > PARKED_BYTES:
            self.drain()

    def _shut(self) -> None:
        with suppress(OSError):  # the client was faster
            self.sock.shutdown(socket.SHUT_WR)

    def _send_rest(self, rest: memoryview, began: float) -> None:
        """Goes on after a short send(2): the deadline passed, or a signal came in between."""
        allowed = self._limits.write_timeout or FOR_EVER
        try:
            while rest:
                left = began + allowed - monotonic()
                if left <= 0:
                    raise self.too_slow()
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(left))
                try:
                    sent = self.sock.send(rest)
                except BlockingIOError:
                    raise self.too_slow() from None
                except OSError as error:
                    raise PeerGone.by(error) from error
                self.sent += sent
                rest = rest[sent:]
        finally:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self._limits.write_timeout))

    def _set_receive_timeout(self, seconds: float) -> None:
        self._timed = True
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(seconds))


class EndOfStream(Truncated, EOFError):
    """The stream ended inside what a stream handler was reading."""


def _end_of_stream(held: int) -> EOFError:
    return (
        EndOfStream(f"the stream ended after {held} bytes of what was asked for") if held else EOFError("end of stream")
    )
