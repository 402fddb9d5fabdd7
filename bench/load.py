"""Measures a server's cost per request, while a client sends as fast as it gets replies or at a set pace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from time import sleep

from bench import asking, processes
from bench.contenders import Contender
from bench.rounds import Measures
from bench.server import Server, serving

SHARES = (2, 10, 30, 60)
"""Of full load, in %: the trials at partial load."""

_WARM_UP = 200
"""Requests per connection before measuring, while Python specialises its bytecode and servers fork and allocate."""


@dataclass(frozen=True, slots=True)
class Load:
    """How the client sends requests."""

    connections: int = 64
    size: int = 64
    depth: int = 1
    a_connection: int = 0

    def options(self) -> list[str | float]:
        return ["-c", self.connections, "-s", self.size, "-d", self.depth, "-r", self.a_connection]


def load(contender: Contender, workers: int, how: Load, seconds: float) -> Measures:
    """Measures one run on a fresh server."""
    with serving(contender, workers) as server:
        warm_up(server, how)
        return measure(server, how, seconds)


def warm_up(server: Server, how: Load) -> None:
    asking.ask(server.port, *how.options(), "-n", _WARM_UP * how.connections)
    server.rest()


def measure(server: Server, how: Load, seconds: float, *more: str | float) -> Measures:
    """Returns the CPU time per request of all the server's processes, the rate and the latencies."""
    before = server.cpu_ns()
    said = asking.ask(server.port, *how.options(), "-t", seconds, *more)
    settle()
    spent = server.cpu_ns() - before
    return {
        "cpu us": spent / said["requests"] / 1000,
        "requests/s": said["requests"] / said["seconds"],
        "p50 us": said["p50"],
        "p99 us": said["p99"],
        "requests": said["requests"],
    }


def settle() -> None:
    """Lets the server notice the end of the client's connections, which is part of serving them."""
    sleep(0.05)


class PartialLoad:
    """The open loop at a share of full load, with a client that sleeps between requests, as most clients do.

    Full load is what the slowest of `those` can do when it is asked without a pause.
    """

    def __init__(self, those: Iterable[Contender], workers: int, how: Load, seconds: float) -> None:
        self.those = list(those)
        self.workers = workers
        self.how = how
        self.seconds = seconds
        self.full = 0.0

    def run(self, share: float, contender: Contender) -> Measures:
        self.full = self.full or self._find()
        with serving(contender, self.workers) as server:
            warm_up(server, self.how)
            # Enough connections for requests that come at random times.
            how = replace(self.how, connections=64) if self.how.a_connection else self.how
            before = processes.wakeups(server.family())
            found = measure(server, how, self.seconds, "-w", "-R", f"{share * self.full:.0f}")
            woken = processes.wakeups(server.family()) - before
            return {**found, "wake-ups": woken / found["requests"]}

    def _find(self) -> float:
        here = [each for each in self.those if not each.missing()]
        return min(load(each, self.workers, self.how, self.seconds)["requests/s"] for each in here)


class HalfLoad:
    """The open loop: every server gets the same pace, half of the full rate of the slower one of `pair`."""

    def __init__(self, pair: Iterable[Contender], how: Load, seconds: float) -> None:
        self.pair = list(pair)
        self.how = how
        self.seconds = seconds
        self.pace = 0.0

    def run(self, contender: Contender) -> Measures:
        pace = self.pace = self.pace or self.find()
        with serving(contender) as server:
            warm_up(server, self.how)
            return measure(server, self.how, self.seconds, "-R", f"{pace:.0f}")

    def find(self) -> float:
        here = [each for each in self.pair if not each.missing()]
        return min(load(each, 1, self.how, self.seconds)["requests/s"] for each in here) / 2


def keyvalue(contender: Contender, pipelined: int, seconds: float) -> Measures:
    """Measures redis-benchmark's SETs and GETs against the store of examples/keyvalue.py."""
    with serving(contender, request=b"PING\r\n", reply=b"+PONG\r\n") as server:
        asking.ask_redis(server.port, pipelined, 2000)
        server.rest()
        before = server.cpu_ns()
        said = asking.ask_redis(server.port, pipelined, int(40_000 * seconds * pipelined**0.5))
        settle()
        return {"cpu us": (server.cpu_ns() - before) / said["requests"] / 1000, **said}
