"""One connection of a service whose handler is an `async def`: a coroutine that waits where others block.

The handler sees an `AsyncConnection`; the loop of `event` sees a visit like any other. How a reply leaves, what an
error means and what is counted is left to `conversation`; `tasks` runs the loop of asyncio.

States. The task waits for input (`_waiter` is set), or for the client to take what is parked (a future in `_room`), or
for something of the handler's own, which is `at_work` while it has a request in hand. In any of these bytes may be
parked; `interest` is then OUT. Otherwise it is IN, even while the handler works, until input comes that nothing waits
for yet: then it is 0 until the task asks for input. `_arrived` holds input that the task has not taken yet. `_fail`
ends the task where it waits: with an exception in its future of `_room`, or by cancelling it with the error in
`_verdict`.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import traceback
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from types import CoroutineType
from typing import Any, TypeVar

from forkd.errors import DeadlineError, ForkdError, PeerGone, WorkerLeaves
from forkd.ipc.deadlines import NEVER, Deadlines
from forkd.ipc.meter import Pen
from forkd.serving.async_connection import AT_EASE, AsyncConnection
from forkd.serving.connection import DONT_WAIT, RECEIVE_BYTES, Connection, Reading
from forkd.serving.conversation import HELD_BYTES, HELD_NS, Conversation, Failed
from forkd.serving.decoder import Decoder
from forkd.serving.framing import Framing
from forkd.serving.outcome import End
from forkd.serving.service import Close, Service
from forkd.serving.visit import IN, OUT, Host

Request = TypeVar("Request")


class AsyncVisit:
    """One connection of such a service: the coroutine that serves it, and what that waits for."""

    __slots__ = (
        "_arrived",
        "_began",
        "_host",
        "_limits",
        "_loop",
        "_meter",
        "_name",
        "_owed_since",
        "_plain",
        "_room",
        "_service",
        "_task",
        "_touched",
        "_verdict",
        "_waiter",
        "at_work",
        "connection",
        "conversation",
        "fd",
        "interest",
        "sock",
    )

    def __init__(
        self,
        sock: socket.socket,
        connection: Connection,
        service: Service[..., Any],
        meter: Pen,
        limits: Deadlines,
        host: Host,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.connection = connection
        connection.stalled = self._await_room
        self._name = str(connection.peer).encode(errors="backslashreplace")
        self.conversation = Conversation(connection, service, meter, self._name)
        self.interest = IN
        self.at_work = False
        self._arrived: bytes | None = None  # received, but not yet taken by the reader
        self._began = 0.0
        self._plain = AsyncConnection(connection, self)
        self._service = service
        self._meter = meter
        self._limits = limits
        self._host = host
        self._touched = host.now
        self._owed_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None  # for input
        self._room: dict[asyncio.Future[None], asyncio.Task[Any] | None] = {}  # until the client takes more
        self._task: asyncio.Task[None] | None = None
        self._verdict: ForkdError | None = None

    # Called by the loop.

    def ready(self, event: int) -> None:
        """The socket is ready, or it is time to begin."""
        self._touched = self._host.now
        if self._task is None:
            self._task = self._loop.create_task(self._converse())
            self._task.add_done_callback(self._look_how_it_ended)
        elif self.connection.parked:
            if event & ~IN:
                self._unpark()
        elif self._waiter is None or self._waiter.done():
            self._want(0)  # nothing waits for it yet
        else:
            self._read(self._waiter)

    def _look_how_it_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._host.failed(error)

    def hurry(self) -> None:
        """The worker leaves, and so will this client soon."""
        self.connection.hurry()
        self._host.due_by(self.connection.leave_by)

    def due(self) -> float:
        """Returns when its time is over unless something happens before."""
        connection = self.connection
        if connection.parked:
            return self._owed_since + (self._limits.write_timeout or NEVER)
        if self._waiter is None:
            return self._began + (self._limits.request_timeout or NEVER) if self.at_work else NEVER
        if connection.deadline is not None:
            return connection.deadline
        if connection.leaving:
            return connection.leave_by
        return self._touched + (self._limits.idle_timeout or NEVER)

    def expire(self) -> None:
        """Its time is over."""
        connection = self.connection
        if connection.parked:
            self._fail(connection.too_slow())
        elif self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_exception(connection.silence())
        elif self._task is not None:
            error = DeadlineError("request", self._limits.request_timeout)
            error.add_note(f"the handler waited here:\n{self.stack()}")
            self._fail(error)

    def cut(self) -> None:
        self.expire()

    def stack(self) -> str:
        """Returns where its handler waits, the last call at the end; "" if none is at work."""
        return _stack(self._task) if self._task is not None and self.at_work else ""

    # Awaited by the handler.

    async def recv(self, n: int) -> bytes:
        if n < 1:
            raise ValueError(f"recv needs room for at least one byte, not {n}")
        if held := self.connection.take(n):
            return held
        self.connection.flush()
        try:
            data = await self.receive()
        except WorkerLeaves:
            return b""
        self.connection.keep(data[n:])
        return data[:n]

    async def read(self, reading: Reading) -> bytes:
        """Runs a reading to its end."""
        data = None
        try:
            while True:
                reading.send(data)
                try:
                    data = await self.receive()
                except BaseException as error:
                    reading.throw(error)
                    raise
        except StopIteration as done:
            return bytes(done.value)

    def requests(self, framing: Framing[Request]) -> AsyncIterator[Request]:
        self.connection.flush()
        return _Requests(self, Decoder(self.connection, framing))

    async def taken(self, all_but: int = 0) -> None:
        """Waits until the client has no more than `all_but` bytes left to take."""
        while len(self.connection.parked) > all_but:
            self._want(OUT)
            room = self._loop.create_future()
            self._room[room] = asyncio.current_task()
            try:
                await room
            finally:
                del self._room[room]

    async def receive(self) -> bytes:
        """Returns the next bytes; raises the error of a deadline or of recv(2), RuntimeError beside another reader."""
        if self._waiter is not None:
            raise RuntimeError("another coroutine is already reading from this connection")
        if self.connection.parked:
            await self.taken()
        if self._arrived is None:
            self._waiter = self._loop.create_future()
            self._want(IN)
            try:
                await self._waiter
            finally:
                self._waiter = None
        # Taken only here: if the future carried the bytes, a read cancelled just as they arrive would lose them.
        data, self._arrived = self._arrived, None
        assert data is not None
        return data

    def _read(self, waiter: asyncio.Future[None]) -> None:
        try:
            self._arrived = self.connection.took(self.sock.recv(RECEIVE_BYTES, DONT_WAIT))
        except BlockingIOError:
            return
        except OSError as error:
            waiter.set_exception(PeerGone.by(error))
        else:
            waiter.set_result(None)

    def _unpark(self) -> None:
        try:
            done = self.connection.unpark()
        except PeerGone as error:
            self._fail(error)
            return
        if len(self.connection.parked) <= AT_EASE:
            for room in self._room:
                if not room.done():
                    room.set_result(None)
        if done:
            self._want(IN)

    def _await_room(self) -> None:
        """The client has something to take, whatever the handler is doing."""
        self._want(OUT)

    def _want(self, interest: int) -> None:
        if interest != self.interest:
            if interest == OUT:
                self._owed_since = self._host.now
            self.interest = interest
            self._host.watch(self)

    def _fail(self, error: ForkdError) -> None:
        """Ends whatever the handler is doing with `error`."""
        self._verdict = error
        if self.connection.parked:
            self.connection.parked.clear()
            with suppress(OSError):  # the client was faster
                self.sock.shutdown(socket.SHUT_RDWR)  # anything sent after this would follow a hole in the stream
        heard = False
        for room, task in self._room.items():
            if not room.done():
                if task is self._task:
                    room.set_exception(error)
                    heard = True
                else:  # another client's handler: not its fault
                    room.set_result(None)
        if not heard and self._task is not None:
            self._task.cancel()

    # The coroutine that serves it.

    async def _converse(self) -> None:
        conversation, connection = self.conversation, self.connection
        try:
            await self._serve()
            outcome = conversation.over()
        except asyncio.CancelledError as error:
            outcome = conversation.over(self._verdict or error)
        except BaseException as error:
            outcome = conversation.over(error)
        connection.close()
        try:
            if outcome.end not in (End.RESET, End.WRITE):
                await self.taken()
        except (DeadlineError, PeerGone) as error:
            outcome = conversation.over(error)
        except asyncio.CancelledError:
            pass  # the loop ends
        connection.parked.clear()
        for room in self._room:  # other clients' handlers, which sent to this one
            if not room.done():
                room.set_result(None)
        conversation.close(outcome)
        if self._service.close_hook is not None:
            try:
                await _settled(self._service.close_hook(self._plain))  # type: ignore[arg-type]
            except BaseException as error:
                outcome = conversation.failure(error)
        conversation.account()
        self.interest = 0
        connection.stalled = None
        del self._plain  # which refers to this visit, as `stalled` did
        self._host.ended(self, outcome)

    async def _serve(self) -> None:
        conversation, connection, service = self.conversation, self.connection, self._service
        conversation.open()
        if service.connect_hook is not None:
            await self._reply(service.connect_hook(self._plain))  # type: ignore[arg-type]
            conversation.flush()
        if connection.closed:
            return
        if service.framing is None:
            try:
                await service.handler(self._plain)
            finally:
                self._meter.served()
            return
        decoder = conversation.decoder
        while not connection.closed and (data := await self.receive()):
            requests = decoder.hear(data)
            await self._answer_all(requests)
            decoder.wait()
        if not connection.closed:
            await self._answer_all(decoder.end())

    async def _answer_all(self, requests: Sequence[Any]) -> None:
        connection = self.connection
        unsent = connection.unsent
        held = late = 0
        for request in requests:
            now = await self._answer(request)
            if connection.closed:
                return
            if unsent:
                held += len(unsent[-1])
            late = late or now + HELD_NS
            if held > HELD_BYTES or now > late:
                self.conversation.flush()
                await self.taken(AT_EASE)
                await asyncio.sleep(0)  # the worker's other clients have their turn
                held = late = 0
        if requests or self.conversation.decoder.broken is not None:
            if connection.parked:
                await self.taken()
            self.conversation.settle()

    async def _answer(self, request: Any) -> int:
        connection, meter, service = self.connection, self._meter, self._service
        meter.meets(self._name)
        began = meter.began(request if type(request) is bytes else connection.latest)
        self.at_work, self._began = True, self._host.now
        try:
            reply = service.handler(request, self._plain) if service.takes_connection else service.handler(request)
            if type(reply) is CoroutineType:  # the usual cases, this and a reply of bytes, cost no calls
                reply = await reply
            if type(reply) is bytes:
                self.conversation.hold(reply)
            else:
                await self._reply(reply)
        except (Close, DeadlineError, PeerGone, asyncio.CancelledError):
            raise
        except BaseException as error:
            await self._recover(error)
        finally:
            self.at_work = False
            now = meter.ended(began)
        if now - began > HELD_NS and not connection.leaving:
            self.conversation.flush()
        return now

    async def _recover(self, error: BaseException) -> None:
        """Turns a handler's error into a reply, if the service has a hook for that."""
        hook = self.conversation.excused(error)
        try:
            await self._reply(hook(error, self._plain))  # type: ignore[arg-type]
        except (Close, DeadlineError, PeerGone, asyncio.CancelledError):
            raise
        except BaseException as second:
            raise Failed(second) from error

    async def _reply(self, reply: Any) -> None:
        """Takes any reply that a handler or hook may return, now or in the course of time."""
        conversation = self.conversation
        if inspect.isawaitable(reply):
            reply = await reply
        if conversation.hold(reply):
            return
        conversation.flush()
        try:
            if isinstance(reply, AsyncIterable):
                async for one in reply:
                    conversation.send_one(one)
                    await self.taken(AT_EASE)
            else:
                for one in reply:
                    conversation.send_one(one)
                    await self.taken(AT_EASE)
        finally:  # an unfinished generator would hold on to its resources
            if (close := getattr(reply, "aclose", None) or getattr(reply, "close", None)) is not None:
                await _settled(close())


class _Requests(AsyncIterator[Request]):
    """The iterator that `requests` returns. A generator would end with the first read that is cancelled."""

    def __init__(self, visit: AsyncVisit, decoder: Decoder[Request]) -> None:
        self._visit = visit
        self._decoder = decoder
        self._ready: deque[Request] = deque()
        self._kept = visit.connection.take()
        self._over = False

    async def __anext__(self) -> Request:
        while not self._ready:
            await self._read_on()
        return self._ready.popleft()

    async def _read_on(self) -> None:
        """Decodes the next bytes of the stream; raises StopAsyncIteration at its end."""
        decoder, connection = self._decoder, self._visit.connection
        if decoder.broken is not None:
            raise decoder.broken
        if self._over:
            raise StopAsyncIteration
        if not self._kept:
            decoder.wait()
        try:
            data = self._kept or await self._visit.receive()
        except ForkdError as error:
            if connection.deadline is not None:
                connection.stop_clock()
            if isinstance(error, WorkerLeaves):
                self._over = True
                raise StopAsyncIteration from None
            raise
        self._kept = b""
        if data:
            self._ready.extend(decoder.hear(data))
        else:
            self._over = True
            self._ready.extend(decoder.end())


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _stack(task: asyncio.Task[Any]) -> str:
    """Returns the frames of the coroutines that await one another (Task.get_stack returns only the first)."""
    summary = traceback.StackSummary()
    waits: Any = task.get_coro()
    while inspect.iscoroutine(waits) and waits.cr_frame is not None:
        frame = waits.cr_frame
        summary.append(traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        waits = waits.cr_await
    return "".join(summary.format())
