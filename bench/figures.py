"""The promises about the measurements: each figure's bound, and whether it was kept.

A figure is one measure of one entrant, or its ratio to another's, round by round. Its median must not exceed the
bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from bench.arithmetic import Spread, ratios, spread
from bench.contenders import BARE, MEASURED
from bench.load import SHARES
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
    """A figure's outcome; if there is none, `reason` says why."""

    figure: Figure
    spread: Spread | None
    reason: str = ""

    @property
    def kept(self) -> bool | None:
        return None if self.spread is None else self.spread.median <= self.figure.bound


_SYNC, _EVENT, _C_PREFORK, _C_EPOLL, _UVLOOP = "forkd sync", "forkd event", "C prefork", "C epoll", "uvloop Protocol"
_OTHERS = ["gevent", "asyncio streams", "Twisted", "socketserver, threads", "socketserver, forks"]
_MANY, _NONE = "forkd event, 10,000 idle", "forkd event, 0 idle"
_PYTHON = "python -c 'import asyncio'"


def _cpu(name: str, of: str, bound: float, trial: str, ours: str, theirs: str) -> Figure:
    return Figure(name, f"{of}: CPU a request, against {theirs}", bound, trial, "cpu us", ours, theirs)


def _named(other: str) -> str:
    return "event-" + other.lower().replace(",", "").replace(" ", "-")


FIGURES = [
    _cpu("sync-64", "sync, 64 bytes", 1.2, "sync-64", _SYNC, _C_PREFORK),
    _cpu("sync-16k", "sync, 16 KiB", 1.2, "sync-16k", _SYNC, _C_PREFORK),
    _cpu("sync-single", "sync, a connection a request", 1.6, "sync-single", _SYNC, _C_PREFORK),
    _cpu("event-c", "event, 64 connections", 1.25, "event-64", _EVENT, _C_EPOLL),
    _cpu("event-uvloop", "event, 64 connections", 1.0, "event-64", _EVENT, _UVLOOP),
    _cpu("event-pipelined", "event, 16 requests in one write", 1.0, "event-pipelined", _EVENT, _UVLOOP),
    *(_cpu(_named(other), "event, 64 connections", 0.5, "event-64", _EVENT, other) for other in _OTHERS),
    *(_cpu(f"kept-{at}", f"sync, {at} % of full load", 1.3, f"kept-{at}", _SYNC, _C_PREFORK) for at in SHARES),
    *(
        _cpu(f"single-{at}", f"sync, a connection a request, {at} %", bound, f"single-{at}", _SYNC, _C_PREFORK)
        for at, bound in zip(SHARES, (2.3, 2.3, 1.8, 1.8), strict=True)
    ),
    *(_cpu(f"events-{at}-c", f"event, {at} % of full load", 1.3, f"events-{at}", _EVENT, _C_EPOLL) for at in SHARES),
    *(_cpu(f"events-{at}", f"event, {at} % of full load", 1.0, f"events-{at}", _EVENT, _UVLOOP) for at in SHARES),
    Figure(
        "p99",
        f"event, half of full load: 99th percentile, against {_UVLOOP}",
        1.0,
        "half-load",
        "p99 us",
        _EVENT,
        _UVLOOP,
    ),
    Figure(
        "memory-sync",
        "sync: private dirty memory of a worker after 100,000 requests",
        1.2,
        "memory",
        "private dirty MB",
        _SYNC,
        unit="MB",
    ),
    Figure(
        "memory-event",
        "event: private dirty memory of a worker after 100,000 requests",
        2.5,
        "memory",
        "private dirty MB",
        _EVENT,
        unit="MB",
    ),
    Figure(
        "idle-memory",
        "event, 10,000 idle connections in 2 workers: memory of each",
        2500,
        "idle-connections",
        "bytes a connection",
        _MANY,
        unit="bytes",
    ),
    _cpu("idle-beside", "event, 64 busy connections beside 10,000 idle", 1.1, "idle-connections", _MANY, _NONE),
    _cpu(
        "pool",
        "sync, 4 busy connections to 64 workers",
        1.15,
        "pool",
        "forkd sync, 64 workers",
        "forkd sync, 4 workers",
    ),
    Figure(
        "idle-workers",
        "sync, 16 idle workers: wake-ups of all processes",
        1.5,
        "idle-workers",
        "wake-ups a second",
        _SYNC,
        unit="a second",
    ),
    Figure(
        "first-answer",
        f"from `forkd run` to the first answer, against `{_PYTHON}`",
        2.5,
        "first-answer",
        "ms",
        _SYNC,
        _PYTHON,
    ),
    Figure(
        "worker-start",
        "a worker of an application of 50 MB: from the order until it is ready",
        10,
        "worker-start",
        "ms",
        "forkd sync, an application of 50 MB",
        unit="ms",
    ),
]


@dataclass(frozen=True, slots=True)
class Reach:
    """A figure's value with servers that do less in forkd's place: medians; None if not measured."""

    finding: Finding
    measured: float | None
    bare: float | None
    c: float | None


def reaches(findings: Iterable[Finding], outcomes: Mapping[str, Outcome]) -> Iterator[Reach]:
    """Yields the reach of each figure whose trial includes such servers."""
    for finding in findings:
        figure, outcome = finding.figure, outcomes[finding.figure.trial]
        if BARE in outcome.rounds:
            c = _C_PREFORK if _C_PREFORK in outcome.rounds else _C_EPOLL
            yield Reach(finding, *(_median(figure, outcome, each) for each in (MEASURED, BARE, c)))


def _median(figure: Figure, outcome: Outcome, who: str) -> float | None:
    found = _find(replace(figure, ours=who), outcome).spread
    return None if found is None else found.median


def find(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Yields the finding of every figure whose trial was played."""
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
