"""The kinds of worker, one row each: the settings, the command line, a service and its workers all ask this table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple


class WorkerKind(NamedTuple):
    """What a kind of worker can run, and with which loop.

    `loop` names the room in `forkd.workers` whose `serve` is the worker's loop; `coroutine_loop` is the one for a
    service whose handler is an `async def`, "" where such a service cannot run. `one_at_a_time` says that a connection
    has the worker to itself until it ends, so that its handler may wait for it.
    """

    meaning: str
    loop: str
    coroutine_loop: str = ""
    one_at_a_time: bool = False
    takes_threads: bool = False

    def loop_for(self, is_async: bool) -> str:
        """The full name of the module with the loop for handlers of this sort."""
        return f"forkd.workers.{self.coroutine_loop if is_async else self.loop}"

    def runs_coroutines(self, threads: int) -> bool:
        return bool(self.coroutine_loop) and not threads

    def may_wait(self, threads: int) -> bool:
        """Whether a plain handler may wait for its client without holding up the others."""
        return self.one_at_a_time or threads > 0


KINDS: Final = {
    "sync": WorkerKind("a worker serves one connection at a time", "sync", one_at_a_time=True),
    "event": WorkerKind(
        "a worker serves many connections, and each request runs to completion",
        "event",
        coroutine_loop="tasks",
        takes_threads=True,
    ),
}

DEFAULT_KIND: Final = "sync"


def those_that(can: Callable[[WorkerKind], bool]) -> str:
    """The setting of each kind that can do this, for a message: `worker = "event"`."""
    return " or ".join(f'worker = "{name}"' for name, kind in KINDS.items() if can(kind))
