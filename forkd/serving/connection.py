"""One accepted socket: what a handler sees of it, and its deadlines.

In a `sync` worker the socket blocks and the kernel keeps the time: SO_RCVTIMEO and SO_SNDTIMEO cost no system call a
request, where settimeout() costs a poll before each. They have two traps (socket(7)), handled here: they restart with
every byte, so a request that comes in pieces gets a clock of its own; and they report EAGAIN. In an `event` worker
nothing waits: the connection `parks` what the client does not take at once. `conversation` decides what the bytes mean.

Invariants. `deadline` is a time only while a request is half received; otherwise silence is measured, by
`idle_timeout`. `parked` holds bytes only if `parks` is set. While it does, whatever else is sent goes behind them and
no input is read; a handler that reads for itself first waits until they have gone. `unsent` holds encoded replies that
are sent together; it is the same list as the conversation's. After `closed` nothing is sent but what is parked, and our
side ends once that has gone.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, Final, TypeVar

from forkd.errors import DeadlineError, ForkdError, OverLimit, PeerGone, Truncated, WorkerLeaves
from forkd.ipc.deadlines import FIRST_GRACE, GRACE, PARKED_ALL_BYTES, PARKED_BYTES, STRAGGLERS, Deadlines
from forkd.kernel.address import Address, from_sockaddr
from forkd.kernel.sockopts import FOR_EVER, timeval
from forkd.serving.decoder import Decoder
from forkd.serving.framing import Framing

Request = TypeVar("Request")

RECEIVE_BYTES: Final = 65536
ROOMS: Final = (448, 4096, RECEIVE_BYTES)
"""Bytes of room for one recv(2), wider each time it was filled, because a small one is allocated faster.
With the object's header, the first still comes from Python's own allocator; the others come from the C library's."""
# As plain numbers: combining the members of an enumeration costs more than sending.
DONT_WAIT: Final = int(socket.MSG_DONTWAIT)
_MORE: Final = int(socket.MSG_MORE)
_SMALL: Final = 2048  # send(2) hardly ever waits with so few bytes, so the clock is not read before

Reading = Generator[None, bytes | None, bytes]
"""Reads from a stream without waiting: it yields for each piece, is sent that piece, and returns the result."""


class Connection:
    r"""One client, from accept to close, as a handler or hook sees it.

    `service` is the name of the service, `number` counts the connections of this worker from 1, `resources` is what the
    service's lifespan yielded (None without one). `leaving` is True once the worker has been ordered to leave: a stream
    handler that never stops should look at it now and then.

    Deadlines (`idle_timeout`, `read_timeout`, `write_timeout`) are those of the settings, in seconds. One that passes
    raises DeadlineError, a TimeoutError. A handler that lets it through ends the connection.

        @forkd.stream
        def countdown(connection: forkd.Connection) -> None:
            start = int(connection.read_until(b"\n", limit=20))
            for number in range(start, 0, -1):
                connection.send(b"%d\r\n" % number)
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
        self.heard = 0.0  # when `answering` last received from it, and counted the bytes itself
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
        self.stalled: Callable[[], None] | None = None  # called when something is parked, no matter what sent it
        self.room = room
        self.received = 0
        self.sent = 0
        self.known = False

    @property
    def data(self) -> dict[Any, Any]:
        """A dictionary for the handler's own use. It lives as long as the connection."""
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def peer(self) -> Address:
        """The client's address, as seen from here."""
        if not isinstance(self._peer, Address):
            sockaddr = self.sock.getpeername() if self._peer is None else self._peer
            self._peer = from_sockaddr(self.sock.family, sockaddr)
        return self._peer

    @property
    def local(self) -> Address:
        """The address that the client called, even if the listener is a wildcard."""
        if self._local is None:
            self._local = from_sockaddr(self.sock.family, self.sock.getsockname())
        return self._local

    @local.setter
    def local(self, address: Address) -> None:
        self._local = address

    def recv(self, n: int) -> bytes:
        """Returns at most `n` bytes as soon as there are any; `b""` at the end of the stream.

        The stream also ends once the worker has been ordered to leave and the client is silent. Replies that are still
        held back are sent first.

        Raises DeadlineError (a TimeoutError) after `idle_timeout` of silence, PeerGone (a ConnectionError) if the
        client broke off, and ValueError if `n` is less than 1.
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
        """Returns exactly `n` bytes.

        The first byte may take `idle_timeout`; from then on, all of them together may take `read_timeout`. If the call
        raises, the bytes that had arrived are kept for the next read.

        Raises EOFError if the stream ends before (one that is also Truncated if some of the bytes had arrived),
        DeadlineError, PeerGone, and ValueError if `n` is negative.
        """
        return self._driven(self.exactly(n))

    def read_until(self, mark: bytes, limit: int = 65536) -> bytes:
        """Returns the bytes up to and including `mark`.

        Raises OverLimit if there is no mark within the first `limit` bytes, and ValueError if the mark is empty.
        Deadlines, other errors and what happens to the bytes that had arrived are as with `read_exactly`.
        """
        return self._driven(self.until(mark, limit))

    def send(self, data: bytes) -> None:
        """Sends all of `data` as it is, without framing, after the replies before it.

        In a `sync` worker it returns when the kernel has taken all of it. In an `event` worker it returns at once,
        unless more than 1 MiB is waiting for this client; then it waits until the client has taken that.

        Raises DeadlineError (a TimeoutError) if the client does not take the data within `write_timeout`, PeerGone (a
        ConnectionError) if the client broke off, and ValueError after `close()`.
        """
        if self.unsent:
            self.flush()
        self.transmit(data, 0)

    def requests(self, framing: Framing[Request]) -> Iterator[Request]:
        """Yields the requests that `framing` cuts out of the rest of the stream, until its end.

        For a stream handler that comes to a part made of requests. The handler sends the replies itself, with
        `send(framing.encode(reply))`. Bytes after the last request taken stay with the framing: `recv` does not see
        them.

        Raises FramingError (OverLimit, Truncated), DeadlineError and PeerGone.
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

        A request loop ends once the handler has returned. Calling it again does nothing.
        """
        if self.closed:
            return
        with suppress(OSError):  # the client was faster
            self.flush(last=True)
        self.closed = True
        if not self.parked:
            self._shut()

    # What follows is internal.

    def receive(self, size: int) -> bytes:
        """Returns what recv(2) returns, within the deadline in force.

        Raises WorkerLeaves if the worker leaves and the client is silent.
        """
        if self.parked:
            self.drain()
        if self.deadline is not None:
            # Checked even if bytes wait in the socket: a client that drips quickly never lets the kernel's run out.
            left = self.deadline - monotonic()
            if left <= 0:
                raise self.silence()
            self._set_receive_timeout(left)
        sock = self.sock
        patient = sock.gettimeout() is None
        if not patient:  # an `event` worker's, whose handler reads from the connection itself
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
        """Returns the next bytes of the stream; waits for them unless the connection `parks`.

        Returns None if it does and none have arrived.
        """
        if not self.parks:
            return self.receive(self.room)
        try:
            return self.took(self.sock.recv(self.room, DONT_WAIT))
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerGone.by(error) from error

    def took(self, data: bytes) -> bytes:
        """Accounts for what was received."""
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
        """The room that the next connection begins with, so that a usual request is read at once."""
        return min(self.room, ROOMS[1])

    def flush(self, *, last: bool = False) -> None:
        """Sends the replies in `unsent` in one piece.

        The `last` ones wait in the kernel for the end of our side and leave in one packet with it (MSG_MORE of
        send(2)). A client that sends its next request as soon as it has the answer then already knows that it cannot.
        """
        unsent = self.unsent
        if unsent:
            data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
            unsent.clear()
            self.transmit(data, _MORE if last else 0)

    def hurry(self) -> None:
        """The worker leaves: between requests, wait a moment (GRACE) and no longer; a request that has begun is still
        read.

        Called in a signal handler, so it neither raises nor waits. The interrupted recv(2) starts again with the new
        timeout; if the handler raised instead, bytes already received could be lost. An order may be repeated in case
        it was missed; a repetition grants no new time but GRACE.
        """
        now = monotonic()
        if not self.leaving:
            self.leaving = True
            self.leave_by = now + (GRACE if self.known or self.received or self.heard else FIRST_GRACE)
        if self.deadline is None:
            self._set_receive_timeout(max(GRACE, self.leave_by - now))

    def last_call(self) -> None:
        """A leaving worker has answered all that has come: bytes still on their way get STRAGGLERS seconds."""
        if self.parks:
            self.leave_by = monotonic() + STRAGGLERS
        else:
            self._set_receive_timeout(STRAGGLERS)

    def counted(self) -> tuple[int, int]:
        """Returns the bytes received and sent since the last call."""
        moved = self.received, self.sent
        self.known = self.known or self.received > 0
        self.received = self.sent = 0
        return moved

    def start_clock(self) -> None:
        """A request has begun: it must be complete within `read_timeout`, in however many pieces it comes."""
        if self.deadline is None:
            self.deadline = monotonic() + (self._limits.read_timeout or FOR_EVER)

    def stop_clock(self) -> None:
        """The request is complete: silence is measured by `idle_timeout` again."""
        self.deadline = None
        if self.parks and not self._timed:
            return  # nothing has waited in the kernel for this client
        self._set_receive_timeout(self._limits.idle_timeout)
        if self.leaving:  # checked after the call: `hurry` may have come in between
            self._set_receive_timeout(GRACE)
        self._timed = False

    def unpark(self) -> bool:
        """Sends what the client takes of the parked bytes; True if none are left."""
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

    @property
    def parks_all(self) -> bool:
        """Whether everything owed is kept in memory, because the thread that serves this client serves others too."""
        return self.stalled is not None

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
        """Returns the error for a client that has not taken its replies in time."""
        return DeadlineError("write", self._limits.write_timeout)

    def silence(self) -> ForkdError:
        """Returns the error that silence within the deadline in force stands for."""
        if self.deadline is not None:
            return DeadlineError("read", self._limits.read_timeout)
        if self.leaving:
            return WorkerLeaves("the worker leaves")
        return DeadlineError("idle", self._limits.idle_timeout)

    def prepare(self) -> None:
        """Sets the socket's timeouts, if they were not inherited from the listener."""
        self.stop_clock()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self._limits.write_timeout))

    def take(self, size: int | None = None) -> bytes:
        """Removes and returns the first `size` of the bytes received in advance; all of them without `size`."""
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def keep(self, data: bytes) -> None:
        """Keeps bytes that were received but not asked for."""
        self._held += data

    def exactly(self, n: int) -> Reading:
        """Reads exactly `n` bytes; the caller does the waiting."""
        if n < 0:
            raise ValueError(f"read_exactly cannot read {n} bytes")
        return self._reading(lambda held: n if len(held) >= n else None)

    def until(self, mark: bytes, limit: int) -> Reading:
        """Reads up to and including `mark`; the caller does the waiting."""
        if not mark:
            raise ValueError("read_until needs a mark of at least one byte")

        looked = 0  # no mark begins before this

        def found(held: bytearray) -> int | None:
            nonlocal looked
            at = held.find(mark, looked)
            looked = max(0, len(held) - len(mark) + 1)
            if at + len(mark) > limit or (at < 0 and len(held) >= limit):
                raise OverLimit(f"no {mark!r} within {limit} bytes")
            return None if at < 0 else at + len(mark)

        return self._reading(found)

    def _driven(self, reading: Reading) -> bytes:
        """Runs a reading to its end, waiting in recv(2) for what it needs."""
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
        """Yields for each next piece of the stream, until `measure` returns how many of the held bytes are due."""
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
        """Sends all of `data`; if the rest may be parked, only what the client takes now."""
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
        """The client takes nothing: raises what that means, or returns 0 if it may wait."""
        if not isinstance(error, BlockingIOError):
            raise PeerGone.by(error) from error
        if not self.parks:
            raise self.too_slow() from None
        return 0

    def falls_short(self, data: bytes, sent: int, began: float) -> None:
        """The client has taken only `sent` bytes of `data`, since `began` (of the monotonic clock)."""
        if self.parks:
            self._park(data[sent:])
        else:
            self._send_rest(memoryview(data)[sent:], began)

    def _send_late(self, data: bytes) -> None:
        """Sends `data` behind what the client still has to take, if that is possible."""
        if self.closed:
            raise ValueError("nothing can be sent after close()")
        self._park(data)

    def _park(self, data: bytes) -> None:
        stalled = not self.parked
        self.parked += data
        if stalled and self.stalled is not None:
            self.stalled()
        if not self.parks_all:
            if len(self.parked) > PARKED_BYTES:
                self.drain()
        elif len(self.parked) > PARKED_ALL_BYTES:
            raise self.too_slow()

    def _shut(self) -> None:
        with suppress(OSError):  # the client was faster
            self.sock.shutdown(socket.SHUT_WR)

    def _send_rest(self, rest: memoryview, began: float) -> None:
        """Continues after a short send(2): either the deadline passed, or a signal came in between."""
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
        EndOfStream(f"the stream ended after {held} bytes, inside what was being read")
        if held
        else EOFError("end of stream")
    )
