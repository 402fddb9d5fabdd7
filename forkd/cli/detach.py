"""`forkd start`: a process that has nothing left of who started it, and the wait until it serves.

python-daemon does what a daemon has to do (PEP 3143, daemon(7)): a session of its own, no terminal, the
folder "/", no descriptor of anybody's. Who typed the command keeps a socket to it, which says that the server
serves, or why not, or ends with it: nobody asks, and nobody guesses how long that may take.
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
_PIECE: Final = 4000  # characters, which in no form are too many for one message
_STOPPED: Final = "it was told to stop before it served"


class Teller:
    """The daemon's side: tells those who wait what became of it, once. What it says to nobody is lost."""

    def __init__(self, sock: socket.socket, log_fd: int) -> None:
        self.log_fd = log_fd
        self._sock = sock
        sock.setblocking(False)  # who waits may be stopped, and must not stop us
        os.set_blocking(log_fd, False)

    def begun(self) -> None:
        """Hands over a pidfd of this process, by which it can be told that nobody wants it any more."""
        held = os.pidfd_open(os.getpid())
        self._say({"begun": os.getpid()}, held)
        os.close(held)

    def served(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._say({"line": line})
        self._say({"status": int(Exit.DONE)})
        self._sock.close()

    def failed(self, reason: str, status: int) -> None:
        """It has ended, before it served."""
        text = reason or _STOPPED
        for at in range(0, len(text), _PIECE):
            self._say({"reason": text[at : at + _PIECE]})
        self._say({"status": status or int(Exit.FAILED)})

    def _say(self, message: dict[str, Any], *fds: int) -> None:
        with suppress(OSError):
            channel.send(self._sock, message, fds)


class StartOutcome(NamedTuple):
    """How a start ended: the exit status, what is served or why nothing is, and the daemon's process."""

    status: int
    lines: Sequence[str] = ()
    reason: str = ""
    pid: int = 0


def start(serve: Callable[[Teller], Ended]) -> StartOutcome:
    """Calls `serve` in a daemon. Returns when that serves or has failed; and once more in the daemon, at its end."""
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
        os.waitpid(child, 0)  # it has left the daemon to init long ago


def _live(serve: Callable[[Teller], Ended], teller: Teller, keep: list[int]) -> StartOutcome:
    """The daemon's whole life."""
    try:
        _detach(keep)
        teller.begun()
        ended = serve(teller)
    except ForkdError as error:
        ended = Ended(error.exit_status, str(error))
    except BaseException as error:
        # Standard error is gone: what nobody has foreseen is told to who waits, and to the log.
        log.say("error", "the master failed", error=error)
        ended = Ended(Exit.FAILED, f"{type(error).__name__}: {error}")
    teller.failed(ended.reason, ended.status)
    return StartOutcome(ended.status)


def _detach(keep: list[int]) -> None:
    """Becomes a daemon."""
    _name_folders()
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # it was closed, and the library cannot do without it
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115
    try:
        # Detached also where the library thinks it needless, as below a shell that is process 1 of a container.
        # Signals and core files are forkd's own affair.
        daemon.DaemonContext(
            detach_process=True, files_preserve=keep, prevent_core=False, signal_map={}, umask=UMASK
        ).open()
    except daemon.daemon.DaemonError as error:
        raise ForkdError(f"cannot become a daemon: {error}") from None
    for fd in range(3):
        # The library has closed them and opened the null device, which Python has closed at an exec (PEP 446): in a
        # fork server, whatever is opened next would be its standard output.
        os.set_inheritable(fd, True)
    signals.heed_all()


def _name_folders() -> None:
    """Makes the folders in PYTHONPATH independent of the working folder, for fork servers look there, too."""
    if paths := os.environ.get("PYTHONPATH"):
        process.find_title()
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))


class _StartWait:
    """The side of who started the daemon: shows what it logs, and waits for its word."""

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
        """Waits; who interrupts that (once: twice does not wait) wants no server."""
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
            raise BrokenOffError(f"process {self._pid or 'unknown'} was to serve, but ended without a word")
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
            select.select([self._held], [], [])  # the next try is to find nothing of this one

    def _hear(self) -> bool:
        """Takes a word; False when it was the last."""
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
        """Passes on what was logged; False at its end."""
        data = os.read(self._records, 65536)
        with suppress(OSError):
            os.write(log.STANDARD_ERROR, data)
        return bool(data)
