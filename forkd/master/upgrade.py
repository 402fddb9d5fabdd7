"""A new program for a running master: first tried beside it, then put in its place.

The program that is tried gets a copy of the estate without the descriptors, so it changes nothing, however it
fails. The program itself begins in `successor`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from forkd.errors import ForkdError
from forkd.kernel import process
from forkd.kernel.poller import Poller
from forkd.master.estate import Estate, encode, to_memory

PATIENCE: Final = 30.0
READY: Final = "forkd can take over: "
_MOST: Final = 65536

Done = Callable[[str, str], None]
"""Gets the version of a program that can take over and "", or "" and why it cannot."""


class Rehearsal:
    """A new program that shows whether it could take over; `done` gets the answer.

    `due` is when to look: when it has ended, or after PATIENCE seconds.
    """

    def __init__(self, estate: Estate, wait: Poller, now: float, done: Done) -> None:
        self.due = now + PATIENCE
        self._wait = wait
        self._done = done
        self._said = bytearray()
        self._ended = False
        self._from, said = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        memory = to_memory(encode(estate))
        self._pidfd: int | None = None
        try:
            self._pidfd = os.pidfd_open(process.spawn("master.successor", memory, (), call="rehearse", stderr=said))
        except OSError as error:
            self._said += f"{error.strerror}".encode()
            self._finish()
        finally:
            os.close(memory)
            os.close(said)
        if not self._ended:
            wait.watch(self._from, self._hear)

    def look(self, now: float) -> bool:
        """Ends the rehearsal, by killing a program that is late; always returns True."""
        if not self._ended:
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._said += f"it was not ready within {PATIENCE:g} s".encode()
            self._wait.unwatch(self._from)
            self._finish()
        os.close(self._from)
        if self._pidfd is not None:
            os.close(self._pidfd)
        *lines, last = self._said.decode(errors="backslashreplace").rstrip().split("\n")
        if last.startswith(READY):
            self._done(last.removeprefix(READY), "")
        else:  # the last line of a traceback says most
            self._done("", "\n".join([last or "it ended without a message", *lines]))
        return True

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._from, _MOST)
            self._said += data[: _MOST - len(self._said)]
            if not data:
                self._wait.unwatch(self._from)
                self._finish()

    def _finish(self) -> None:
        self._ended = True
        self.due = 0.0


def replace(estate: Estate) -> None:
    """Becomes the new program; call it with signals blocked. Raises ForkdError if that fails, and changes nothing."""
    memory = to_memory(encode(estate))
    try:
        process.become_program("master.successor", memory, estate.descriptors())
    except OSError as error:
        raise ForkdError(f"the program cannot be replaced: {error.strerror}") from None
    finally:
        os.close(memory)
