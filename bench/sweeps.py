"""How the cost grows: each sweep varies one thing, with `forkd load` as the client.

A sweep is a trial (`rounds`) whose entrants are the points of a few lines: a line for each kind of server, and a place
on the x axis.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from hdrh.histogram import HdrHistogram

from bench import contenders, processes
from bench.asking import Failure
from bench.contenders import ROOT, Contender
from bench.load import settle
from bench.peers.forkd_waits import MEAN
from bench.rounds import Entrant, Measures, Trial
from bench.server import Server, serving

_LIMIT: Final = 120.0
_PEERS: Final = contenders.PEERS
SYNC, EVENT = contenders.FORKD_SYNC, contenders.FORKD_EVENT
THREADS, ASYNC = contenders.FORKD_THREADS, contenders.FORKD_ASYNC
_KINDS: Final = {"sync": SYNC, "event": EVENT, "threads": THREADS, "async": ASYNC}
_SIZED: Final = {
    "sync": contenders.forkd("sync", f"{_PEERS}.forkd_sized:sized"),
    "event": contenders.forkd("event", f"{_PEERS}.forkd_sized:sized", "event"),
    "threads": contenders.forkd("threads", f"{_PEERS}.forkd_sized:sized", "event", threads=4),
    "async": contenders.forkd("async", f"{_PEERS}.forkd_sized:sized_async", "event"),
}
_WAITS: Final = contenders.forkd("sync", f"{_PEERS}.forkd_waits:waits")
_HELLO: Final = b"hello"

WORKERS: Final = (1, 4, 16, 64, 256)
CONNECTIONS: Final = (1, 4, 16, 64, 256, 1024, 4096)
SIZES: Final = (1, 64, 1024, 16384, 262_144, 1_048_576)
SHARES: Final = (0.1, 0.25, 0.5, 0.75, 0.9)
PER_CONNECTION: Final = (1, 2, 5, 20, 100)
LOADS: Final = (0.3, 0.5, 0.7, 0.8, 0.9)
POOLS: Final = (2, 8)


@dataclass(frozen=True, slots=True)
class Asked:
    """How `forkd load` sends requests: connections, the size of a request in bytes, and other options."""

    connections: int
    size: int = 64
    framing: str = "lines"
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sweep:
    """A trial, and where its entrants are: on which line, and at which place on the x axis."""

    trial: Trial
    axis: str
    places: dict[str, tuple[str, float]]


@dataclass(slots=True)
class _Points:
    """The entrants of a sweep, while they are added."""

    entrants: list[Entrant] = field(default_factory=list)
    places: dict[str, tuple[str, float]] = field(default_factory=dict)

    def add(self, line: str, place: float, run: Callable[[], Measures], missing: Callable[[], str]) -> None:
        name = f"{line}, {place:g}"
        self.entrants.append(Entrant(name, run, missing))
        self.places[name] = line, place

    def sweep(self, name: str, title: str, axis: str) -> Sweep:
        return Sweep(Trial(name, title, self.entrants), axis, self.places)


def all_sweeps(seconds: float) -> list[Sweep]:
    """Returns all sweeps; `seconds` is how long a client sends requests in one run."""
    return [
        _workers(seconds),
        _connections(seconds),
        _sizes(seconds),
        _rates(seconds),
        _per_connection(seconds),
        _waiting(25 * seconds),
    ]


def _workers(seconds: float) -> Sweep:
    points = _Points()
    for count in WORKERS:
        for name, contender, connections in (("sync", SYNC, min(4, count)), ("event", EVENT, 64)):
            points.add(name, count, partial(cost, contender, count, Asked(connections), seconds), contender.missing)
    return points.sweep("workers", "workers in the pool, with 4 busy connections (sync) or 64 (event)", "workers")


def _connections(seconds: float) -> Sweep:
    points = _Points()
    for count in CONNECTIONS:
        for name, contender in _KINDS.items():
            workers = count if contender is SYNC else 1
            if workers <= max(WORKERS):
                points.add(name, count, partial(cost, contender, workers, Asked(count), seconds), contender.missing)
    return points.sweep(
        "connections", "busy connections, with 1 worker, or one worker for each connection (sync)", "connections"
    )


def _sizes(seconds: float) -> Sweep:
    points = _Points()
    for size in SIZES:
        for name, contender in _SIZED.items():
            asked = Asked(4, size, "length:4")
            workers = 4 if name == "sync" else 1
            points.add(name, size, partial(cost, contender, workers, asked, seconds), contender.missing)
    return points.sweep("size", "bytes in a request and in its reply, on 4 connections", "bytes")


def _rates(seconds: float) -> Sweep:
    points = _Points()
    for name, contender in _KINDS.items():
        workers, asked = (4, Asked(4)) if contender is SYNC else (1, Asked(64))
        full = _Full(contender, workers, asked, seconds)
        for share in SHARES:
            points.add(name, 100 * share, partial(full.at, share), contender.missing)
    return points.sweep("rate", "requests at random moments, as a percentage of the highest rate", "per cent")


def _per_connection(seconds: float) -> Sweep:
    points = _Points()
    for count in PER_CONNECTION:
        for name, contender in _KINDS.items():
            asked = Asked(4, more=("--per-connection", str(count)))
            workers = 4 if contender is SYNC else 1
            points.add(name, count, partial(cost, contender, workers, asked, seconds), contender.missing)
    return points.sweep("per-connection", "requests on each connection, from 4 clients", "requests")


def _waiting(seconds: float) -> Sweep:
    points = _Points()
    for workers in POOLS:
        for load in LOADS:
            run = partial(waiting, workers, load, seconds)
            points.add(f"{workers} workers", 100 * load, run, _WAITS.missing)
    title = "a connection a request at random moments, and a handler that takes 10 ms on average"
    return points.sweep("waiting", title, "per cent of the time that a worker is busy")


def cost(contender: Contender, workers: int, asked: Asked, seconds: float) -> Measures:
    """Measures one run on a fresh server: the CPU time of all its processes per request, and the latency."""
    request = b"\0\0\0\5first" if asked.framing == "length:4" else b"first\n"
    with serving(contender, workers, request=request, reply=request) as server:
        ask(server, asked, "--duration", str(seconds / 2))
        server.rest()
        return measured(server, asked, "--duration", str(seconds))


def measured(server: Server, asked: Asked, *options: str) -> dict[str, float]:
    before = server.cpu_ns()
    said = ask(server, asked, *options)
    settle()
    spent = server.cpu_ns() - before
    return {
        "cpu us": spent / said["requests"] / 1000,
        "requests/s": said["rate"],
        "p50 us": said["latency"]["p50"] * 1e6,
        "p99 us": said["latency"]["p99"] * 1e6,
        "mean us": _mean(said) / 1000,
        "requests": said["requests"],
    }


class _Full:
    """Finds a server's full rate once, then measures it at shares of that rate."""

    def __init__(self, contender: Contender, workers: int, asked: Asked, seconds: float) -> None:
        self._run = contender, workers, asked, seconds
        self._rate = 0.0

    def at(self, share: float) -> Measures:
        contender, workers, asked, seconds = self._run
        self._rate = self._rate or cost(contender, workers, asked, seconds)["requests/s"]
        with serving(contender, workers) as server:
            ask(server, asked, "--duration", str(seconds / 2))
            server.rest()
            return measured(server, asked, "--duration", str(seconds), "--poisson", "--rate", f"{self._rate * share:f}")


def waiting(workers: int, load: float, seconds: float) -> Measures:
    """Measures independent clients, each with its own connection, on a pool that is busy a share `load` of its time."""
    rate = workers * load / MEAN
    asked = Asked(400, more=("--per-connection", "1", "--poisson", "--rate", f"{rate:f}"))
    with serving(_WAITS, workers) as server:
        return measured(server, asked, "--duration", str(seconds), "--warmup", "1")


def ask(server: Server, asked: Asked, *options: str) -> dict[str, Any]:
    """Runs `forkd load` once on the clients' core, and returns its report; Failure if any request failed."""
    address = f"127.0.0.1:{server.port}"
    with tempfile.NamedTemporaryFile(dir=server.folder) as requests:
        requests.write((_HELLO * (asked.size // len(_HELLO) + 1))[: asked.size] + b"\n")
        requests.flush()
        command = [sys.executable, "-m", "forkd", "load", address, "--json", "-", "--expect", "echo"]
        command += ["--connections", str(asked.connections), "--framing", asked.framing]
        command += ["--requests-from", requests.name, *asked.more, *options]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
            cwd=ROOT,
            env=contenders.environment(),
            preexec_fn=processes.on_core(processes.CLIENTS),
        )
    if done.returncode:
        raise Failure(done.stderr.strip())
    said: dict[str, Any] = json.loads(done.stdout)
    failed = {name: count for name, count in said["failures"].items() if count}
    if failed or not said["requests"]:
        raise Failure(f"failures in {said['requests']} requests: {failed}")
    return said


def _mean(said: dict[str, Any]) -> float:
    """Returns the mean time of a request in nanoseconds."""
    mean: float = HdrHistogram.decode(said["histograms"]["latency"]).get_mean_value()
    return mean


def names(sweeps: Iterable[Sweep]) -> list[str]:
    return [each.trial.name for each in sweeps]
