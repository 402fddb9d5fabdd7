"""Pools: elastic ones grow at once and shrink slowly, fixed ones keep their size."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import Forkd
from tests.live.test_life import call
from tests.server import Server, exchange, until, zombies


def total(server: Server) -> int:
    return int(server.status("test")["workers"]["total"])


def served(server: Server, opened: ExitStack, count: int) -> list[socket.socket]:
    """Returns this many idle clients, each of which has a worker to itself."""
    clients = [opened.enter_context(server.connect()) for _ in range(count)]
    for client in clients:
        assert call(client, b"hello\n") == b"HELLO\n"
    return clients


def test_an_elastic_pool_grows_at_once(forkd: Forkd) -> None:
    server = forkd("small:shout", workers="{ min = 2, max = 32, spare = 1 }").serving()
    assert total(server) == 2
    with ExitStack() as opened:
        for _ in range(16):
            opened.enter_context(server.connect())
        began = time.monotonic()
        assert exchange(server.connect(), b"the 17th\n") == b"THE 17TH\n"
        assert time.monotonic() - began < 1
        until(lambda: server.status("test")["workers"]["idle"] >= 1, "a spare worker")
        assert total(server) <= 32
        assert not zombies(server.pid)


def test_spare_workers_are_kept_ready(forkd: Forkd) -> None:
    server = forkd("small:shout", workers="{ min = 1, max = 20, spare = 4 }").serving()
    with ExitStack() as opened:
        served(server, opened, 3)
        until(lambda: server.status("test")["workers"]["idle"] >= 4, "four spare workers")
        assert len(server.titled("forkd: test: worker .*")) >= 7


def test_who_comes_when_the_pool_is_at_its_maximum_waits(forkd: Forkd) -> None:
    server = forkd("small:shout", workers="{ min = 1, max = 3, spare = 1 }").serving()
    with ExitStack() as opened:
        clients = served(server, opened, 3)
        with server.connect() as waits:
            waits.sendall(b"at last\n")
            until(lambda: total(server) == 3)
            server.ask(command="stacks")
            assert server.status("test")["connections"] == {"open": 3, "accepted": 3}
            clients[1].close()
            assert waits.recv(100) == b"AT LAST\n"
        assert total(server) == 3


def test_a_fixed_pool_keeps_its_number(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=3).serving()
    with ExitStack() as opened:
        served(server, opened, 3)
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda: server.status("test")["exits"]["crashed"] == 1)
        until(lambda: total(server) == 3)
        assert [each["slot"] for each in sorted(server.status()["workers"], key=lambda each: each["slot"])] == [0, 1, 2]


def test_an_elastic_pool_that_crashes_fills_up_again(forkd: Forkd) -> None:
    server = forkd("small:shout", workers="{ min = 3, max = 6, spare = 1 }").serving()
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    until(lambda: server.status("test")["exits"]["crashed"] == 3)
    until(lambda: total(server) == 3)
    assert exchange(server.connect(), b"well\n") == b"WELL\n"


def test_a_large_pool_serves_everybody(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=24).serving()
    with ExitStack() as opened:
        served(server, opened, 24)
    for _ in range(30):
        assert exchange(server.connect(), b"well\n") == b"WELL\n"
    assert server.stop() == 0
    server.gone()


def wakeups(pids: list[int]) -> int:
    """Returns how often these processes have gone to sleep so far (proc(5), status), and so how often they woke up."""
    status = "".join(Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return sum(map(int, re.findall(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)))


def test_a_connection_wakes_one_worker_of_a_large_pool(forkd: Forkd) -> None:
    """EPOLLEXCLUSIVE lets the other workers sleep on."""
    server = forkd("small:shout", workers=24).serving()
    pids = server.workers()
    before = wakeups(pids)
    for _ in range(50):
        assert exchange(server.connect(), b"a\n") == b"A\n"
    until(lambda: server.status("test")["connections"]["open"] == 0)
    # A worker sleeps before the connection, before the request and before the end, and once more for a signal or a
    # lingering socket. If each connection woke all workers, there would be 23 more sleeps.
    assert wakeups(pids) - before < 50 * 6


@pytest.mark.slow
def test_an_elastic_pool_shrinks_when_all_have_gone(forkd: Forkd) -> None:
    server = forkd("small:shout", workers="{ min = 1, max = 9, spare = 1 }").serving()
    with ExitStack() as opened:
        served(server, opened, 8)
        until(lambda: total(server) == 9)
    # After ten seconds without need, half of the surplus goes. Only idle workers are taken.
    until(lambda: total(server) < 9)
    assert total(server) >= 5
    assert server.status("test")["exits"]["crashed"] == 0
    assert exchange(server.connect(), b"well\n") == b"WELL\n"


def test_workers_are_replaced_after_so_many_requests_and_nobody_notices(forkd: Forkd) -> None:
    server = forkd("small:pid", workers=1, max_requests=5).serving()
    answers: list[bytes] = []
    while len(set(answers)) < 6:
        answers.append(exchange(server.connect(), b"who\n"))
    assert b"" not in answers
    assert all(answers.count(pid) >= 4 for pid in set(answers[:-1])), "a worker left early"
    until(lambda: server.status("test")["exits"]["recycled"] >= 5)
    assert server.status("test")["exits"]["crashed"] == 0
    assert server.status("test")["requests"] == len(answers)


def test_a_worker_that_has_served_long_enough_stays_until_another_serves(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("lives:told", workers=1, max_requests=1).serving()
    (tmp_path / "broken").touch()
    [pid] = server.workers()
    for _ in range(20):
        assert exchange(server.connect(), b"still here\n") == b"still here\n"
    server.said("error worker could not boot")
    assert pid in server.workers()
    (tmp_path / "broken").unlink()
    until(lambda: pid not in server.workers() and server.workers(), "a successor")
    assert exchange(server.connect(), b"well\n") == b"well\n"


def test_an_idle_worker_is_replaced_when_its_age_has_come(forkd: Forkd) -> None:
    server = forkd("small:pid", workers=2, max_age=0.2).serving()
    before = set(server.workers())
    until(lambda: len(set(server.workers()) - before) == 2, "two new workers")
    assert exchange(server.connect(), b"who\n")
