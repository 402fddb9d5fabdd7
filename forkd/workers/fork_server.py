"""The fork server: drops privileges, imports the application once, forks workers when the master orders it.

The master starts it as a fresh interpreter, so that a reload always runs new code, and nothing of the master's is
inherited but what the brief names. It decides nothing: it forks on order, reports which workers ended, and leaves when
the master does. A worker's life continues in `worker`.
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
from forkd.errors import BootError, Exit, ForkdError
from forkd.ipc import channel
from forkd.ipc.brief import FORMAT, Brief
from forkd.ipc.scoreboard import Board
from forkd.ipc.worker_kinds import KINDS
from forkd.kernel import accounts, process, signals
from forkd.kernel.sockopts import plain
from forkd.log import log, stdio
from forkd.security import privileges, reach
from forkd.serving.loading import load
from forkd.serving.service import Service
from forkd.workers import fork_check, worker
from forkd.workers.reporter import Reporter

_PRESS_SECONDS: Final = 0.1
_REASON_CHARACTERS: Final = 12_000


class _Life(Enum):
    """Whether the fork server continues, or why it ends."""

    CONTINUES = "continues"
    LET_GO = "let go by the master"
    ALONE = "the master died"


def main(fd: int) -> int:
    """Runs a fork server whose master is at the other end of socket `fd`; returns the exit status."""
    master = socket.socket(fileno=fd)
    inbox = signals.Inbox([signal.SIGCHLD, signal.SIGTERM])
    signals.ignore(signals.IGNORED_BELOW_MASTER)
    data = master.recv(channel.MESSAGE_BYTES)
    if not data:
        return Exit.FAILED  # the master has died
    written, version = Brief.origin(data)
    if (written, version) != (FORMAT, forkd.__version__):  # a brief of another version may mean anything
        theirs = version if version != forkd.__version__ else f"{version} of another build"
        reason = f"the master is forkd {theirs}, but forkd {forkd.__version__} is installed now: run forkd upgrade"
        channel.send(master, {"failed": reason, "status": int(Exit.FAILED)})
        return Exit.FAILED
    brief = Brief.decode(data)
    for each in (fd, *brief.descriptors()):
        os.set_inheritable(each, False)
    _die_with(master)
    process.unblock_signals()
    try:
        service, left_behind = _boot(brief, fd)
    except ForkdError as error:
        # A wrong application is a wrong setting; for any other failure the machine is to blame.
        status = Exit.CONFIG if isinstance(error, BootError) else error.exit_status
        channel.send(master, {"failed": str(error)[:_REASON_CHARACTERS], "status": int(status)})
        return int(status)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    channel.send(master, {"ready": forkd.__version__, "left_behind": left_behind})
    return _ForkServer(brief, service, master, inbox).run()


def _die_with(master: socket.socket) -> None:
    """Makes the kernel end this process when the master dies, even during an import that never returns.

    The end of a socket that is O_ASYNC raises SIGIO (fcntl(2)), which kills a process that does not handle it.
    """
    fcntl.fcntl(master, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(master, fcntl.F_SETFL, fcntl.fcntl(master, fcntl.F_GETFL) | os.O_ASYNC)
    with suppress(BlockingIOError):
        if not master.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            os._exit(Exit.FAILED)


def _boot(brief: Brief, master: int) -> tuple[Service[..., Any], list[str]]:
    """Loads the service, as the user it is to run as; returns it and warnings about what its import left behind."""
    process.set_title(f"forkd: {brief.service}: fork server, generation {brief.generation}")
    handler = log.set_up(brief.log.level, brief.log.format, brief.log.fd)
    kind = KINDS[brief.worker.kind]
    importlib.import_module(kind.loop_for(is_async=False))  # before the application has any say
    needed = []
    if brief.identity is not None:
        needed = reach.needs(brief.app, brief.path)
        os.environ.update(accounts.environment(brief.identity))
    for what in privileges.become(brief.identity):
        log.say("debug", what, {"service": brief.service})
    if why := reach.obstacle(needed):
        raise BootError(why)
    if brief.doors:  # otherwise this is a trial, whose output a person reads
        stdio.lead_to_log(brief.service, handler)
    sys.path.insert(0, brief.path)
    service = load(brief.app)
    service.suits(brief.worker.kind, brief.worker.threads)
    importlib.import_module(kind.loop_for(service.is_async))  # once, for all workers
    own = {0, 1, 2, master, brief.log.fd, *(door.fd for door in brief.doors)}
    left_behind = [] if brief.fork_check == "off" else fork_check.left_behind(own)
    if left_behind and brief.fork_check == "refuse":
        raise BootError(f"{brief.app}: after its import {', '.join(left_behind)}; {fork_check.REMEDY}")
    warnings = [f"after the import {each}; {fork_check.REMEDY}" for each in left_behind]
    # What the import left in memory is either garbage now or shared for good. A collection in a worker must not touch,
    # and so copy, the pages of all these objects.
    gc.collect()
    gc.freeze()
    return service, warnings


class _ForkServer:
    """The workers by PID, and the wait for orders and deaths."""

    def __init__(self, brief: Brief, service: Service[..., Any], master: socket.socket, inbox: signals.Inbox) -> None:
        self.brief = brief
        self.service = service
        self.master = master
        self.inbox = inbox
        self.board = Board(brief.board)
        self.doors = [(socket.socket(fileno=door.fd), door) for door in brief.doors]
        for listener, _ in self.doors:
            listener.setblocking(False)  # or Python would apply the application's default timeout
        self.slots: dict[int, int] = {}

    def run(self) -> int:
        poll = select.poll()
        poll.register(self.master, select.POLLIN)
        poll.register(self.inbox.fd, select.POLLIN)
        life = _Life.CONTINUES
        while life is _Life.CONTINUES:
            ready = {fd for fd, _ in poll.poll()}
            if signal.SIGTERM in self.inbox.take():
                return Exit.DONE
            self.report_deaths()
            if self.master.fileno() in ready:
                life = self.obey()
        if life is _Life.ALONE:
            self.outlive_master()
        return Exit.DONE

    def obey(self) -> _Life:
        """Obeys one message of the master."""
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
                os.dup2(fds[0], self.brief.log.fd, inheritable=False)
                os.close(fds[0])
            case {"retired": _}:
                self.close_doors()
            case {"end": _}:
                return _Life.LET_GO
        return _Life.CONTINUES

    def report(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Sends a message to the master; if that has just died, the next wait will notice."""
        with suppress(ConnectionError):
            channel.send(self.master, message, fds)

    def fork(self, slot: int, row: int) -> None:
        """Forks a worker, with its own leash to the master and its own stack file."""
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
                self.report({"forked": slot, "pid": pid}, (pidfd, ours.fileno(), stack))
            except OSError as error:
                self.report({"not_forked": slot, "reason": f"fork: {error.strerror}"})

    def become_worker(self, slot: int, row: int, ours: socket.socket, leash: socket.socket, stack: int) -> NoReturn:
        """The child's side of the fork; never returns into the fork server's code."""
        status: int = Exit.FAILED
        try:
            signals.forget_inbox()
            faulthandler.enable(stack)
            ours.close()
            self.master.close()
            self.inbox.close()
            worker.live(self.brief, self.service, self.doors, self.board, slot, row, leash, stack)
            status = Exit.DONE
        except BootError:
            pass  # the stack file says why
        except BaseException as error:
            Reporter.of(self.brief, slot).worker_failed(error)
        finally:
            _flush()
            os._exit(status)  # no atexit: what was registered before the fork is the fork server's

    def report_deaths(self) -> None:
        for pid, status in process.reap():
            slot = self.slots.pop(pid, None)
            if slot is not None:
                self.report({"gone": slot, "pid": pid, "status": status})

    def close_doors(self) -> None:
        """Closes the listeners: no more workers follow, and another process may need the addresses."""
        for sock, _ in self.doors:
            sock.close()

    def outlive_master(self) -> None:
        """The master has died: frees its addresses, removes the files it left behind, sees the workers off."""
        for file in self.brief.legacy.files:
            file.remove()
        self.close_doors()
        # The workers have learned it from their leashes, but one may have missed it in the moment before a recv(2).
        # So the signal is repeated until they have gone.
        poll = select.poll()
        poll.register(self.inbox.fd, select.POLLIN)
        next_press = 0.0
        over = monotonic() + self.brief.legacy.stop_timeout
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
    """Writes out what an application printed, which a fork would copy and an exit would lose."""
    log.own_up()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
