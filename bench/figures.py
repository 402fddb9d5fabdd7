"""What is promised of the measurements: each figure's bound, and whether it was kept.

A figure is one measure of one entrant, or its ratio to another's, taken round by round. Its median is held against
the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.arithmetic import Spread, ratios, spread
from bench.rounds import Outcome


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    says: str
    bound: float
    trial: str
    measure: str
    ours: str
    theirs: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure's outcome; `reason` says why there is none."""

    figure: Figure
    spread: Spread | None
    reason: str = ""

    @property
    def kept(self) -> bool | None:
        return None if self.spread is None else self.spread.median <= self.figure.bound


def _cpu(name: str, says: str, bound: float, trial: str, ours: str, theirs: str) -> Figure:
    return Figure(name, says, bound, trial, "cpu us", ours, theirs)


def _against(theirs: str) -> Figure:
    name = "event-vs-" + theirs.lower().replace(", ", "-").replace(" ", "-")
    return _cpu(name, f"the same against {theirs}", 0.5, "event-64", "forkd event", theirs)


FIGURES = [
    _cpu(
        "sync-64",
        "CPU a request, 4 sync workers, 64 bytes, against C prefork",
        1.2,
        "sync-64",
        "forkd sync",
        "C prefork",
    ),
    _cpu("sync-16k", "the same with 16 KiB", 1.2, "sync-16k", "forkd sync", "C prefork"),
    _cpu("sync-single", "the same with a connection a request", 1.6, "sync-single", "forkd sync", "C prefork"),
    _cpu(
        "event-vs-c",
        "CPU a request, 1 event worker, 64 connections, against C epoll",
        1.25,
        "event-64",
        "forkd event",
        "C epoll",
    ),
    _cpu("event-vs-uvloop", "the same against a uvloop Protocol", 1.0, "event-64", "forkd event", "uvloop Protocol"),
    _cpu(
        "pipelined-vs-uvloop",
        "the same with 16 requests in one write",
        1.0,
        "event-pipelined",
        "forkd event",
        "uvloop Protocol",
    ),
    *map(_against, ["gevent", "asyncio streams", "Twisted", "socketserver, threads", "socketserver, forks"]),
    Figure(
        "p99",
        "99th percentile at half of full load, open loop, against a uvloop Protocol",
        1.0,
        "half-load",
        "p99 us",
        "forkd event",
        "uvloop Protocol",
    ),
    Figure(
        "memory-sync",
        "private dirty memory of a sync worker after 100,000 requests",
        1.2,
        "memory",
        "private dirty MB",
        "forkd sync",
        unit="MB",
    ),
    Figure("memory-event", "the same of an event worker", 2.5, "memory", "private dirty MB", "forkd event", unit="MB"),
    Figure(
        "idle-memory",
        "memory an idle connection, 10,000 in 2 event workers",
        2500,
        "idle-connections",
        "bytes a connection",
        "forkd event, 10,000 idle",
        unit="bytes",
    ),
    _cpu(
        "idle-beside",
        "CPU a request of 64 busy connections beside those, against without",
        1.1,
        "idle-connections",
        "forkd event, 10,000 idle",
        "forkd event, 0 idle",
    ),
    _cpu(
        "pool",
        "CPU a request, 64 sync workers against 4, 4 connections",
        1.15,
        "pool",
        "forkd sync, 64 workers",
        "forkd sync, 4 workers",
    ),
    Figure(
        "idle-workers",
        "wake-ups of all processes, 16 idle sync workers",
        1.5,
        "idle-workers",
        "wake-ups a second",
        "forkd sync",
        unit="a second",
    ),
    Figure(
        "first-answer",
        "from `forkd run` to the first answer, against `python -c 'import asyncio'`",
        2.5,
        "first-answer",
        "ms",
        "forkd sync",
        "python -c 'import asyncio'",
    ),
    Figure(
        "worker-start",
        "a worker's start, from order to ready, an application of 50 MB",
        10,
        "worker-start",
        "ms",
        "forkd sync, an application of 50 MB",
        unit="ms",
    ),
]


def find(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Of every figure whose trial was played."""
    for figure in FIGURES:
        if figure.trial in outcomes:
            yield _find(figure, outcomes[figure.trial])


def _find(figure: Figure, outcome: Outcome) -> Finding:
    values = outcome.values(figure.ours, figure.measure)
    if figure.theirs:
        values = ratios(values, outcome.values(figure.theirs, figure.measure))
    found = spread(values)
    if found is not None:
        return Finding(figure, found)
    parties = [figure.ours, figure.theirs] if figure.theirs else [figure.ours]
    reasons = [
        f"{each}: {reason}" for each in parties if (reason := outcome.absent.get(each) or outcome.failures.get(each))
    ]
    return Finding(figure, None, "; ".join(reasons) or "not measured")
