"""An `event` worker whose handlers are coroutines: its loop inside asyncio's, or inside uvloop's if that is installed.

epoll(7) descriptors nest: asyncio waits for that of the worker's loop, which then takes its turn. So accepting,
deadlines and leaving are those of every event worker, and only what a handler awaits is up to asyncio.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import select
import signal
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic_ns
from typing import Any, Final

from forkd.ipc.deadlines import NEVER
from forkd.ipc.meter import Meter
from forkd.serving.async_visit import AsyncVisit
from forkd.workers.context import WorkerContext
from forkd.workers.event import EventLoop

_BEATS: Final = 4  # how often within request_timeout a loop with handlers at work reports that it turns


def loop_factory() -> Callable[[], AbstractEventLoop] | None:
    """Returns the maker of uvloop's loop, if that is installed; None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    made: Callable[[], AbstractEventLoop] = uvloop.new_event_loop
    return made


def serve(context: WorkerContext) -> None:
    """Serves until ordered to leave; returns when the last connection has ended."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(context))


def show_tasks(loop: EventLoop, stack: int) -> None:
    """Makes SIGUSR2 write into `stack` where each coroutine waits, after the stack of the thread itself.

    faulthandler's own handler comes first, because it works even where Python cannot run.
    """

    def show(signum: int, frame: object) -> None:
        for visit in list(loop.visits.values()):
            if isinstance(visit, AsyncVisit) and (waits := visit.stack()):
                connection = visit.connection
                text = f"Connection {connection.number} from {connection.peer} (most recent call last):\n{waits}"
                os.write(stack, text.encode(errors="backslashreplace"))

    faulthandler.unregister(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, show)
    signal.siginterrupt(signal.SIGUSR2, False)
    faulthandler.register(signal.SIGUSR2, stack, all_threads=True, chain=True)


async def _serve(context: WorkerContext) -> None:
    async with _alive(context) as resources:
        turner = Turner(context._replace(resources=resources))
        show_tasks(turner.loop, context.stack.fd)
        context.meter.idle()
        context.wake()
        await turner.run()


@asynccontextmanager
async def _alive(context: WorkerContext) -> AsyncIterator[Any]:
    """Runs the service's lifespan if it must be awaited, and yields the resources; the worker runs any other kind."""
    life = context.service.alive_awaited()
    if life is None:
        yield context.resources
        return
    try:
        resources = await life.__aenter__()
    except BaseException as error:
        raise context.stack.boot_error(error) from None
    try:
        yield resources
    finally:
        try:
            await life.__aexit__(None, None, None)
        except Exception as error:
            context.report.lifespan_failed(error)


class Turner:
    """Gives the worker's loop its turns inside asyncio."""

    def __init__(self, context: WorkerContext) -> None:
        self.pen = TaskPen(context.meter)
        self.loop = EventLoop(context, AsyncVisit, self.pen)
        self._aio = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._aio.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._due = NEVER
        self._beat = context.limits.request_timeout / _BEATS
        # Some loops redirect the process's signals away from the worker's inbox.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.loop.epoll.register(self._wake, select.EPOLLIN | select.EPOLLET)
        context.leash.notify = self._notify

    async def run(self) -> None:
        """Serves until the last connection has ended."""
        self.loop.replan = self.plan
        self._aio.add_reader(self.loop.epoll.fileno(), self.turn)
        self.turn()
        await self._over

    def turn(self) -> None:
        if self._over.done():
            return
        try:
            self.loop.turn(0)
            self.plan()
        except BaseException as error:
            if not self._over.done():
                self._over.set_exception(error)

    def plan(self) -> None:
        """Schedules the next turn, in case nothing happens before; or ends if there will be none."""
        if self.loop.failure is not None and not self._over.done():
            self._over.set_exception(self.loop.failure)
        if self.loop.over:
            if not self._over.done():
                self._over.set_result(None)
            return
        timeout = self.loop.timeout()
        if self.pen.in_hand and self._beat:
            self.pen.beat()
            timeout = self._beat if timeout is None else min(timeout, self._beat)
        due = NEVER if timeout is None else self._aio.time() + timeout
        if due < self._due:  # otherwise the turn already planned will find what is due
            if self._timer is not None:
                self._timer.cancel()
            self._due = due
            self._timer = self._aio.call_at(due, self._in_time)

    def _in_time(self) -> None:
        self._timer, self._due = None, NEVER
        self.turn()

    def close(self) -> None:
        """Releases what it waits with, in a process that continues."""
        if self._timer is not None:
            self._timer.cancel()
        os.close(self._wake)

    def _notify(self) -> None:
        os.eventfd_write(self._wake, 1)


class TaskPen:
    """A worker's pen for handlers that take turns.

    The time that the row shows for a request in hand is when the loop last turned: `AsyncVisit` limits a handler that
    only waits, the master one that holds up the loop.
    """

    def __init__(self, meter: Meter) -> None:
        # Keyed by when they began, which is different for each.
        self.in_hand: dict[int, tuple[bytes, bytes]] = {}
        self._meter = meter
        self._peer = b""

    def meets(self, peer: bytes) -> None:
        self._peer = peer

    def opened(self) -> None:
        self._meter.opened()

    def closed(self) -> None:
        self._meter.closed()

    def began(self, request: bytes = b"") -> int:
        now = monotonic_ns()
        while now in self.in_hand:
            now += 1
        self.in_hand[now] = (self._peer, request)
        self._meter.meets(self._peer)
        self._meter.shows(now, request)
        return now

    def ended(self, began: int) -> int:
        now = self._meter.ended(began)
        del self.in_hand[began]
        if self.in_hand:
            self.beat()
        return now

    def resumed(self, request: bytes) -> None:
        self._meter.resumed(request)

    def paused(self) -> None:
        self._meter.paused()

    def served(self) -> None:
        self._meter.served()

    def counted(self, column: int) -> None:
        self._meter.counted(column)

    def moved(self, received: int, sent: int) -> None:
        self._meter.moved(received, sent)

    def beat(self) -> None:
        """Notes that the loop turns; the row names the request that has been in hand the longest."""
        if self.in_hand:
            peer, request = next(iter(self.in_hand.values()))
            self._meter.meets(peer)
            self._meter.shows(monotonic_ns(), request)
