"""The parts of a pool, one by one: back-off, size, slots, states. `test_lifecycle` has them in combination."""

from __future__ import annotations

import random
from collections.abc import Mapping, Set
from enum import Enum
from itertools import islice

import pytest

from docs.tools.states import diagram
from forkd.ipc.order import Order
from forkd.lifecycle.backoff import Backoff
from forkd.lifecycle.events import (
    Departure,
    Ended,
    EndForkServer,
    Fork,
    ForkServerGone,
    Plan,
    StartForkServer,
    Tell,
    WorkerGone,
)
from forkd.lifecycle.generation import Generation, numbers_not_in
from forkd.lifecycle.pool import Pool, Size
from forkd.lifecycle.server import PHASE_MOVES
from forkd.lifecycle.states import (
    FORK_SERVER_MOVES,
    NEVER,
    WORKER_MOVES,
    ForkServerState,
    IllegalMoveError,
    Worker,
    WorkerState,
)

FIXED = Plan("echo", 2, 2)
ELASTIC = Plan("echo", 1, 64, spare=2)


def generation(plan: Plan = FIXED, state: ForkServerState = ForkServerState.BOOTING) -> Generation:
    return Generation(1, plan, random.Random(1), 0.0, plan.boot_timeout, state)


def with_busy(plan: Plan, busy: int) -> Generation:
    serving = generation(plan, ForkServerState.READY)
    for slot in range(busy):
        serving.workers[slot] = Worker(slot, slot + 1, 0.0, 0.0, NEVER, WorkerState.SERVING, busy=True)
    return serving


def test_backoff_doubles_up_to_its_last_with_jitter() -> None:
    backoff, jitter, now = Backoff(), random.Random(7), 100.0
    assert backoff.until <= now
    waits = []
    for _ in range(2000):
        backoff.failed(now, jitter)
        waits.append(backoff.until - now)
    assert waits[0] == 0
    for wait, middle in zip(waits[1:], [0.5, 1, 2, 4, 8, 16] + [30] * 2000, strict=False):
        assert 0.8 * middle - 1e-9 <= wait <= 1.2 * middle + 1e-9
    assert min(waits[7:]) < 26 < 34 < max(waits[7:])


@pytest.mark.parametrize(("lived", "waits"), [(59.9, True), (60.0, False)])
def test_backoff_forgets_after_a_minute(lived: float, waits: bool) -> None:
    backoff, jitter = Backoff(), random.Random(7)
    backoff.failed(0.0, jitter)
    backoff.lived(lived)
    backoff.failed(lived, jitter)
    assert (backoff.until > lived) is waits


# Each case: a plan, its first size, and steps of (time, busy workers, size expected then).
SIZES = [
    (FIXED, 2, [(0, 0, 2), (1, 2, 2), (50, 0, 2)]),
    (ELASTIC, 1, [(0, 0, 2)]),
    (ELASTIC, 2, [(0, 0, 2), (1, 1, 3), (2, 2, 5), (2, 4, 9), (3, 8, 17), (4, 16, 33), (5, 32, 64), (6, 64, 64)]),
    (Plan("echo", 1, 500), 1, [(0, 1, 2), (0, 2, 4), (0, 4, 8), (0, 8, 16), (0, 16, 32), (0, 32, 64), (0, 64, 96)]),
    (ELASTIC, 2, [(0, 1, 3), (2.9, 2, 5), (5.9, 4, 6), (6, 5, 8)]),
    (ELASTIC, 2, [(0, 9, 11), (1, 10, 13)]),
    (
        ELASTIC,
        40,
        [(0, 0, 40), (9.9, 0, 40), (10, 0, 21), (19, 0, 21), (20, 0, 11), (30, 0, 6), (40, 0, 4), (50, 0, 3)],
    ),
    (ELASTIC, 3, [(0, 0, 3), (10, 0, 2), (99, 0, 2)]),
    (ELASTIC, 4, [(0, 0, 4), (9, 2, 4), (10, 0, 4), (19, 0, 4), (20, 0, 3)]),
]


@pytest.mark.parametrize(("plan", "target", "story"), SIZES)
def test_size(plan: Plan, target: int, story: list[tuple[float, int, int]]) -> None:
    size = Size(target)
    for now, busy, wanted in story:
        size.follow(with_busy(plan, busy), now)
        assert size.target == wanted, f"{busy} busy at {now}"
        assert size.due > now


@pytest.mark.parametrize("since", [0.1, 0.7, 1.1, 1234567.89])
def test_size_is_due_by_the_same_sum_as_it_shrinks(since: float) -> None:
    size = Size(9)
    size.follow(with_busy(ELASTIC, 0), since)
    size.follow(with_busy(ELASTIC, 0), size.due)
    assert size.target < 9


# Each case: a plan, what a person asked for, and the resulting minimum and maximum.
@pytest.mark.parametrize(
    ("plan", "asked", "bounds"),
    [
        (FIXED, [("scaled", 5)], (5, 5)),
        (FIXED, [("scaled", 0)], (1, 1)),
        (FIXED, [("shifted", 2)], (4, 4)),
        (FIXED, [("shifted", -5)], (1, 1)),
        (FIXED, [("shifted", 2), ("scaled", 3)], (3, 3)),
        (ELASTIC, [("scaled", 5)], (5, 64)),
        (ELASTIC, [("scaled", 70)], (70, 70)),
        (ELASTIC, [("scaled", 70), ("scaled", 3)], (3, 64)),
        (ELASTIC, [("shifted", -1)], (1, 64)),
        (ELASTIC, [("shifted", 3), ("shifted", -2)], (2, 65)),
    ],
)
def test_what_a_person_asks_for(plan: Plan, asked: list[tuple[str, int]], bounds: tuple[int, int]) -> None:
    one = generation(plan)
    for method, number in asked:
        {"scaled": one.scaled, "shifted": one.shifted}[method](number)
    assert (one.minimum, one.maximum) == bounds
    assert [one.fit(size) for size in (0, 1000)] == list(bounds)


def test_missing_slots_are_the_lowest_each_with_its_backoff() -> None:
    one = generation(state=ForkServerState.READY)
    one.fork(1, 1, 0.0)
    assert one.missing(0) == one.missing(1) == {}
    assert one.missing(3) == {0: 0.0, 2: 0.0}
    one.boot_failed(2, "it broke", 5.0)
    one.boot_failed(2, "it broke", 5.0)
    assert one.missing(2) == {0: 0.0}
    assert one.missing(3).keys() == {0, 2}
    assert 5.4 <= one.missing(3)[2] <= 5.6
    assert generation().missing(3) == {}, "only a fork server that is ready can fork"
    assert list(islice(numbers_not_in({1, 2, 4}, 1), 3)) == [3, 5, 6]


def test_a_pool_from_its_first_generation_to_its_last() -> None:
    pool = Pool(FIXED, random.Random(1))
    assert pool.empty
    assert pool.due == NEVER
    assert pool.begin(FIXED, 0.0) == StartForkServer("echo", 1)
    assert not pool.prepared()
    assert pool.failure is None
    pool.fork_server_ready(1, 1.0)
    assert pool.converge(1.0) == [Fork("echo", 1, 0, 1), Fork("echo", 1, 1, 2)]
    pool.worker_ready(1, 0, 2.0)
    assert not pool.prepared()
    pool.worker_ready(1, 1, 2.0)
    assert pool.prepared()
    pool.promote()
    assert pool.converge(2.0) == []
    assert pool.serving is not None
    assert pool.serving.number == 1
    assert pool.coming is None
    pool.retire()
    worker = pool.worker(1, 0)
    assert worker is not None
    tells = [Tell("echo", 1, 0, Order.FINISH), Tell("echo", 1, 1, Order.FINISH)]
    assert pool.finish(3.0) == tells
    for slot in range(2):
        pool.worker_gone(WorkerGone("echo", 1, slot, Departure.LEFT), 4.0)
    assert worker.state is WorkerState.GONE
    assert pool.finish(4.0) == [EndForkServer("echo", 1)]
    pool.fork_server_gone(ForkServerGone("echo", 1), 5.0)
    assert not pool.empty
    assert pool.finish(5.0) == []
    assert pool.empty


def test_a_failure_says_what_a_start_would_end_with() -> None:
    one = generation()
    one.press(30.0)
    assert one.failure == Ended(1, "service echo: not ready within its boot_timeout of 30 s")


@pytest.mark.parametrize("state", WorkerState)
def test_moves_of_workers(state: WorkerState) -> None:
    for after in WorkerState:
        worker = Worker(3, 4, 0.0, 0.0, NEVER, state)
        if after in WORKER_MOVES[state]:
            worker.move(after, 1.0, 2.0)
            assert (worker.state, worker.since, worker.until) == (after, 1.0, 2.0)
        else:
            with pytest.raises(IllegalMoveError, match=f"^worker 3: {state.value} to {after.value}$"):
                worker.move(after, 1.0)


@pytest.mark.parametrize("state", ForkServerState)
def test_moves_of_fork_servers(state: ForkServerState) -> None:
    for after in ForkServerState:
        one = generation(state=state)
        if after in FORK_SERVER_MOVES[state]:
            one.move(after, 1.0)
            assert (one.state, one.since, one.until) == (after, 1.0, NEVER)
        else:
            with pytest.raises(IllegalMoveError, match=f"^fork server 1: {state.value} to {after.value}$"):
                one.move(after, 1.0)


@pytest.mark.parametrize("moves", [WORKER_MOVES, FORK_SERVER_MOVES, PHASE_MOVES])
def test_every_state_is_reached_and_has_a_way_to_the_end(moves: Mapping[Enum, Set[Enum]]) -> None:
    states = list(moves)
    assert states == list(type(states[0])), "every state has its line, in order"
    reached = {states[0]}
    for _ in states:
        reached |= {after for state in reached for after in moves[state]}
    assert reached == set(states)
    ends = {state for state, following in moves.items() if not following}
    assert ends == {states[-1]}
    leading = set(ends)
    for _ in states:
        leading |= {state for state, following in moves.items() if following & leading}
    assert leading == set(states)


def test_a_diagram() -> None:
    assert diagram(FORK_SERVER_MOVES).splitlines() == [
        "stateDiagram-v2",
        "    [*] --> booting",
        "    booting --> ready",
        "    booting --> ending",
        "    booting --> gone",
        "    ready --> ending",
        "    ready --> gone",
        "    ending --> ending",
        "    ending --> gone",
        "    gone --> [*]",
    ]
