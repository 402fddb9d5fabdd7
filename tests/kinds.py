"""Serves one connection as each kind of worker does, in this process: the loop of `event` without listeners."""

from __future__ import annotations

import asyncio
import os
import socket
from random import Random
from time import monotonic
from typing import Any

import forkd
from forkd.ipc.brief import Retirement
from forkd.ipc.deadlines import NEVER, Deadlines
from forkd.ipc.meter import Meter
from forkd.ipc.scoreboard import BYTES_IN, BYTES_OUT, REQUESTS, Board
from forkd.kernel.address import from_sockaddr
from forkd.serving.connection import Connection
from forkd.serving.outcome import Outcome
from forkd.serving.service import Service
from forkd.workers.acceptor import Guest
from forkd.workers.account import Account
from forkd.workers.context import StackFile, WorkerContext
from forkd.workers.event import EventLoop
from forkd.workers.leash import Leash
from forkd.workers.tasks import Turner
from forkd.workers.tenure import Tenure


class NoSignals:
    """An inbox that never receives a signal."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0)

    def take(self) -> list[int]:
        return []


class Kept:
    """A report that records how connections ended."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.accounts: list[Account | None] = []

    def ended(self, connection: Connection, outcome: Outcome, account: Account | None) -> None:
        self.outcomes.append(outcome)
        self.accounts.append(account)

    def accept_failed(self, error: OSError) -> None:
        raise AssertionError("there is no listener to accept from")

    def accept_recovered(self, seconds: float) -> None:
        raise AssertionError("there is no listener to accept from")

    def lifespan_failed(self, error: Exception) -> None:
        raise AssertionError("there is no lifespan")


class Hall:
    """An `event` worker's loop, whose connections the test hands to it."""

    def __init__(
        self,
        service: Service[..., Any],
        limits: Deadlines = Deadlines(5, 5, 5),  # noqa: B008  # immutable
        threads: int = 0,
        meter: type[Meter] = Meter,
        *,
        access: bool = False,
    ) -> None:
        self.board = Board.create("test")
        self.row = self.board.row(1)
        self.report = Kept()
        self.inbox = NoSignals()
        self.leash, self.master = socket.socketpair()
        self.context = WorkerContext(
            name="test",
            service=service,
            doors=[],
            limits=limits,
            board=self.board,
            meter=meter(self.row),
            leash=Leash(self.leash, -1, lambda: None),
            inbox=self.inbox,  # type: ignore[arg-type]
            resources=None,
            tenure=Tenure(Retirement(), Random(1), monotonic(), 0),
            access=access,
            threads=threads,
            stack=StackFile(-1),
            wake=lambda: None,
            report=self.report,
        )
        self.loop = EventLoop(self.context)
        self.loop.open = False
        self.loop.number = 6

    def welcome(self, sock: socket.socket) -> None:
        """Serves a copy of the socket; the loop closes the copy at the end, as it does an accepted socket."""
        copy = sock.dup()
        self.loop.welcome(Guest(copy, None, from_sockaddr(copy.family, copy.getsockname())))

    def run(self) -> None:
        """Serves until the last connection has ended; some may still linger."""
        while self.loop.visits:
            self.loop.turn(self.loop.timeout())

    def check_account(self) -> None:
        """Checks that the account of the only connection, if there is one, agrees with the row."""
        account, row = self.report.accounts[0], self.row
        assert (account is not None) == self.context.access
        assert account is None or account[1:] == (row[REQUESTS], row[BYTES_IN], row[BYTES_OUT])

    def close(self) -> None:
        for visit in self.loop.visits.values():
            visit.sock.close()
        self.loop.lingering.expire(NEVER)
        self.loop.close()
        os.close(self.inbox.fd)
        self.leash.close()
        self.master.close()
        self.board.close()  # `row` keeps its numbers


def serve_by_event(
    sock: socket.socket,
    service: Service[..., Any],
    limits: Deadlines = Deadlines(5, 5, 5),  # noqa: B008  # immutable
    *,
    threads: int = 0,
    meter: type[Meter] = Meter,
    access: bool = False,
) -> tuple[Outcome, memoryview]:
    hall = Hall(service, limits, threads, meter, access=access)
    hall.welcome(sock)
    sock.close()
    hall.run()
    hall.close()
    hall.check_account()
    return hall.report.outcomes[0], hall.row


def awaited(service: Service[..., Any]) -> Service[..., Any]:
    """Returns the same service with an `async def` handler that waits before it answers."""
    handler = service.handler

    async def answer(request: Any) -> Any:
        await asyncio.sleep(0)
        return handler(request)

    made: Service[..., Any] = forkd.service(service.framing)(answer)
    made.connect_hook, made.close_hook, made.error_hook = service.connect_hook, service.close_hook, service.error_hook
    return made


def serve_by_tasks(
    sock: socket.socket,
    service: Service[..., Any],
    limits: Deadlines = Deadlines(5, 5, 5),  # noqa: B008  # immutable
    *,
    access: bool = False,
) -> tuple[Outcome, memoryview]:
    async def serve() -> tuple[Outcome, memoryview]:
        hall = Hall(service, limits, access=access)
        hall.loop.close()
        turner = Turner(hall.context)
        hall.loop = turner.loop
        hall.loop.open, hall.loop.number = False, 6
        hall.welcome(sock)
        sock.close()
        over = asyncio.ensure_future(turner.run())
        while not hall.report.outcomes:  # it may linger
            await asyncio.sleep(0)
        over.cancel()
        asyncio.get_running_loop().remove_reader(turner.loop.epoll.fileno())
        turner.close()
        hall.close()
        hall.check_account()
        return hall.report.outcomes[0], hall.row

    return asyncio.run(serve())
