"""Which process is which: the workers as the master holds them, and their fork servers.

The roster turns deaths, messages and what the scoreboards show into events, and the lifecycle's
names (service, generation, slot) into processes. It decides nothing.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final

from msgspec import Struct

from forkd.ipc.order import Order
from forkd.ipc.scoreboard import BOOTING, BUSY, BUSY_SINCE, GAUGES, IDLE, LEFT, RETIRING, STATE
from forkd.kernel import process, procfs
from forkd.kernel.poller import Poller
from forkd.kernel.procfs import OomWatch
from forkd.lifecycle.events import Departure, Event, Observed, WorkerGone, WorkerReady
from forkd.log import log
from forkd.master.boards import Boards
from forkd.master.fork_servers import Explain, ForkServers
from forkd.master.handles import ForkServerHandle, WorkerEstate, WorkerHandle

_NANO: Final = 1e-9
_UNREPORTED: Final = 2.0  # seconds that a fork server may take to report a worker's end

WorkerKey = tuple[str, int, int]
"""A worker as the lifecycle names it: service, generation and slot."""


class RosterEstate(Struct):
    """The processes as one program leaves them to the next.

    `boards` are the scoreboards and their eventfds by service; `ordered` are the workers whose fork has been
    ordered but not reported: service, generation, slot and row.
    """

    boards: dict[str, tuple[int, int]]
    fork_servers: list[ForkServerHandle]
    workers: list[WorkerEstate]
    ordered: list[tuple[str, int, int, int]]

    def descriptors(self) -> list[int]:
        boards = [fd for pair in self.boards.values() for fd in pair]
        servers = [fd for each in self.fork_servers for fd in each.descriptors()]
        return [*boards, *servers, *(fd for each in self.workers for fd in each.descriptors())]


class Roster:
    """The processes of a running master. `happened` gets each event."""

    def __init__(self, poller: Poller, boards: Boards, happened: Callable[[Event], None], explain: Explain) -> None:
        self.boards = boards
        self.fork_servers = ForkServers(poller, happened, explain, self._heard)
        self._happened = happened
        self._workers: dict[WorkerKey, WorkerHandle] = {}
        self._ordered: dict[WorkerKey, int] = {}
        self._behind: set[WorkerKey] = set()
        self._log = -1
        self._deaths = select.poll()
        self._oom = OomWatch(monotonic())

    def leave(self) -> RosterEstate:
        """All processes, for the program that replaces this one."""
        return RosterEstate(
            self.boards.leave(),
            self.fork_servers.leave(),
            [worker.leave() for worker in self._workers.values()],
            [(*key, row) for key, row in self._ordered.items()],
        )

    def resume(self, left: RosterEstate, log_fd: int) -> None:
        """Takes over the processes of the program before this one."""
        self.boards.resume(left.boards)
        self.fork_servers.resume(left.fork_servers)
        for worker in left.workers:
            self._add(WorkerHandle.resumed(worker, self.boards.board(worker.service).row(worker.place)))
        self._ordered = {(service, generation, slot): row for service, generation, slot, row in left.ordered}
        self._log, self._behind = log_fd, set(self._ordered)  # the log may have been reopened since they were ordered
        self.boards.woken = True
        self.reap()

    def look(self, at: Callable[[float], float]) -> Iterator[Event]:
        """What the scoreboards show: who is ready, and who is busy since when, by the master's time (`at`)."""
        self._look_for_the_dead()
        self._catch_up()
        self._oom.look(monotonic())
        for service in self.boards.services():  # a copy, because an event may be the last of a service
            workers = self.workers_of(service)
            for worker in workers:
                if not worker.ready and worker.row[STATE] in (IDLE, BUSY):
                    worker.ready = True
                    log.say("debug", "worker ready", worker.name())
                    yield WorkerReady(service, worker.generation, worker.slot)
            yield _observed(service, workers, at)

    def workers_of(self, service: str) -> list[WorkerHandle]:
        return [worker for worker in self._workers.values() if worker.service == service]

    def all_workers(self) -> list[WorkerHandle]:
        return list(self._workers.values())

    def fork(self, service: str, generation: int, slot: int, row: int) -> None:
        self.boards.prepare(service, row)
        self._ordered[service, generation, slot] = row
        self.fork_servers.fork(service, generation, slot, row)

    def tell(self, service: str, generation: int, slot: int, order: Order) -> None:
        worker = self._workers.get((service, generation, slot))
        if worker is not None:
            worker.tell(order)

    def signal(self, service: str, generation: int, slot: int, number: signal.Signals, reason: str) -> None:
        """Ends a worker by a signal, for a reason that is logged now and with its death."""
        worker = self._workers.get((service, generation, slot))
        if worker is not None:
            log.say("warning", f"ending a worker: {reason}", worker.name() | {"signal": number.name})
            worker.ended_for = worker.ended_for or reason
            worker.signal(number)

    def reopened(self, fd: int) -> None:
        """Hands the reopened log, which stays the master's descriptor `fd`, to all processes."""
        self._log = fd
        # A worker that was ordered before is forked with the old log, and may not have been reported yet.
        self._behind = {*self._ordered, *self._workers}
        self._catch_up()
        self.fork_servers.reopened(fd)

    def reap(self) -> None:
        """Handles every process that has ended: fork servers, their orphaned workers, and strangers."""
        for pid, status in process.reap():
            server = self.fork_servers.with_pid(pid)
            if server is not None:
                self.fork_servers.gone(server, status)
                self._orphaned(server)
                continue
            worker = next((each for each in self._workers.values() if each.pid == pid), None)
            if worker is not None:
                self._gone(worker, status)

    def close(self) -> None:
        """Closes everything; processes that are still there see the end of their sockets."""
        for worker in self._workers.values():
            worker.close()
        self.fork_servers.close()

    # What fork servers say, and how workers come and go.

    def _heard(self, server: ForkServerHandle, message: dict[str, Any], fds: list[int]) -> None:
        key = (server.service, server.generation)
        match message:
            case {"forked": int(slot), "pid": int(pid)} if (*key, slot) in self._ordered:
                self._forked(server, slot, pid, fds)
                return
            case {"not_forked": int(slot), "reason": str(reason)}:
                self._ordered.pop((*key, slot), None)
                self._not_forked(server, slot, reason)
            case {"gone": int(slot), "pid": int(pid), "status": int(status)}:
                worker = self._workers.get((*key, slot))
                if worker is not None and worker.pid == pid:
                    self._gone(worker, status)
        for fd in fds:
            os.close(fd)

    def _forked(self, server: ForkServerHandle, slot: int, pid: int, fds: list[int]) -> None:
        key = (server.service, server.generation, slot)
        row = self._ordered.pop(key)
        reason = ""
        try:
            # Fewer than were sent: the master has no room for them, and a worker whose leash is lost leaves by itself.
            room = len(fds) == 3
            if room and not procfs.is_child_of(fds[0], pid, {server.pid, os.getpid()}):
                reason = "its fork server reported a process that is not its child"
        except OSError:
            room = False
        if not room:
            reason = "the master has too many descriptors open: raise LimitNOFILE= or ulimit -n"
        if reason:
            for fd in fds:
                os.close(fd)
            self._not_forked(server, slot, reason)
            return
        pidfd, leash, stack = fds
        self.boards.woken = True  # it may have become ready, and said so, before the master knew of it
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, leash)
        words = self.boards.board(server.service).row(row)
        self._add(WorkerHandle(*key, pid, pidfd, sock, stack, row, monotonic(), row=words))

    def _not_forked(self, server: ForkServerHandle, slot: int, reason: str) -> None:
        log.say("error", f"no new worker: {reason}", server.name() | {"worker": slot})
        detail = f"service {server.service}: {reason}"
        self._happened(WorkerGone(server.service, server.generation, slot, Departure.BOOT_FAILED, detail))

    def _orphaned(self, server: ForkServerHandle) -> None:
        """Handles what a dead fork server leaves: orders that it did not carry out, and its workers."""
        for key in [each for each in self._ordered if each[:2] == (server.service, server.generation)]:
            del self._ordered[key]
            self._happened(WorkerGone(*key, Departure.LEFT))
        # Its workers are the master's children now, except one that it had reaped without reporting it.
        for worker in self.workers_of(server.service):
            if worker.generation == server.generation and _reaped(worker):
                self._gone(worker, None)

    def _add(self, worker: WorkerHandle) -> None:
        self._workers[worker.service, worker.generation, worker.slot] = worker
        self._deaths.register(worker.pidfd, select.POLLIN)

    def _catch_up(self) -> None:
        """Hands the log to the workers that still have the one before; what cannot go now goes at the next look."""
        for key in [each for each in self._behind if each in self._workers]:
            if self._workers[key].reopened(self._log):
                self._behind.discard(key)

    def _look_for_the_dead(self) -> None:
        """Handles workers whose end is not reported, because their fork server is stopped or lies."""
        now = monotonic()
        for fd, _ in self._deaths.poll(0):
            worker = next(each for each in self._workers.values() if each.pidfd == fd)
            if worker.dead_since is None:
                worker.dead_since = now
            elif now - worker.dead_since > _UNREPORTED:
                self._gone(worker, None)

    def _gone(self, worker: WorkerHandle, status: int | None) -> None:
        key = (worker.service, worker.generation, worker.slot)
        state = worker.row[STATE]
        if not worker.ready and state in (IDLE, BUSY, LEFT):
            self._happened(WorkerReady(*key))
        departure = Departure.CRASHED
        if state == LEFT and status == 0:
            departure = Departure.LEFT
        elif state == BOOTING:
            departure = Departure.BOOT_FAILED
        reason = self._log_departure(worker, departure, status)
        for gauge in GAUGES:
            worker.row[gauge] = 0
        del self._workers[key]
        self._deaths.unregister(worker.pidfd)
        worker.close()
        self._happened(WorkerGone(*key, departure, reason))

    def _log_departure(self, worker: WorkerHandle, departure: Departure, status: int | None) -> str:
        outcome = process.outcome(status)
        facts = worker.name() | {"age": round(monotonic() - worker.born, 3), "outcome": outcome}
        if departure is Departure.LEFT:
            log.say("debug", "worker left", facts)
            return ""
        stack = worker.stack_text()
        why = worker.ended_for
        if not why and process.exit_code(status) == -signal.SIGKILL and self._oom.killed():
            why = "the kernel's OOM killer was at work"
        log.say("error", f"worker {departure.value}", facts | {"why": why} | worker.last_doings(), block=stack)
        return f"service {worker.service}: worker {worker.slot} {departure.value} ({outcome})\n{stack}".rstrip()


def _observed(service: str, workers: list[WorkerHandle], at: Callable[[float], float]) -> Observed:
    busy = [worker for worker in workers if worker.row[STATE] == BUSY]
    requests = {
        (worker.generation, worker.slot): at(since * _NANO) for worker in busy if (since := worker.row[BUSY_SINCE])
    }
    retiring = frozenset((each.generation, each.slot) for each in workers if each.row[RETIRING])
    return Observed(service, frozenset((each.generation, each.slot) for each in busy), requests, retiring)


def _reaped(worker: WorkerHandle) -> bool:
    """Whether the worker has ended and another process has taken its status."""
    poll = select.poll()
    poll.register(worker.pidfd, select.POLLIN)
    if not poll.poll(0):
        return False
    try:
        os.waitid(os.P_PIDFD, worker.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
