"""The fork server: drops privileges, imports the application once, forks workers on the master's order.

Started by the master as a fresh interpreter, so that a reload always gets new code and nothing of
the master's is inherited but what the brief names. It decides nothing: it forks when told, tells
who ended, and goes when the master does. A worker's life goes on in `worker`.
"""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from enum import Enum
from time import monotonic
from typing import Any, Final, NoReturn

import forkd
from forkd.errors import BootError, Exit, ForkdError, ListenError
from forkd.ipc import channel
from forkd.ipc.brief import FORMAT, Brief
from forkd.ipc.scoreboard import Board
from forkd.kernel import accounts, process, signals
from forkd.kernel.sockopts import plain
from forkd.log import log, stdio
from forkd.security import privileges, reach
from forkd.serving.loading import load
from forkd.serving.service import Service
from forkd.workers import fork_check, worker

_PRESS_SECONDS: Final = 0.1
_REASON_CHARACTERS: Final = 12_000


class _Life(Enum):
    """Why the fork server goes on, or not."""

    GOES_ON = "goes on"
    LET_GO = "let go by the master"
    ALONE = "the master died"


def main(fd: int) -> int:
    """Runs a fork server whose master is at the other end of socket `fd`; gives the exit status."""
    master = socket.socket(fileno=fd)
    inbox = signals.Inbox([signal.SIGCHLD, signal.SIGTERM])
    signals.ignore(signals.IGNORED_BELOW_MASTER)
    data = master.recv(channel.MESSAGE_BYTES)
    if not data:
        return Exit.FAILED  # the master has died
    written, version = Brief.origin(data)
    if (written, version) != (FORMAT, forkd.__version__):  # a brief of another version may mean anything
        theirs = version if version != forkd.__version__ else f"{version} of another build"
        reason = f"the master is forkd {theirs}, but forkd {forkd.__version__} is installed by now: run forkd upgrade"
        channel.send(master, {"failed": reason, "status": int(Exit.FAILED)})
        return Exit.FAILED
    told = Brief.decode(data)
    for each in (fd, *told.descriptors()):
        os.set_inheritable(each, False)
    _die_with(master)
    process.unblock_signals()
    try:
        service, left_behind = _boot(told, fd)
    except ForkdError as error:
        # A wrong application is a wrong setting; any other failure is the machine's.
        status = Exit.CONFIG if isinstance(error, BootError) else error.exit_status
        channel.send(master, {"failed": str(error)[:_REASON_CHARACTERS], "status": int(status)})
        return int(status)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    channel.send(master, {"ready": forkd.__version__, "left_behind": left_behind})
    return _ForkServer(told, service, master, inbox).run()


def _die_with(master: socket.socket) -> None:
    """Has the kernel end this process when the master dies, also in an import that never returns.

    The end of a socket that is O_ASYNC raises SIGIO (fcntl(2)), which kills where nobody handles it.
    """
    fcntl.fcntl(master, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(master, fcntl.F_SETFL, fcntl.fcntl(master, fcntl.F_GETFL) | os.O_ASYNC)
    with suppress(BlockingIOError):
        if not master.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            os._exit(Exit.FAILED)


def _boot(told: Brief, master: int) -> tuple[Service[..., Any], list[str]]:
    """The service, loaded as whom it is to run, and what its import left behind."""
    process.set_title(f"forkd: {told.service}: fork server, generation {told.generation}")
    handler = log.set_up(told.log.level, told.log.format, told.log.fd)
    needed = []
    if told.identity is not None:
        needed = reach.needs(told.app, told.path)
        os.environ.update(accounts.environment(told.identity))
    for what in privileges.become(told.identity):
        log.say("debug", what, {"service": told.service})
    if why := reach.obstacle(needed):
        raise BootError(why)
    if told.doors:  # else it is a trial, which a person looks at
        stdio.lead_to_log(told.service, handler)
    sys.path.insert(0, told.path)
    service = load(told.app)
    service.suits(told.worker.kind, told.worker.threads)
    if service.is_async:
        importlib.import_module("forkd.workers.tasks")  # once, for all workers
    own = {0, 1, 2, master, told.log.fd, *(door.fd for door in told.doors)}
    left_behind = [] if told.fork_check == "off" else fork_check.left_behind(own)
    if left_behind and told.fork_check == "refuse":
        raise BootError(f"{told.app}: after its import {', '.join(left_behind)}; {fork_check.REMEDY}")
    warnings = [f"after the import {each}; {fork_check.REMEDY}" for each in left_behind]
    # What the import left behind is garbage now or shared for good: a collection in a worker must
    # not touch, and so copy, the pages of every object that it was born with.
    gc.collect()
    gc.freeze()
    return service, warnings


class _ForkServer:
    """The workers by pid, and the wait for orders and deaths."""

    def __init__(self, told: Brief, service: Service[..., Any], master: socket.socket, inbox: signals.Inbox) -> None:
        self.told = told
        self.service = service
        self.master = master
        self.inbox = inbox
        self.board = Board(told.board)
        self.doors = [(socket.socket(fileno=door.fd), door) for door in told.doors]
        for listener, _ in self.doors:
            listener.setblocking(False)  # as it is, but Python's default timeout is the application's by now
        self.slots: dict[int, int] = {}

    def run(self) -> int:
        poll = select.poll()
        poll.register(self.master, select.POLLIN)
        poll.register(self.inbox.fd, select.POLLIN)
        life = _Life.GOES_ON
        while life is _Life.GOES_ON:
            ready = {fd for fd, _ in poll.poll()}
            if signal.SIGTERM in self.inbox.take():
                return Exit.DONE
            self.tell_deaths()
            if self.master.fileno() in ready:
                life = self.obey()
        if life is _Life.ALONE:
            self.outlive_master()
        return Exit.DONE

    def obey(self) -> _Life:
        """Does what the master says."""
        try:
            received = channel.receive(self.master, 1)
        except ConnectionError:
            received = None
        if received is None:
            return _Life.ALONE
        message, fds = received
        match message:
            case {"fork": int(slot), "row": int(row)}:
                self.fork(slot, row)
            case {"reopened": _}:
                os.dup2(fds[0], self.told.log.fd, inheritable=False)
                os.close(fds[0])
            case {"retired": _}:
                self.close_doors()
            case {"end": _}:
                return _Life.LET_GO
        return _Life.GOES_ON

    def tell(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Tells the master; when it has just died, the next wait will show it."""
        with suppress(ConnectionError):
            channel.send(self.master, message, fds)

    def fork(self, slot: int, row: int) -> None:
        """A new worker, with its own leash to the master and its own place for its stack."""
        _flush()
        with ExitStack() as opened:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                opened.enter_context(plain(ours))
                opened.enter_context(plain(theirs))
                stack = os.memfd_create(f"forkd-stack-{slot}")
                opened.callback(os.close, stack)
                with process.signals_blocked():
                    pid = os.fork()
                    if pid == 0:
                        self.become_worker(slot, row, ours, theirs, stack)
                self.slots[pid] = slot
                pidfd = os.pidfd_open(pid)
                opened.callback(os.close, pidfd)
                self.tell({"forked": slot, "pid": pid}, (pidfd, ours.fileno(), stack))
            except OSError as error:
                self.tell({"not_forked": slot, "reason": f"fork: {error.strerror}"})

    def become_worker(self, slot: int, row: int, ours: socket.socket, leash: socket.socket, stack: int) -> NoReturn:
        """The child's side of the fork: never returns into the fork server's code."""
        status: int = Exit.FAILED
        try:
            signals.forget_inbox()
            faulthandler.enable(stack)
            ours.close()
            self.master.close()
            self.inbox.close()
            worker.live(self.told, self.service, self.doors, self.board, slot, row, leash, stack)
            status = Exit.DONE
        except BootError:
            pass  # the worker has told why
        except ListenError as error:
            log.say("error", f"worker failed: {error}", {"service": self.told.service, "worker": slot})
        except BaseException as error:
            log.say("error", "worker failed", {"service": self.told.service, "worker": slot}, error=error)
        finally:
            _flush()
            os._exit(status)  # no atexit: what was registered before the fork is the fork server's

    def tell_deaths(self) -> None:
        for pid, status in process.reap():
            slot = self.slots.pop(pid, None)
            if slot is not None:
                self.tell({"gone": slot, "pid": pid, "status": status})

    def close_doors(self) -> None:
        """No more workers are to be forked, and the addresses may be wanted by somebody else."""
        for sock, _ in self.doors:
            sock.close()

    def outlive_master(self) -> None:
        """The master has died: free its addresses, remove what it left behind, see the workers off."""
        for file in self.told.legacy.files:
            file.remove()
        self.close_doors()
        # Their leashes have told the workers, but one may have missed it in the moment before a
        # recv(2): so they are told until they have gone.
        poll = select.poll()
        poll.register(self.inbox.fd, select.POLLIN)
        next_press = 0.0
        over = monotonic() + self.told.legacy.stop_timeout
        while self.slots:
            if monotonic() >= next_press:
                next_press = monotonic() + _PRESS_SECONDS
                for pid in self.slots:
                    os.kill(pid, signal.SIGTERM if monotonic() < over else signal.SIGKILL)
            poll.poll(_PRESS_SECONDS * 1000)
            self.inbox.take()
            for pid, _ in process.reap():
                self.slots.pop(pid, None)


def _flush() -> None:
    """Writes out what an application printed, before a fork would copy it and before an exit would lose it."""
    log.own_up()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
