"""A fake kernel, and a state machine that sends the lifecycle any legal event, in any order.

The kernel holds the processes that the lifecycle has ordered, and rejects an order that cannot be carried out. The
machine lets processes become ready, fail, leave, crash or stop responding, and checks the invariants after every event.
pytest runs a fixed choice of stories; `python -m tests.rooms.lifecycle_machine 5000` runs that many random ones.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from forkd.ipc.order import Order
from forkd.lifecycle.events import (
    Abandoned,
    Abort,
    Action,
    Announce,
    BeginStop,
    Committed,
    Departure,
    DrainAsked,
    Ended,
    EndForkServer,
    Event,
    Forgotten,
    Fork,
    ForkServerGone,
    ForkServerReady,
    Kill,
    Mend,
    Observed,
    Plan,
    ReloadAsked,
    ScaleAsked,
    Started,
    StartForkServer,
    StopAsked,
    Tell,
    TimePassed,
    WorkerGone,
    WorkerReady,
)
from forkd.lifecycle.generation import Generation
from forkd.lifecycle.pool import Pool
from forkd.lifecycle.server import UP, Lifecycle, Phase
from forkd.lifecycle.states import ForkServerState, Worker, WorkerState
from forkd.master import estate

SERVICES = ("chargen", "daytime", "echo")
STOP_TIMEOUT = 7.0
PATIENCE = 2000  # events within which everything must settle
STATIONS = (Announce, BeginStop, Ended)

T = TypeVar("T")
Place = tuple[str, int]
Seat = tuple[str, int, int]


@dataclass
class Process:
    """A worker of the fake kernel."""

    row: int
    ready: bool = False
    order: Order | None = None
    busy: bool = False
    request: float | None = None
    retiring: bool = False
    killed: bool = False
    kills: int = 0


@dataclass
class Template:
    """A fork server of the fake kernel."""

    ready: bool = False
    ending: bool = False
    killed: bool = False
    stuck: bool = False  # ready, but no longer responding


@dataclass
class Kernel:
    """The live processes, and what has been announced to the outside."""

    servers: dict[Place, Template] = field(default_factory=dict)
    workers: dict[Seat, Process] = field(default_factory=dict)
    said: list[Action] = field(default_factory=list)

    def perform(self, action: Action) -> None:
        match action:
            case StartForkServer(service, generation):
                assert (service, generation) not in self.servers
                assert not self.said_any(BeginStop)
                self.servers[service, generation] = Template()
            case EndForkServer(service, generation, kill):
                server = self.servers[service, generation]
                stuck = server.stuck or (kill and self.killed_in_vain(service, generation))
                assert stuck or not any(seat[:2] == (service, generation) for seat in self.workers)
                assert kill or server.ready
                server.ending, server.killed = True, kill
            case Fork(service, generation, slot, row):
                server = self.servers[service, generation]
                assert server == Template(ready=True, stuck=server.stuck)
                assert (service, generation, slot) not in self.workers
                assert row >= 1
                assert row not in {process.row for seat, process in self.workers.items() if seat[0] == service}
                assert not self.said_any(BeginStop)
                self.workers[service, generation, slot] = Process(row)
            case Tell(service, generation, slot, order):
                process = self.workers[service, generation, slot]
                assert not process.killed
                assert (process.order, order) != (Order.FINISH, Order.DRAIN)
                process.order = order
            case Abort(service, generation, slot, reason) | Kill(service, generation, slot, reason):
                assert reason
                process = self.workers[service, generation, slot]
                process.killed = isinstance(action, Kill)
                process.kills += process.killed
            case Mend(service):
                assert not self.said_any(Ended)
            case Forgotten(service):
                assert not any(place[0] == service for place in self.servers)
                assert not any(seat[0] == service for seat in self.workers)
                self.said.append(action)
            case _:
                assert not self.said_any(type(action)) or not isinstance(action, STATIONS)
                self.said.append(action)

    def killed_in_vain(self, service: str, generation: int) -> bool:
        return any(process.kills >= 3 for seat, process in self.workers.items() if seat[:2] == (service, generation))

    def said_any(self, *kinds: type) -> int:
        return sum(isinstance(action, kinds) for action in self.said)

    def observed(self, service: str) -> Observed:
        mine = {seat[1:]: process for seat, process in self.workers.items() if seat[0] == service}
        return Observed(
            service,
            frozenset(key for key, process in mine.items() if process.busy),
            {key: process.request for key, process in mine.items() if process.request is not None},
            frozenset(key for key, process in mine.items() if process.retiring),
        )

    def next_fact(self, *, deaf: bool) -> Event | None:
        """Returns what healthy processes do next on their own. Deaf ones ignore orders and only die when killed."""
        for (service, number), server in self.servers.items():
            if server.killed or (server.ending and not deaf):
                return ForkServerGone(service, number)
            if not server.ready and not server.ending:
                return ForkServerReady(service, number)
        for (service, number, slot), process in self.workers.items():
            alive = self.servers.get((service, number))
            if alive is not None and alive.stuck and not process.ready:
                continue
            if process.killed or (process.order is not None and not deaf):
                return WorkerGone(service, number, slot, Departure.CRASHED if process.killed else Departure.LEFT)
            if not process.ready and process.order is None:
                return WorkerReady(service, number, slot)
        return None

    def note(self, event: Event) -> None:
        """Makes a fact true."""
        match event:
            case ForkServerReady(service, number) if (service, number) in self.servers:
                self.servers[service, number].ready = True
            case ForkServerGone(service, number):
                self.servers.pop((service, number), None)
            case WorkerReady(service, number, slot) if (service, number, slot) in self.workers:
                self.workers[service, number, slot].ready = True
            case WorkerGone(service, number, slot):
                self.workers.pop((service, number, slot), None)


def plans(service: str) -> st.SearchStrategy[Plan]:
    return st.builds(
        lambda least, more, spare, boot, request, drain: Plan(
            service, least, least + more, spare, boot, request, drain
        ),
        st.integers(1, 3),
        st.sampled_from([0, 0, 1, 5, 40]),
        st.integers(0, 2),
        st.sampled_from([0.7, 30.0]),
        st.sampled_from([0.0, 4.1]),
        st.sampled_from([0.0, 3.3, 300.0]),
    )


sets_of_plans = st.sets(st.sampled_from(SERVICES), min_size=1).flatmap(
    lambda services: st.tuples(*(plans(service) for service in sorted(services)))
)
picks = st.integers(0, 10_000)


class Machine(RuleBasedStateMachine):
    """Stories of a server: each rule is something that can happen; `tell` checks the invariants after it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel()
        self.now = 1000.1
        self.reloads = 0
        self.life: Lifecycle
        self.deaf = False

    @initialize(wanted=sets_of_plans, seed=st.integers(0, 5), deaf=st.booleans())
    def start(self, wanted: tuple[Plan, ...], seed: int, deaf: bool) -> None:
        self.life = Lifecycle(wanted, stop_timeout=STOP_TIMEOUT, jitter=random.Random(seed))
        self.deaf = deaf
        self.tell(Started())

    # What can happen.

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.7, 10.0, 61.3]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.tell(TimePassed())

    @rule()
    def what_is_due_comes(self) -> None:
        if isfinite(self.life.due()):
            self.now = self.life.due()
        self.tell(TimePassed())

    @precondition(lambda self: self.kernel.next_fact(deaf=self.deaf) is not None)
    @rule(times=st.integers(1, 12))
    def all_goes_well(self, times: int) -> None:
        for _ in range(times):
            fact = self.kernel.next_fact(deaf=self.deaf)
            if fact is not None:
                self.tell(fact)

    @precondition(lambda self: self.kernel.servers)
    @rule(pick=picks, status=st.sampled_from([1, 78]))
    def a_fork_server_goes(self, pick: int, status: int) -> None:
        self.tell(ForkServerGone(*chosen(self.kernel.servers, pick), f"status {status}", status))

    @precondition(lambda self: self.kernel.servers)
    @rule(pick=picks)
    def a_fork_server_is_ready(self, pick: int) -> None:
        self.tell(ForkServerReady(*chosen(self.kernel.servers, pick)))

    @precondition(lambda self: self.kernel.servers)
    @rule(pick=picks)
    def a_fork_server_gets_stuck(self, pick: int) -> None:
        service, number = chosen(self.kernel.servers, pick)
        generation = self.life.pools[service].generation(number)
        assert generation is not None
        # Without a drain_timeout, a worker that is to leave but was never forked keeps its place until a stop.
        if self.kernel.servers[service, number].ready and generation.plan.drain_timeout:
            self.kernel.servers[service, number].stuck = True

    @precondition(lambda self: self.kernel.workers)
    @rule(pick=picks)
    def a_worker_is_ready(self, pick: int) -> None:
        self.tell(WorkerReady(*chosen(self.kernel.workers, pick)))

    @precondition(lambda self: self.kernel.workers)
    @rule(pick=picks, departure=st.sampled_from(Departure))
    def a_worker_goes(self, pick: int, departure: Departure) -> None:
        self.tell(WorkerGone(*chosen(self.kernel.workers, pick), departure, departure.value))

    @precondition(lambda self: self.kernel.workers)
    @rule(pick=picks, count=st.integers(1, 40), handling=st.booleans())
    def workers_get_busy(self, pick: int, count: int, handling: bool) -> None:
        for number in range(count):
            process = self.kernel.workers[chosen(self.kernel.workers, pick + number)]
            if process.ready:
                process.busy = True
                process.request = self.now if handling else None
        self.observe()

    @precondition(lambda self: self.kernel.workers)
    @rule(pick=picks, count=st.integers(1, 40))
    def workers_get_idle(self, pick: int, count: int) -> None:
        for number in range(count):
            process = self.kernel.workers[chosen(self.kernel.workers, pick + number)]
            process.busy, process.request = False, None
        self.observe()

    @precondition(lambda self: self.kernel.workers)
    @rule(pick=picks, count=st.integers(1, 40))
    def workers_have_served_long_enough(self, pick: int, count: int) -> None:
        for number in range(count):
            process = self.kernel.workers[chosen(self.kernel.workers, pick + number)]
            process.retiring = process.ready
        self.observe()

    @rule()
    def observe(self) -> None:
        for service in SERVICES:
            self.tell(self.kernel.observed(service))

    @rule(wanted=sets_of_plans)
    def a_reload_is_asked(self, wanted: tuple[Plan, ...]) -> None:
        self.tell(ReloadAsked(wanted))

    @rule(wanted=sets_of_plans)
    def a_reload_is_asked_and_goes_well(self, wanted: tuple[Plan, ...]) -> None:
        self.tell(ReloadAsked(wanted))
        for _ in range(PATIENCE):
            fact = self.kernel.next_fact(deaf=True)
            if fact is None:
                break
            self.tell(fact)

    @rule(often=st.sampled_from([False, False, True]))
    def a_drain_is_asked(self, often: bool) -> None:
        if often:
            self.tell(DrainAsked())

    @rule(service=st.sampled_from(["", *SERVICES]), size=st.none() | st.integers(-1, 8), by=st.integers(-3, 3))
    def a_size_is_asked(self, service: str, size: int | None, by: int) -> None:
        self.tell(ScaleAsked(service, size, by))

    @rule(service=st.sampled_from(["ghost", *SERVICES]), generation=st.sampled_from([0, 1, 99]))
    def something_unknown_is_told(self, service: str, generation: int) -> None:
        nobody = (service, generation, 999)
        for late in (WorkerReady(*nobody), WorkerGone(*nobody, Departure.CRASHED), ForkServerReady(service, 99)):
            assert self.life.handle(late, self.now) == []
        assert self.life.handle(ForkServerGone(service, 0), self.now) == []
        self.tell(Observed(service, frozenset({(99, 0)}), {(99, 0): 0.0}))

    @precondition(lambda self: self.kernel.said_any(Announce) or self.now > 1010)
    @rule(quick=st.booleans(), often=st.sampled_from([False, False, False, True]))
    def a_stop_is_asked(self, quick: bool, often: bool) -> None:
        if often:
            self.tell(StopAsked(quick))

    @precondition(lambda self: self.life.quiet)
    @rule()
    def the_program_is_replaced(self) -> None:
        jitter = random.Random(1)
        pools = estate.decode(dict[str, Pool], estate.encode(self.life.pools), jitter)
        due = self.life.due()
        self.life = Lifecycle.resumed(self.life.phase, pools, stop_timeout=STOP_TIMEOUT, jitter=jitter)
        assert self.life.due() == due
        self.tell(TimePassed())

    # Invariants.

    def tell(self, event: Event) -> None:
        if isinstance(event, ReloadAsked) and self.life.phase is not Phase.ENDED:
            self.reloads += 1
        before = {service: (pool.serving, pool.target) for service, pool in self.life.pools.items()}
        serving = {service: _serving(pool) for service, pool in self.life.pools.items()}
        self.kernel.note(event)
        for action in self.life.handle(event, self.now):
            self.kernel.perform(action)
        assert self.life.handle(TimePassed(), self.now) == [], "all that was to be done has been done"
        assert self.life.due() > self.now, "waiting for what is due makes progress"
        self.check_known()
        self.check_told()
        for service, pool in self.life.pools.items():
            self.check_pool(pool, *before.get(service, (None, 0)))
            if not isinstance(event, StopAsked | DrainAsked | WorkerGone | Observed) and self.life.phase in UP:
                # No worker is dismissed before its replacement serves.
                assert _serving(pool) >= min(serving.get(service, 0), pool.target) or pool.serving is None

    def check_known(self) -> None:
        """Checks that every live process is known, and that every known process is alive."""
        servers: dict[Place, ForkServerState] = {}
        workers: dict[Seat, WorkerState] = {}
        for service, pool in self.life.pools.items():
            for generation in pool.generations():
                assert not generation.over or generation is pool.serving
                if generation.state is not ForkServerState.GONE:
                    servers[service, generation.number] = generation.state
                for slot, worker in generation.workers.items():
                    assert worker.slot == slot
                    assert worker.row == self.kernel.workers[service, generation.number, slot].row
                    workers[service, generation.number, slot] = worker.state
        assert servers.keys() == self.kernel.servers.keys()
        assert workers.keys() == self.kernel.workers.keys()
        waiting = any(state is not ForkServerState.READY for state in servers.values())
        waiting = waiting or any(state is not WorkerState.SERVING for state in workers.values())
        if waiting or (self.kernel.said_any(BeginStop) and not self.kernel.said_any(Ended)):
            assert isfinite(self.life.due())

    def check_told(self) -> None:
        answers = self.kernel.said_any(Committed, Abandoned)
        assert self.reloads == answers + (self.life.reload is not None)
        assert (self.life.phase is Phase.ENDED) == (self.kernel.said_any(Ended) == 1)
        assert (self.life.phase in UP) == (not self.kernel.said_any(BeginStop))
        if self.life.phase is Phase.ENDED:
            assert not self.kernel.servers
            assert not self.kernel.workers
            assert self.life.due() == inf

    def check_pool(self, pool: Pool, served: Generation | None, wanted: int) -> None:
        assert len({generation.number for generation in pool.generations()}) == len(list(pool.generations()))
        if pool.serving is not None:
            # Only a size that a person asked for may be smaller than the number of busy workers.
            assert 1 <= pool.serving.minimum <= pool.target <= pool.serving.maximum
            staying = pool.serving.staying()
            most = pool.target + pool.serving.successors(pool.target)
            assert len(staying) <= most or all(worker.busy for worker in staying)
            assert pool.serving.successors(pool.target) <= max(1, pool.target // 4)
            if pool.serving is not served:
                assert pool.serving.serving() >= max(pool.serving.minimum, min(wanted, pool.target))
        if self.life.phase in UP:
            hurried = pool.leaving[:-2]
            assert all(worker.order is Order.FINISH or worker.state is WorkerState.DOOMED for worker in folk(hurried))

    # How every story ends.

    def settle(self) -> None:
        """Checks that, once failures have stopped and all workers are idle, everything is as planned."""
        for process in self.kernel.workers.values():
            process.busy, process.request = False, None
        self.observe()
        for _ in range(PATIENCE):
            fact = self.kernel.next_fact(deaf=False)
            self.observe()
            if fact is not None:
                self.tell(fact)
            elif isfinite(self.life.due()):
                self.now = self.life.due()
                self.tell(TimePassed())
            else:
                break
        assert self.life.due() == inf
        assert self.life.reload is None

    def teardown(self) -> None:
        if not hasattr(self, "life"):
            return
        self.settle()
        if self.life.phase is Phase.DRAINED:
            assert not any(folk(pool.generations()) for pool in self.life.pools.values())
            self.stop()
        elif self.life.phase is not Phase.ENDED:
            assert self.life.phase is Phase.SERVING
            assert self.life.serving()
            for pool in self.life.pools.values():
                assert pool.serving is not None
                assert list(pool.generations()) == [pool.serving]
                assert pool.serving.serving() == len(pool.serving.workers) == pool.target
                assert pool.target == pool.serving.fit(max(1, pool.serving.plan.spare))
            self.stop()
        assert self.kernel.said_any(BeginStop) == self.kernel.said_any(Ended) == 1

    def stop(self) -> None:
        begun = self.now
        self.tell(StopAsked())
        for _ in range(PATIENCE):
            fact = self.kernel.next_fact(deaf=self.deaf)
            if self.life.phase is Phase.ENDED:
                break
            if fact is None:
                self.now = self.life.due()
            self.tell(fact or TimePassed())
        assert self.now <= begun + STOP_TIMEOUT + 8
        assert self.kernel.said[-1] == Ended(0)


def chosen(things: Iterable[T], pick: int) -> T:
    known = list(things)
    return known[pick % len(known)]


def _serving(pool: Pool) -> int:
    return 0 if pool.serving is None else pool.serving.serving()


def folk(generations: Iterable[Generation]) -> list[Worker]:
    return [worker for generation in generations for worker in generation.workers.values()]


if __name__ == "__main__":
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(sys.argv[1]),
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
