"""`forkd start`: becomes a daemon, while the process that was started waits until it serves.

python-daemon detaches it (PEP 3143, daemon(7)): a session of its own, no terminal, the folder "/", no inherited
descriptor. The waiting process keeps a socket to the daemon, over which the daemon reports that it serves or why it
does not, and which ends with the daemon. So neither side polls or guesses how long a start may take.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import daemon

from forkd.errors import BrokenOffError, Exit, ForkdError
from forkd.ipc import channel
from forkd.kernel import process, signals
from forkd.lifecycle.events import Ended
from forkd.log import log

UMASK: Final = 0o022
_PIECE: Final = 4000  # characters; in any encoding they fit into one message
_STOPPED: Final = "it was stopped before it was ready"


class Teller:
    """The daemon's side: reports once how the start went. If no one is waiting, the report is lost."""

    def __init__(self, sock: socket.socket, log_fd: int) -> None:
        self.log_fd = log_fd
        self._sock = sock
        sock.setblocking(False)  # the waiting process may be stopped, and must not block us
        os.set_blocking(log_fd, False)

    def begun(self) -> None:
        """Hands over a pidfd of this process, by which the waiting process can call the start off."""
        held = os.pidfd_open(os.getpid())
        self._say({"begun": os.getpid()}, held)
        os.close(held)

    def served(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._say({"line": line})
        self._say({"status": int(Exit.DONE)})
        self._sock.close()

    def failed(self, reason: str, status: int) -> None:
        """Reports that the daemon ended before it served."""
        text = reason or _STOPPED
        for at in range(0, len(text), _PIECE):
            self._say({"reason": text[at : at + _PIECE]})
        self._say({"status": status or int(Exit.FAILED)})

    def _say(self, message: dict[str, Any], *fds: int) -> None:
        with suppress(OSError):
            channel.send(self._sock, message, fds)


class StartOutcome(NamedTuple):
    """How a start ended: the exit status, lines on what is served or the reason why not, and the daemon's PID."""

    status: int
    lines: Sequence[str] = ()
    reason: str = ""
    pid: int = 0


def start(serve: Callable[[Teller], Ended]) -> StartOutcome:
    """Calls `serve` in a daemon. Returns when it serves or has failed, and again in the daemon when that ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    records, log_fd = os.pipe()
    child = os.fork()
    if child == 0:
        ours.close()
        os.close(records)
        return _live(serve, Teller(theirs, log_fd), [theirs.fileno(), log_fd])
    theirs.close()
    os.close(log_fd)
    try:
        return _StartWait(ours, records).until_over()
    finally:
        ours.close()
        os.close(records)
        os.waitpid(child, 0)  # it has ended; init is now the daemon's parent


def _live(serve: Callable[[Teller], Ended], teller: Teller, keep: list[int]) -> StartOutcome:
    """Runs the daemon, from detaching to its end."""
    try:
        _detach(keep)
        teller.begun()
        ended = serve(teller)
    except ForkdError as error:
        ended = Ended(error.exit_status, str(error))
    except BaseException as error:
        # Standard error is gone, so an unforeseen error goes to the waiting process and to the log.
        log.say("error", "the master failed", error=error)
        ended = Ended(Exit.FAILED, f"{type(error).__name__}: {error}")
    teller.failed(ended.reason, ended.status)
    return StartOutcome(ended.status)


def _detach(keep: list[int]) -> None:
    """Becomes a daemon."""
    _name_folders()
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # it was closed, and the library needs it
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115
    try:
        # Detach even if the library thinks it needless, as under a shell that is process 1 of a container.
        # forkd handles signals and core files itself.
        daemon.DaemonContext(
            detach_process=True, files_preserve=keep, prevent_core=False, signal_map={}, umask=UMASK
        ).open()
    except daemon.daemon.DaemonError as error:
        raise ForkdError(f"cannot become a daemon: {error}") from None
    for fd in range(3):
        # The library opened the null device here, which Python closes at an exec (PEP 446): whatever a fork server
        # opened next would become its standard output.
        os.set_inheritable(fd, True)
    signals.heed_all()


def _name_folders() -> None:
    """Makes the folders in PYTHONPATH absolute, because fork servers search them from another working folder."""
    if paths := os.environ.get("PYTHONPATH"):
        process.find_title()
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))


class _StartWait:
    """The waiting process's side: shows what the daemon logs, and waits for its report."""

    def __init__(self, sock: socket.socket, records: int) -> None:
        self._sock = sock
        self._records = records
        self._lines: list[str] = []
        self._reason = ""
        self._outcome: StartOutcome | None = None
        self._pid = 0
        self._held: int | None = None
        self._unwanted = False

    def until_over(self) -> StartOutcome:
        """Waits for the report. Ctrl-C calls the start off and waits for its end; a second Ctrl-C does not wait."""
        try:
            self._wait()
        except KeyboardInterrupt:
            self._unwanted = True
            self._call_off()
            self._wait()
            raise
        finally:
            if self._held is not None:
                os.close(self._held)
        if self._outcome is None:
            raise BrokenOffError(f"process {self._pid or 'unknown'} ended before it was ready, without a reason")
        return self._outcome

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._records, select.POLLIN)
        listening = True
        while listening:
            ready = {fd for fd, _ in poll.poll()}
            if self._records in ready and not self._show():
                poll.unregister(self._records)
            if self._sock.fileno() in ready:
                listening = self._hear()
        os.set_blocking(self._records, False)
        with suppress(BlockingIOError):
            while self._show():
                pass
        if self._held is not None and (self._outcome is None or self._outcome.status):
            select.select([self._held], [], [])  # so that the next start finds nothing left of this one

    def _hear(self) -> bool:
        """Takes one message; returns False at the end."""
        try:
            received = channel.receive(self._sock, 1)
        except ConnectionError:
            received = None
        match received:
            case ({"begun": int(pid)}, [held]):
                self._pid, self._held = pid, held
                if self._unwanted:
                    self._call_off()
            case ({"line": str(line)}, _):
                self._lines.append(line)
            case ({"reason": str(piece)}, _):
                self._reason += piece
            case ({"status": int(status)}, _):
                self._outcome = StartOutcome(status, self._lines, self._reason, self._pid)
        return received is not None

    def _call_off(self) -> None:
        if self._held is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._held, signal.SIGINT)

    def _show(self) -> bool:
        """Passes on what was logged; returns False at the end."""
        data = os.read(self._records, 65536)
        with suppress(OSError):
            os.write(log.STANDARD_ERROR, data)
        return bool(data)
