"""All trials: which servers take part, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from bench import contenders, standing
from bench.contenders import Contender
from bench.load import SHARES, HalfLoad, Load, PartialLoad, keyvalue, load
from bench.rounds import Entrant, Measures, Trial


def entrants(run: Callable[[Contender], Measures], those: Iterable[Contender]) -> list[Entrant]:
    return [Entrant(each.name, partial(run, each), each.missing) for each in those]


def all_trials(seconds: float) -> list[Trial]:
    """Returns all trials; `seconds` is how long a client sends requests in one run."""
    return [*_under_load(seconds), *_standing(seconds)]


def _under_load(seconds: float) -> list[Trial]:

    def loaded(workers: int, how: Load, those: Iterable[Contender]) -> list[Entrant]:
        return entrants(lambda each: load(each, workers, how, seconds), those)

    sync, pool = contenders.FORKD_SYNC, [contenders.C_PREFORK, contenders.NET_SERVER]
    events = [contenders.FORKD_EVENT, contenders.FORKD_THREADS, contenders.FORKD_ASYNC]
    a_connection = [contenders.THREADS, contenders.FORKS, contenders.TCPSERVER]
    protocols = [contenders.C_EPOLL, contenders.UVLOOP, contenders.ASYNCIO]
    loops = [contenders.STREAMS, contenders.GEVENT, contenders.TWISTED]
    half = HalfLoad([contenders.FORKD_EVENT, contenders.UVLOOP], Load(), seconds)
    four = Load(connections=4)
    stores = [contenders.FORKD_KEYVALUE, contenders.KEYVALUE_UVLOOP, contenders.KEYVALUE_ASYNCIO]

    def redis(pipelined: int) -> list[Entrant]:
        return entrants(lambda each: keyvalue(each, pipelined, seconds), stores)

    return [
        Trial(
            "sync-64",
            "64 bytes, 4 workers, 4 connections",
            loaded(4, four, [sync, *pool, *a_connection, *contenders.LOOPS_SYNC]),
        ),
        Trial(
            "sync-16k",
            "16 KiB, 4 workers, 4 connections",
            loaded(4, Load(connections=4, size=16384), [sync, *pool, *a_connection, *contenders.LOOPS_SYNC]),
        ),
        Trial(
            "sync-single",
            "64 bytes, 4 workers, 4 clients, a connection a request",
            loaded(4, Load(connections=4, a_connection=1), [sync, *pool, *a_connection]),
        ),
        Trial(
            "event-64",
            "64 bytes, 1 worker, 64 connections",
            loaded(1, Load(), [*events, *protocols, *loops, *a_connection, *contenders.LOOPS_EVENT]),
        ),
        Trial(
            "event-16k",
            "16 KiB, 1 worker, 64 connections",
            loaded(1, Load(size=16384), [*events, *protocols, *loops]),
        ),
        Trial(
            "event-pipelined",
            "64 bytes, 1 worker, 64 connections, 16 requests in one write",
            loaded(1, Load(depth=16), [*events, *protocols, *loops, *contenders.LOOPS_EVENT]),
        ),
        Trial(
            "half-load",
            "64 bytes, 1 worker, 64 connections, open loop at half of full load",
            entrants(half.run, [contenders.FORKD_EVENT, contenders.UVLOOP, contenders.ASYNCIO, contenders.C_EPOLL]),
        ),
        Trial(
            "pool",
            "64 bytes, 4 connections, 4 or 64 sync workers",
            [
                Entrant(f"forkd sync, {count} workers", partial(load, sync, count, four, seconds), sync.missing)
                for count in (4, 64)
            ],
        ),
        *_partial(seconds),
        Trial("redis-1", "redis-benchmark SET and GET, 50 connections, -P 1", redis(1)),
        Trial("redis-16", "redis-benchmark SET and GET, 50 connections, -P 16", redis(16)),
    ]


def _partial(seconds: float) -> list[Trial]:
    """The same at a share of full load, where servers live: caches are cold, and each request wakes someone up."""
    sync, event, c, uvloop = contenders.FORKD_SYNC, contenders.FORKD_EVENT, contenders.C_PREFORK, contenders.UVLOOP
    kinds = [
        ("kept", "4 workers, 4 connections", PartialLoad([sync, c], 4, Load(connections=4), 2 * seconds)),
        (
            "single",
            "4 workers, one connection per request",
            PartialLoad([sync, c], 4, Load(connections=4, a_connection=1), 2 * seconds),
        ),
        (
            "events",
            "1 worker, 32 connections",
            PartialLoad([event, contenders.C_EPOLL, uvloop], 1, Load(connections=32), 2 * seconds),
        ),
    ]
    return [
        Trial(
            f"{name}-{share}",
            f"64 bytes, {title}, open loop at {share} % of full load",
            entrants(partial(kind.run, share / 100), kind.those),
        )
        for name, title, kind in kinds
        for share in SHARES
    ]


def _standing(seconds: float) -> list[Trial]:
    sync, event, uvloop = contenders.FORKD_SYNC, contenders.FORKD_EVENT, contenders.UVLOOP
    protocols = [uvloop, contenders.ASYNCIO]
    pools, least = [sync, contenders.NET_SERVER], contenders.LOOPS_SYNC
    many = [*protocols, contenders.STREAMS, contenders.GEVENT, contenders.TWISTED]
    python = Entrant("python -c 'import asyncio'", partial(standing.bare_python, "import asyncio"), lambda: "")

    def entrant(run: partial[Measures], contender: Contender, name: str = "") -> Entrant:
        return Entrant(name or contender.name, run, contender.missing)

    return [
        Trial(
            "memory",
            "a worker's private dirty memory after 100,000 requests",
            [entrant(partial(standing.memory, each, 1), each) for each in [*pools, contenders.C_PREFORK, *least]]
            + [entrant(partial(standing.memory, each, 64), each) for each in [event, contenders.FORKD_ASYNC, *many]],
            share=0.4,
        ),
        Trial(
            "idle-connections",
            "64 busy connections, alone and beside 10,000 idle ones",
            [
                entrant(partial(standing.beside, event, 2, idle, seconds), event, f"forkd event, {idle:,} idle")
                for idle in (0, standing.IDLE)
            ]
            + [
                entrant(partial(standing.beside, each, 1, idle, seconds), each, f"{each.name}, {idle:,} idle")
                for each in protocols
                for idle in (0, standing.IDLE)
            ],
        ),
        Trial(
            "idle-workers",
            "16 idle workers",
            [
                entrant(partial(standing.idleness, each, 10 * seconds), each)
                for each in [sync, event, contenders.NET_SERVER]
            ],
            share=0.4,
        ),
        Trial(
            "first-answer",
            "from the start of the program to the first answer",
            [*(entrant(partial(standing.first_answer, each), each) for each in [sync, event, uvloop]), python],
            share=4,
        ),
        Trial(
            "worker-start",
            "from the order for a worker until it is ready, with an application of 50 MB",
            [entrant(partial(standing.worker_start, contenders.FORKD_BIG), contenders.FORKD_BIG)],
        ),
    ]
