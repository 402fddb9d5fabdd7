"""Which process is which: fork servers and workers as the master holds them, and word to and from them.

The roster turns deaths, messages and what the scoreboards say into events, and the lifecycle's
names (service, generation, slot) into processes. It decides nothing.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from msgspec import Struct

from forkd.errors import Exit
from forkd.ipc import channel
from forkd.ipc.brief import Brief
from forkd.ipc.order import Order
from forkd.ipc.scoreboard import (
    BOOTING,
    BUSY,
    BUSY_SINCE,
    GAUGES,
    HIGHEST,
    IDLE,
    LEFT,
    PHASE,
    RETIRING,
    SPARE,
    STATE,
    STOPPING,
    Board,
)
from forkd.kernel import process, procfs
from forkd.kernel.poller import Poller
from forkd.kernel.procfs import OomWatch
from forkd.lifecycle.events import (
    Departure,
    Event,
    ForkServerGone,
    ForkServerReady,
    Observed,
    Plan,
    WorkerGone,
    WorkerReady,
)
from forkd.log import log
from forkd.master.handles import ForkServerHandle, WorkerEstate, WorkerHandle

_NANO: Final = 1e-9
_UNTOLD: Final = 2.0  # seconds for which a fork server may keep a worker's end to itself

Explain = Callable[[str, str], str]
"""Turns the mistake of a service's application into one of the settings', with file and line."""


class RosterEstate(Struct):
    """The processes as one program leaves them to the next.

    `boards` are the scoreboards and their eventfds by service, `ordered` the workers that are to be forked:
    service, generation, slot and row.
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
    """The processes of a running master. `happened` is told each event.

    While `quiet`, the end of a fork server is no error to log: a start that fails ends with its reason
    anyway, and at a stop they end, by whatever signal their whole group was sent.
    """

    def __init__(self, wait: Poller, happened: Callable[[Event], None], explain: Explain) -> None:
        self.woken = False
        self.quiet = True
        self._wait = wait
        self._happened = happened
        self._boards: dict[str, tuple[Board, int]] = {}
        self._fork_servers: dict[tuple[str, int], ForkServerHandle] = {}
        self._workers: dict[tuple[str, int, int], WorkerHandle] = {}
        self._rows: dict[tuple[str, int, int], int] = {}
        self._behind: set[tuple[str, int, int]] = set()
        self._log = -1
        self._explain = explain
        self._deaths = select.poll()
        self._oom = OomWatch(monotonic())

    def leave(self) -> RosterEstate:
        """All of it, for the program that takes our place."""
        return RosterEstate(
            {service: (board.fd, wake) for service, (board, wake) in self._boards.items()},
            list(self._fork_servers.values()),
            [worker.leave() for worker in self._workers.values()],
            [(*key, row) for key, row in self._rows.items()],
        )

    def resume(self, left: RosterEstate, log_fd: int) -> None:
        """Takes over the processes of the program before us."""
        self.quiet = False
        for service, (fd, wake) in left.boards.items():
            self._add_board(service, Board(fd), wake)
        for server in left.fork_servers:
            self._add_fork_server(server)
        for worker in left.workers:
            self._add_worker(WorkerHandle.resumed(worker, self.board(worker.service)[0].row(worker.place)))
        self._rows = {(service, generation, slot): row for service, generation, slot, row in left.ordered}
        self._log, self._behind = log_fd, set(self._rows)  # it may have reopened the log since it ordered them
        self.woken = True
        self.reap()

    # Scoreboards.

    def board(self, service: str) -> tuple[Board, int]:
        """The scoreboard of a service, made when it is first asked for, and the eventfd(2) that wakes the master."""
        if service not in self._boards:
            self._add_board(service, Board.create(service), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return self._boards[service]

    def _add_board(self, service: str, board: Board, wake: int) -> None:
        self._boards[service] = (board, wake)
        self._wait.watch(wake, lambda: self._woken(wake))

    def spare(self, service: str, plan: Plan) -> None:
        """Has workers wake the master when fewer than these are idle; never in a pool of a fixed size."""
        board, _ = self.board(service)
        board.header[SPARE] = max(1, plan.spare) if plan.minimum < plan.maximum else 0

    def stopping(self) -> None:
        """Has leaving workers empty the accept queues."""
        self.quiet = True
        for board, _ in self._boards.values():
            board.header[PHASE] = STOPPING

    def forget(self, service: str) -> None:
        """The last process of the service has gone."""
        board, wake = self._boards.pop(service)
        self._wait.unwatch(wake)
        os.close(wake)
        board.close()

    def look(self, at: Callable[[float], float]) -> Iterator[Event]:
        """What the scoreboards say: who is ready, who is busy, and since when (`at` makes their time the master's)."""
        self._look_for_the_dead()
        self._catch_up()
        self._oom.look(monotonic())
        for service in list(self._boards):  # an event may be the last of a service
            workers = self.workers_of(service)
            for worker in workers:
                if not worker.ready and worker.row[STATE] in (IDLE, BUSY):
                    worker.ready = True
                    log.say("debug", "worker ready", worker.name())
                    yield WorkerReady(service, worker.generation, worker.slot)
            busy = [worker for worker in workers if worker.row[STATE] == BUSY]
            requests = {
                (worker.generation, worker.slot): at(since * _NANO)
                for worker in busy
                if (since := worker.row[BUSY_SINCE])
            }
            retiring = frozenset((each.generation, each.slot) for each in workers if each.row[RETIRING])
            yield Observed(service, frozenset((each.generation, each.slot) for each in busy), requests, retiring)

    # Fork servers.

    def start(self, told: Brief) -> None:
        """Starts a fork server; a failure is told like one of its own."""
        key = (told.service, told.generation)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keep = sorted(told.descriptors())
        try:
            pid = process.spawn("workers.fork_server", theirs.fileno(), keep)
        except OSError as error:
            ours.close()
            self._happened(
                ForkServerGone(*key, f"service {told.service}: cannot start a fork server: {error.strerror}")
            )
            return
        finally:
            theirs.close()
        ours.send(told.encode())
        handle = ForkServerHandle(told.service, told.generation, pid, ours)
        self._add_fork_server(handle)
        log.say("debug", "fork server started", handle.name())

    def _add_fork_server(self, handle: ForkServerHandle) -> None:
        self._fork_servers[handle.service, handle.generation] = handle
        handle.sock.setblocking(False)
        if handle.heard:
            self._wait.watch(handle.sock.fileno(), lambda: self._hear(handle), writing=bool(handle.outbox))

    def end(self, service: str, generation: int, *, kill: bool) -> None:
        handle = self._fork_servers.get((service, generation))
        if handle is None:
            return
        handle.expected = True
        if kill:
            handle.kill()
        else:
            self._post(handle, {"end": True})

    def retire(self, serving: Mapping[str, int]) -> None:
        """Has the fork servers of all generations but these let go of the listeners, for they fork no more."""
        for handle in self._fork_servers.values():
            if handle.generation != serving.get(handle.service):
                self._post(handle, {"retired": True})

    def fork(self, service: str, generation: int, slot: int, row: int) -> None:
        board, _ = self.board(service)
        board.heal(0)
        board.heal(row)
        board.header[HIGHEST] = max(board.header[HIGHEST], row)
        board.row(row)[STATE] = BOOTING
        self._rows[service, generation, slot] = row
        handle = self._fork_servers.get((service, generation))
        if handle is not None:
            self._post(handle, {"fork": slot, "row": row})

    def reap(self) -> None:
        """Sees to every process that has ended: fork servers, their orphaned workers, and strangers."""
        for pid, status in process.reap():
            server = next((each for each in self._fork_servers.values() if each.pid == pid), None)
            if server is not None:
                self._fork_server_gone(server, status)
                continue
            worker = next((each for each in self._workers.values() if each.pid == pid), None)
            if worker is not None:
                self._worker_gone(worker, status)

    # Workers.

    def workers_of(self, service: str) -> list[WorkerHandle]:
        return [worker for worker in self._workers.values() if worker.service == service]

    def all_workers(self) -> list[WorkerHandle]:
        return list(self._workers.values())

    def tell(self, service: str, generation: int, slot: int, order: Order) -> None:
        worker = self._workers.get((service, generation, slot))
        if worker is not None:
            worker.tell(order)

    def signal(self, service: str, generation: int, slot: int, number: signal.Signals, reason: str) -> None:
        worker = self._workers.get((service, generation, slot))
        if worker is not None:
            log.say("warning", f"ending a worker: {reason}", worker.name() | {"signal": number.name})
            worker.ended_for = worker.ended_for or reason
            worker.signal(number)

    def reopened(self, fd: int) -> None:
        """Hands the reopened log, which the master has as `fd` for good, to everybody."""
        self._log = fd
        # A worker that was ordered before is forked with the old one, and we may not know of it yet.
        self._behind = {*self._rows, *self._workers}
        self._catch_up()
        for server in self._fork_servers.values():
            self._post(server, {"reopened": True}, fd)

    def _catch_up(self) -> None:
        """Hands the log to the workers that have still the one before; what can't go now goes at the next look."""
        for key in [each for each in self._behind if each in self._workers]:
            if self._workers[key].reopened(self._log):
                self._behind.discard(key)

    def close(self) -> None:
        """Lets go of everything; whoever is still there learns it by the end of its socket."""
        for worker in self._workers.values():
            worker.close()
        for server in self._fork_servers.values():
            server.sock.close()

    # What they are told, what they say, and how they go.

    def _post(self, server: ForkServerHandle, message: dict[str, object], fd: int | None = None) -> None:
        """Tells a fork server something, later if its socket is full: an order that got lost would be waited for."""
        if server.heard:
            whole = server.post(message, fd)
            self._wait.watch(server.sock.fileno(), lambda: self._hear(server), writing=not whole)

    def _woken(self, wake: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(wake)
        self.woken = True

    def _hear(self, server: ForkServerHandle) -> None:
        """Takes what a fork server has said; that it has gone is told by its death, not by its silence."""
        if server.outbox:
            self._wait.watch(server.sock.fileno(), lambda: self._hear(server), writing=not server.flush())
        while server.heard:
            try:
                received = channel.receive(server.sock, 3)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it ended with an order unread (unix(7)); what it said before that comes next
            except (OSError, ValueError):  # an application at its import could write anything here
                received = None
            if received is None:
                self._hear_no_more(server)
            else:
                self._heard(server, *received)

    def _hear_no_more(self, server: ForkServerHandle) -> None:
        if server.heard:
            server.heard = False
            self._wait.unwatch(server.sock.fileno())
            server.discard()

    def _heard(self, server: ForkServerHandle, message: dict[str, Any], fds: list[int]) -> None:
        key = (server.service, server.generation)
        match message:
            case {"ready": _}:
                left_behind = message.get("left_behind")
                for each in left_behind if isinstance(left_behind, list) else []:
                    log.say("warning", str(each), server.name())
                self._happened(ForkServerReady(*key))
            case {"failed": str(reason), "status": int(status)}:
                wrong = status == Exit.CONFIG
                server.reason = self._explain(key[0], reason) if wrong else f"service {key[0]}: {reason}"
                server.status = status
            case {"forked": int(slot), "pid": int(pid)} if (*key, slot) in self._rows:
                self._forked(server, slot, pid, fds)
                fds = []
            case {"not_forked": int(slot), "reason": str(reason)}:
                self._rows.pop((*key, slot), None)
                self._not_forked(server, slot, reason)
            case {"gone": int(slot), "pid": int(pid), "status": int(status)}:
                worker = self._workers.get((*key, slot))
                if worker is not None and worker.pid == pid:
                    self._worker_gone(worker, status)
        for fd in fds:
            os.close(fd)

    def _forked(self, server: ForkServerHandle, slot: int, pid: int, fds: list[int]) -> None:
        key = (server.service, server.generation, slot)
        board, _ = self.board(server.service)
        row = self._rows.pop(key)
        reason = ""
        try:
            # Fewer than were sent: we have no room for them, and a worker whose leash is lost leaves by itself.
            room = len(fds) == 3
            if room and not procfs.is_child_of(fds[0], pid, {server.pid, os.getpid()}):
                reason = "its fork server told of a process that is not its child"
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
        self.woken = True  # it may have been ready, and said so, before we knew of it
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, leash)
        self._add_worker(WorkerHandle(*key, pid, pidfd, sock, stack, row, monotonic(), row=board.row(row)))

    def _add_worker(self, worker: WorkerHandle) -> None:
        self._workers[worker.service, worker.generation, worker.slot] = worker
        self._deaths.register(worker.pidfd, select.POLLIN)

    def _look_for_the_dead(self) -> None:
        """Sees to workers whose end nobody tells: their fork server is stopped, or tells lies."""
        now = monotonic()
        for fd, _ in self._deaths.poll(0):
            worker = next(each for each in self._workers.values() if each.pidfd == fd)
            if worker.dead_since is None:
                worker.dead_since = now
            elif now - worker.dead_since > _UNTOLD:
                self._worker_gone(worker, None)

    def _not_forked(self, server: ForkServerHandle, slot: int, reason: str) -> None:
        log.say("error", f"no new worker: {reason}", server.name() | {"worker": slot})
        told = f"service {server.service}: {reason}"
        self._happened(WorkerGone(server.service, server.generation, slot, Departure.BOOT_FAILED, told))

    def _fork_server_gone(self, server: ForkServerHandle, status: int) -> None:
        self._hear(server)
        self._hear_no_more(server)
        server.sock.close()
        key = (server.service, server.generation)
        del self._fork_servers[key]
        if not server.reason:
            server.reason = f"service {server.service}: the fork server ended ({process.outcome(status)})"
        level = "debug" if server.expected or self.quiet else "error"
        first, _, rest = server.reason.partition("\n")
        log.say(level, first, server.name(), block=rest)
        self._happened(ForkServerGone(*key, server.reason, server.status))
        # Orders that it took to its grave.
        for service, generation, slot in [each for each in self._rows if each[:2] == key]:
            del self._rows[service, generation, slot]
            self._happened(WorkerGone(service, generation, slot, Departure.LEFT))
        # Its workers are ours by now, unless it had reaped one without telling.
        for worker in self.workers_of(server.service):
            if worker.generation == server.generation and _reaped(worker):
                self._worker_gone(worker, None)

    def _worker_gone(self, worker: WorkerHandle, status: int | None) -> None:
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


def _reaped(worker: WorkerHandle) -> bool:
    """Whether the worker has ended and somebody else has taken its status."""
    poll = select.poll()
    poll.register(worker.pidfd, select.POLLIN)
    if not poll.poll(0):
        return False
    try:
        os.waitid(os.P_PIDFD, worker.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
