"""Scenarios, the tools that they use, and their reports."""

from __future__ import annotations

import os
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import ledger
from tests.load import Load, Tally, tcp_counters
from tests.server import HANDLERS, Server, running, until

SHAPES = ("single", "persistent", "pipelined")
RESETS = ("TcpEstabResets", "TcpExtTCPAbortOnData", "TcpExtTCPAbortOnClose", "TcpExtTCPAbortOnLinger")
REFUSALS = "TcpOutRsts"  # counts refused connections as well


@dataclass
class Report:
    """The result of a scenario.

    `done` says what was done to the server, `figures` what was measured, `broken` which promises were broken. `share`
    is the fraction of the full counts.
    """

    scenario: str
    shape: str
    kind: str = "sync"
    share: float = 1.0
    done: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    figures: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def expect(self, right: bool, what: str) -> None:
        if not right:
            self.broken.append(what)

    def took(self, what: str, seconds: Sequence[float], limit: float, *, quantile: float = 1.0) -> None:
        """Reports the median and worst of repeated times in seconds, and expects the worst to be within `limit`."""
        ordered = sorted(seconds)
        worst = ordered[max(0, round(quantile * len(ordered)) - 1)]
        label = "worst" if quantile == 1 else f"p{quantile * 100:g}"
        self.figures.append(f"{what}: median {milliseconds(statistics.median(ordered))}, {label} {milliseconds(worst)}")
        self.expect(worst <= limit, f"{what}: {label} {milliseconds(worst)}, more than {milliseconds(limit)}")


KINDS = {
    "sync": "",
    "event": 'worker = "event"\n',
    "threads": 'worker = "event"\nthreads = 2\n',
    "async": 'worker = "event"\n',
}
"""The kinds of worker, each with the settings that select it."""


@dataclass
class Scene:
    """A scenario's own folder, random numbers and share of the full counts, and the loads that it has begun.

    `unfinished` is how many requests the ledger may show as begun but not answered.
    """

    folder: Path
    chance: random.Random
    share: float
    report: Report
    unfinished: int = 0
    loads: list[Load] = field(default_factory=list)
    numbered: int = 0

    def __post_init__(self) -> None:
        self.fates = self.folder / "fates"
        self.fates.mkdir()
        self.ledger = self.folder / "ledger"
        self.ledger.touch()
        os.environ["LEDGER"] = str(self.ledger)

    def times(self, full: int, least: int = 2) -> int:
        """Returns this run's share of a full count, but no less than `least`."""
        return max(least, round(full * self.share))

    def write(
        self,
        text: str = "",
        *,
        app: str = "",
        workers: str = "16",
        listen: str = '"127.0.0.1:0"',
        name: str = ".",
    ) -> None:
        """Writes the settings of the ledger service, followed by `text`; `name` is a folder for another server."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "forkd.toml").write_text(
            f'[master]\ncontrol = "{folder}/control.sock"\n[service.test]\napp = "{app or self.app}"\n'
            f'path = "{HANDLERS}"\nlisten = {listen}\nworkers = {workers}\n{KINDS[self.report.kind]}{text}'
        )

    @property
    def app(self) -> str:
        """The variant of the ledger service that this kind of worker runs."""
        return "ledger:answer_async" if self.report.kind == "async" else "ledger:answer"

    def begun(self, name: str = ".", *, program: list[str] | None = None) -> AbstractContextManager[Server]:
        """Starts a server with the settings written; does not wait until it serves."""
        return running(["forkd.toml"], self.folder / name, program=program)

    @contextmanager
    def serving(self, listeners: int = 1, *, name: str = ".", program: list[str] | None = None) -> Iterator[Server]:
        """Starts a server with the settings written, and waits until it serves."""
        with self.begun(name, program=program) as server:
            try:
                yield server.serving(listeners)
            except Exception:
                print(*server.lines[-40:], sep="\n", file=sys.stderr)  # what it logged before the failure
                raise

    def load(self, address: str, clients: int = 8, *, shape: str = "", most: int = 0) -> Load:
        """Begins a load, by default in the scenario's shape; `settle` ends it."""
        self.numbered += 1
        fates = self.fates / f"load{self.numbered}"
        seed = self.chance.randrange(10**6)
        load = Load(address, shape or self.report.shape, clients, seed, fates=fates, most=most)
        self.loads.append(load)
        return load

    def crowd(self, server: Server) -> None:
        """Begins two loads in two processes; with pipelines half as many clients, or the ledger grows by a gigabyte."""
        for _ in range(2):
            self.load(server.addresses[0][1], 4 if self.report.shape == "pipelined" else 8)

    def settle(self, *forgiven: str, lost: int = 0) -> Tally:
        """Ends the loads; expects at most `lost` losses, `forgiven` kinds aside; returns the sum of the tallies."""
        total = Tally()
        for load in self.loads:
            total.add(load.finish())
        self.loads.clear()
        self.report.counts += total.counts
        lost_now = total.losses(*forgiven)
        self.report.expect(sum(lost_now.values()) <= lost, f"lost: {lost_now}")
        self.report.expect(total.counts["answered"] > 0, "nothing was answered")
        return total

    def close(self, server: Server, total: Tally | None = None) -> None:
        """Ends the server; if `total` is all that it has served, its own counts must match."""
        if total is not None:
            wanted = {"requests": total.counts["answered"], "in": total.sent, "out": total.received}
            try:
                # The last replies are counted only after they were sent.
                until(lambda: accounts(server) == wanted, limit=5)
            except AssertionError:
                self.report.expect(False, f"status counts {accounts(server)}, the clients {wanted}")
        self.report.expect(server.stop() == 0, "the server did not exit with status 0")
        server.gone()

    def audit(self) -> None:
        """Compares the ledger with what the clients know of each of their requests."""
        found = ledger.audit(self.ledger, self.fates)
        for what, count in (
            ("answered, but not run exactly once", found.miscounted),
            ("run twice", found.doubled),
        ):
            self.report.expect(not count, f"{count} requests {what}")
        self.report.expect(
            found.unfinished <= self.unfinished, f"{found.unfinished} requests begun and not answered: {found.examples}"
        )
        if self.unfinished:
            self.report.figures.append(f"{found.unfinished} requests begun and not answered")

    def abandon(self) -> None:
        """Kills the loads that are left."""
        for load in self.loads:
            load.kill()

    def resets(self, before: dict[str, int], *, refusals: bool) -> None:
        """Expects no connection to have been reset since `before`; with `refusals`, none to have been refused."""
        after = tcp_counters()
        names = (*RESETS, REFUSALS) if refusals else RESETS
        found = {name: after[name] - before[name] for name in names if after[name] != before[name]}
        self.report.expect(not found, f"resets: {found}")


@dataclass(frozen=True)
class Scenario:
    """A fault, what is promised about it, and the function that plays it, in each of its shapes."""

    name: str
    fault: str
    promise: str
    play: Callable[[Scene], None]
    shapes: tuple[str, ...] = SHAPES


def accounts(server: Server) -> dict[str, Any]:
    """Returns the counts of `status`, named as in `Scene.close`."""
    told = server.status("test")
    return {"requests": told["requests"], **told["bytes"]}


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds < 0.1 else 0}f} ms"
