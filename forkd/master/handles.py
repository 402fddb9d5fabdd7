"""What the master holds of a fork server and of a worker: numbers, descriptors, and how to reach them.

A worker is reached by its pidfd, so that a signal never hits an unrelated process that got its PID, and
by its leash, whose end means to the worker that the master has gone.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from time import monotonic

from msgspec import Struct, field, structs

from forkd.ipc import channel
from forkd.ipc.meter import BlackBox
from forkd.ipc.order import Order
from forkd.ipc.scoreboard import BUSY_SINCE, COUNTS, OPEN


class WorkerEstate(Struct):
    """A worker as one program leaves it to the next: `before` is what its row had counted when it was born.

    `ended_for` is why forkd itself ended it, and `stack_shown` how many bytes of its stack's file have been shown.
    """

    service: str
    generation: int
    slot: int
    pid: int
    pidfd: int
    leash: socket.socket
    stack: int
    place: int
    born: float
    before: dict[str, int] = {}
    ready: bool = False
    dead_since: float | None = None
    ended_for: str | None = None
    stack_shown: int = 0

    def descriptors(self) -> list[int]:
        return [self.pidfd, self.leash.fileno(), self.stack]


class WorkerHandle(WorkerEstate, kw_only=True):
    """One worker: `row` is row number `place` of the scoreboard.

    When the worker has gone the handle is `closed`, and its descriptors must not be used any more.
    """

    row: memoryview
    closed: bool = False

    def __post_init__(self) -> None:
        self.before = self.before or {name: self.row[column] for name, column in COUNTS.items()}

    @classmethod
    def resumed(cls, left: WorkerEstate, row: memoryview) -> WorkerHandle:
        return cls(**structs.asdict(left), row=row)

    def leave(self) -> WorkerEstate:
        return WorkerEstate(*(getattr(self, name) for name in WorkerEstate.__struct_fields__))

    def name(self) -> dict[str, object]:
        """How every log record of the master names this worker."""
        return {"service": self.service, "worker": self.slot, "gen": self.generation, "pid": self.pid}

    def tell(self, order: Order) -> None:
        with suppress(OSError):
            self.leash.send(order.value.encode(), socket.MSG_DONTWAIT)

    def reopened(self, fd: int) -> bool:
        """Hands over the reopened log; False if there is no room for it now (unix(7), ETOOMANYREFS)."""
        try:
            socket.send_fds(self.leash, [b"reopened"], [fd], socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def stack_size(self) -> int:
        return os.fstat(self.stack).st_size

    def stack_text(self, start: int | None = None) -> str:
        """Returns what faulthandler, or a failed start, has written since byte `start`, or since the last call."""
        start = self.stack_shown if start is None else start
        data = os.pread(self.stack, 65536, start)
        self.stack_shown = max(self.stack_shown, start + len(data))
        return data.decode(errors="backslashreplace").rstrip()

    def counted(self, name: str) -> int:
        """How many requests or accepted connections this process has counted; a worker can write any number there."""
        return max(0, self.row[COUNTS[name]] - self.before[name])

    def last_doings(self) -> dict[str, object]:
        """Facts for the log about a worker that has gone: how much it had served, its peer, and the request in hand."""
        box, began = BlackBox.of(self.row), self.row[BUSY_SINCE]
        facts: dict[str, object] = {
            "requests": self.counted("requests"),
            "connections": self.counted("accepted"),
            "peer": (self.row[OPEN] and box.peer) or None,
        }
        if began:
            facts |= {
                "request": self.counted("requests") + 1,
                "running": round(max(0.0, monotonic() - began * 1e-9), 3),
                "size": box.size,
                "begins": box.begins.decode(errors="backslashreplace") if box.size is not None else None,
            }
        return facts

    def close(self) -> None:
        self.closed = True
        self.leash.close()
        os.close(self.pidfd)
        os.close(self.stack)
        self.row.release()


class ForkServerHandle(Struct):
    """One fork server: its process and the socket to it.

    It is `heard` until the end of the socket is read, and its death is `expected` once it has been ordered.
    `reason` and `status` are what it said about its failure, and forkd's own exit status for that. Messages in
    the `outbox`, each with a descriptor or None, wait for room in the socket.
    """

    service: str
    generation: int
    pid: int
    sock: socket.socket
    reason: str = ""
    status: int = 1
    heard: bool = True
    expected: bool = False
    outbox: list[tuple[dict[str, object], int | None]] = field(default_factory=list)

    def descriptors(self) -> list[int]:
        return [self.sock.fileno(), *(fd for _, fd in self.outbox if fd is not None)]

    def name(self) -> dict[str, object]:
        return {"service": self.service, "gen": self.generation, "pid": self.pid}

    def post(self, message: dict[str, object], fd: int | None) -> bool:
        """Sends a message, with a copy of `fd`, after those that still wait; False if some still wait."""
        self.outbox.append((message, None if fd is None else os.dup(fd)))
        return self.flush()

    def flush(self) -> bool:
        """Sends the messages that wait; False if the socket is full before the last one."""
        while self.outbox:
            message, fd = self.outbox[0]
            try:
                channel.send(self.sock, message, () if fd is None else (fd,))
            except BlockingIOError:
                return False
            except OSError:  # it has died; the master will learn that by its wait status
                self.discard()
                return True
            self._drop_first()
        return True

    def discard(self) -> None:
        """Drops the messages that were not sent."""
        while self.outbox:
            self._drop_first()

    def _drop_first(self) -> None:
        _, fd = self.outbox.pop(0)
        if fd is not None:
            os.close(fd)

    def kill(self) -> None:
        """Kills it. It is a child that has not been reaped, so its PID cannot belong to another process."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
