"""Orders over a real leash: SIGIO announces them at once, even while a worker is blocked in recv(2)."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forkd.errors import WorkerLeaves
from forkd.ipc.deadlines import FIRST_GRACE, Deadlines
from forkd.ipc.order import Order
from forkd.serving.connection import Connection
from forkd.workers.leash import Leash
from tests.seams.test_process import in_child
from tests.server import until


class Worker:
    """The worker's side, in its own process, and the master's side, which the test plays."""

    def __init__(self, *, before: bytes | None = None, log: int = 2) -> None:
        self.master, self.leash = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.abandoned = 0
        if before is not None:
            self.master.send(before)
        self.orders = Leash(self.leash, log, self.abandon)
        self.orders.listen()

    def abandon(self) -> None:
        self.abandoned += 1


def apart(work: Callable[..., None]) -> Callable[..., None]:
    """Runs a test in its own process, with its own signal handlers."""

    def test(tmp_path: Path) -> None:
        os.chdir(tmp_path)
        assert in_child(work) == 0

    return test


@apart
def test_nothing_is_told_at_first() -> None:
    worker = Worker()
    assert worker.orders.order is None
    assert worker.abandoned == 0


@apart
def test_an_order_is_heard_by_a_signal() -> None:
    worker = Worker()
    worker.master.send(b"drain")
    assert worker.orders.order is Order.DRAIN
    worker.master.send(b"finish")
    assert worker.orders.order is Order.FINISH
    assert worker.abandoned == 0


@apart
def test_finish_outdoes_drain() -> None:
    worker = Worker()
    worker.master.send(b"finish")
    worker.master.send(b"drain")
    assert worker.orders.order is Order.FINISH


@apart
def test_an_order_from_before_the_birth_is_heard() -> None:
    assert Worker(before=b"drain").orders.order is Order.DRAIN


@apart
def test_term_is_an_order_to_finish() -> None:
    worker = Worker()
    os.kill(os.getpid(), signal.SIGTERM)
    assert worker.orders.order is Order.FINISH
    assert worker.abandoned == 0


@apart
def test_the_end_of_the_leash_is_the_end_of_the_master() -> None:
    worker = Worker()
    worker.master.close()
    assert worker.orders.order is Order.FINISH
    assert worker.abandoned == 1


@apart
def test_the_end_of_a_leash_with_orders_unread_is_heard_too() -> None:
    worker = Worker()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    worker.master.send(b"drain")
    worker.leash.send(b"never read: so the close is a reset")
    worker.master.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    assert worker.orders.order is Order.FINISH
    assert worker.abandoned


@apart
def test_a_drained_worker_lets_go_of_the_listeners_amid_a_connection_only() -> None:
    worker = Worker()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker.orders.attend(Connection(ours))
        worker.master.send(b"finish")
        assert worker.abandoned == 0, "during a stop, the worker must empty the accept queue"
        worker.master.send(b"drain")
        assert worker.abandoned == 1


@apart
def test_a_blocked_recv_is_woken_and_waits_no_longer_than_the_grace_however_often_it_is_told() -> None:
    worker = Worker()
    ours, theirs = socket.socketpair()
    connection = Connection(ours, limits=Deadlines(idle_timeout=60))
    connection.prepare()
    worker.orders.attend(connection)
    pid = os.fork()
    if pid == 0:
        until(lambda: Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[0] == "S")
        while True:
            worker.master.send(b"finish")
            time.sleep(FIRST_GRACE / 5)
    worker.master.close()  # the child has a copy, which closes when it ends
    began = time.monotonic()
    with pytest.raises(WorkerLeaves):
        connection.receive(100)
    assert FIRST_GRACE <= time.monotonic() - began < 5
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    theirs.close()


@apart
def test_a_connection_that_begins_after_the_order_is_hurried() -> None:
    worker = Worker()
    worker.master.send(b"finish")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours, limits=Deadlines(idle_timeout=60))
        worker.orders.attend(connection)
        theirs.send(b"still read")
        assert connection.receive(100) == b"still read"
        with pytest.raises(WorkerLeaves):
            connection.receive(100)


@apart
def test_a_drained_connection_is_not_hurried() -> None:
    worker = Worker()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours)
        worker.orders.attend(connection)
        worker.master.send(b"drain")
        assert not connection.leaving
        worker.orders.attend(None)
        worker.master.send(b"finish")
        assert not connection.leaving


@apart
def test_the_log_is_handed_over() -> None:
    with Path("old").open("w") as old, Path("new").open("w") as new:
        worker = Worker(log=old.fileno())
        for _ in range(3):
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            socket.send_fds(worker.master, [b"reopened"], [new.fileno()])
            assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        os.write(old.fileno(), b"after the rotation\n")
        assert not os.get_inheritable(old.fileno())
    assert worker.orders.order is None
    assert Path("new").read_text() == "after the rotation\n"
    assert Path("old").read_text() == ""
