"""Collects the Python stacks of workers, which each writes to a memfd of its own when signalled.

faulthandler writes from the C signal handler, even if the interpreter is stuck, and does not say when it has
finished; so a stack that has not grown between two looks counts as complete.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from forkd.ipc.scoreboard import IDLE, STATE
from forkd.master.handles import WorkerHandle

LOOK: Final = 0.02
PATIENCE: Final = 1.0

Stacks = list[tuple[WorkerHandle, str]]


class Looker(Protocol):
    """Something that takes a while: `due` is when to look at it next, and `look` returns True when it is complete."""

    due: float

    def look(self, now: float) -> bool: ...


class StackCollection:
    """Stacks that workers are writing; `done` gets them when all are complete, or after PATIENCE seconds."""

    def __init__(self, workers: Iterable[WorkerHandle], now: float, done: Callable[[Stacks], None]) -> None:
        self.due = now + LOOK
        self._done = done
        self._until = now + PATIENCE
        self._begins = {worker.pid: (worker, worker.stack_size()) for worker in workers}
        self._sizes: dict[int, int] = {}
        for worker, _ in self._begins.values():
            worker.signal(signal.SIGUSR2)

    def look(self, now: float) -> bool:
        """Looks again; True if it is complete."""
        self._begins = {pid: found for pid, found in self._begins.items() if not found[0].closed}
        sizes = {pid: worker.stack_size() for pid, (worker, _) in self._begins.items()}
        whole = all(
            sizes[pid] > begin and sizes[pid] == self._sizes.get(pid) for pid, (_, begin) in self._begins.items()
        )
        self._sizes = sizes
        self.due = now + LOOK
        if not whole and now < self._until:
            return False
        self._done([(worker, worker.stack_text(begin)) for worker, begin in self._begins.values()])
        return True


HANDOVER_LOOK: Final = 0.002
HANDOVER_PATIENCE: Final = 0.5


class Handover:
    """Old workers that are leaving; `done` is called once none of them accepts, or after HANDOVER_PATIENCE seconds."""

    def __init__(self, workers: Iterable[WorkerHandle], now: float, done: Callable[[], None]) -> None:
        self.due = now
        self._workers = list(workers)
        self._until = now + HANDOVER_PATIENCE
        self._done = done

    def look(self, now: float) -> bool:
        """Looks again; True if it is complete."""
        self._workers = [each for each in self._workers if not each.closed and each.row[STATE] == IDLE]
        self.due = now + HANDOVER_LOOK
        if self._workers and now < self._until:
            return False
        self._done()
        return True
