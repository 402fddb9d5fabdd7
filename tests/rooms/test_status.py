"""The status document, computed from rows of numbers: totals, states and percentiles."""

from __future__ import annotations

import json
import math
import os
import random
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkd.ipc.meter import Meter, bucket
from forkd.ipc.scoreboard import BUSY_SINCE, COUNTS, HIGHEST, HISTOGRAM, OPEN, ROWS, SLOWEST, Board
from forkd.lifecycle.events import Plan
from forkd.lifecycle.pool import Pool
from forkd.master import status
from forkd.master.handles import WorkerHandle

NOBODY = 2**22 + 1  # no process has this PID; see pid_max in proc(5)


class Service:
    """A board and its workers, as the master holds them."""

    def __init__(self) -> None:
        self.board = Board.create("test")
        self.pool = Pool(Plan("echo", 1, 1, 0, 30, 30, 300), random.Random(1))
        self.workers: list[WorkerHandle] = []
        self.sockets: list[socket.socket] = []

    def worker(self, slot: int, *, row: int = 0, pid: int = NOBODY, ready: bool = True) -> tuple[WorkerHandle, Meter]:
        leash = socket.socket()
        self.sockets.append(leash)
        number = row or slot + 1
        self.board.header[HIGHEST] = max(self.board.header[HIGHEST], number)
        meter = Meter(self.board.row(number))
        meter.idle()
        handle = WorkerHandle(
            service="echo",
            slot=slot,
            generation=1,
            pid=pid,
            pidfd=-1,
            leash=leash,
            stack=-1,
            place=number,
            row=self.board.row(number),
            born=100.0,
            ready=ready,
        )
        self.workers.append(handle)
        return handle, meter

    def document(self) -> dict[str, object]:
        found = status.service("a:b", ["127.0.0.1:7007"], self.pool, self.board, self.workers)
        json.dumps(found)
        return found


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    for sock in made.sockets:
        sock.close()
    for worker in made.workers:
        worker.row.release()
    with suppress(BufferError):  # a meter may still hold its row
        made.board.close()


NOTHING = {"p50": None, "p90": None, "p99": None, "max": None}


def test_a_service_that_has_done_nothing(service: Service) -> None:
    service.worker(0)
    service.worker(1, ready=False)
    assert service.document() == {
        "app": "a:b",
        "generation": 0,
        "listen": ["127.0.0.1:7007"],
        "workers": {"total": 1, "idle": 1, "busy": 0},
        "connections": {"open": 0, "accepted": 0},
        "requests": 0,
        "errors": 0,
        "bytes": {"in": 0, "out": 0},
        "refused": dict.fromkeys(("over_limit", "truncated", "malformed", "timed_out", "reset", "accept_failed"), 0),
        "exits": {"recycled": 0, "crashed": 0, "timed_out": 0},
        "latency": NOTHING,
    }


def test_what_workers_did_is_summed(service: Service) -> None:
    for slot in range(3):
        _, meter = service.worker(slot)
        meter.opened()
        served(meter, 4)
        meter.moved(10, 20)
        for column in COUNTS.values():
            meter.counted(column)
    found = service.document()
    assert found["workers"] == {"total": 3, "idle": 0, "busy": 3}
    assert found["connections"] == {"open": 3, "accepted": 6}
    assert (found["requests"], found["errors"]) == (15, 3)
    assert found["bytes"] == {"in": 33, "out": 63}
    assert found["refused"] == dict.fromkeys(
        ("over_limit", "truncated", "malformed", "timed_out", "reset", "accept_failed"), 3
    )


def served(meter: Meter, requests: int) -> None:
    for _ in range(requests):
        meter.ended(meter.began())


def test_totals_stay_when_a_worker_has_gone_and_another_has_its_row(service: Service) -> None:
    first, meter = service.worker(0)
    served(meter, 7)
    service.workers.remove(first)
    assert service.document()["requests"] == 7
    second, meter = service.worker(0)
    served(meter, 2)
    assert service.document()["requests"] == 9
    assert status.worker(second, "serving", 100.0)["requests"] == 2
    first.row.release()


@pytest.mark.parametrize(
    ("state", "busy", "shown"),
    [
        ("serving", False, "idle"),
        ("serving", True, "busy"),
        ("booting", False, "booting"),
        ("leaving", True, "leaving"),
        ("gone", False, "gone"),
    ],
)
def test_the_state_of_a_worker(service: Service, state: str, busy: bool, shown: str) -> None:
    handle, meter = service.worker(4, pid=os.getpid())
    if busy:
        meter.opened()
    found = status.worker(handle, state, 112.3456)
    memory = found.pop("memory")
    assert memory > 1_000_000
    assert found == {
        "service": "echo",
        "slot": 4,
        "pid": os.getpid(),
        "generation": 1,
        "state": shown,
        "age": 12.346,
        "connections": int(busy),
        "requests": 0,
        "request_age": None,
    }


def test_a_request_has_an_age(service: Service) -> None:
    handle, meter = service.worker(0)
    meter.row[BUSY_SINCE] = 90 * 10**9
    assert status.worker(handle, "serving", 92.5)["request_age"] == 2.5
    assert status.worker(handle, "serving", 89.9)["request_age"] == 0.0  # our own clock was read slightly earlier
    assert status.worker(handle, "serving", 92.5)["memory"] == 0


def test_rows_are_numbers_whatever_a_worker_has_written(service: Service) -> None:
    handle, meter = service.worker(0)
    for column in range(len(meter.row)):
        meter.row[column] = 2**64 - 1
    service.board.header[HIGHEST] = 2**64 - 1
    found = service.document()
    assert found["requests"] == 2**64 - 1
    assert status.worker(handle, "serving", 1.0)["request_age"] == 0.0
    assert len(str(found)) < 2000
    assert ROWS < 2**64


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=40))
def test_a_percentile_is_never_too_low_and_at_most_an_eighth_too_high(durations: list[int]) -> None:
    rows = [memoryview(bytearray(4096)).cast("Q") for _ in range(2)]
    for at, duration in enumerate(durations):
        row = rows[at % 2]
        row[HISTOGRAM + bucket(duration)] += 1
        row[SLOWEST] = max(row[SLOWEST], duration)
    told = status.latency(rows)
    ordered = sorted(durations)
    assert told["max"] == pytest.approx(ordered[-1] * 1e-9)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        true = ordered[math.ceil(share * len(ordered)) - 1]
        value = told[name]
        assert value is not None
        assert true * 1e-9 <= value * 1.0000001
        assert value <= min(max(true * 1.125, 1024), ordered[-1]) * 1e-9 * 1.0000001


def test_no_latency_without_a_request() -> None:
    assert status.latency([]) == NOTHING


@pytest.mark.parametrize(
    ("services", "line"),
    [
        ({}, "0 services, 0 workers, 0 busy, 0 requests"),
        ({"a": (1, 0, 1)}, "1 service, 1 worker, 0 busy, 1 request"),
        ({"a": (2, 1, 5), "b": (3, 2, 6)}, "2 services, 5 workers, 3 busy, 11 requests"),
    ],
)
def test_the_summary(services: dict[str, tuple[int, int, int]], line: str) -> None:
    document = {
        name: {"workers": {"total": total, "busy": busy}, "requests": requests}
        for name, (total, busy, requests) in services.items()
    }
    assert status.summary(document) == line


def test_open_connections_are_those_of_workers_that_live(service: Service) -> None:
    gone, meter = service.worker(0)
    meter.row[OPEN] = 1
    assert service.document()["connections"] == {"open": 1, "accepted": 0}
    service.workers.remove(gone)
    assert service.document()["connections"] == {"open": 0, "accepted": 0}
    gone.row.release()
