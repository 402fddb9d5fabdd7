"""What a scenario is, what it has to work with, and what it reports."""

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
REFUSALS = "TcpOutRsts"  # counts refused connections, too


@dataclass
class Report:
    """What a scenario has seen.

    `done` is what was done to the server, `figures` are measured, `broken` is what broke a promise; `share` is of the
    full counts.
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
        """A time measured again and again: told with its median and worst, and held against its limit."""
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
"""The kinds of worker, and what makes a service run on them."""


@dataclass
class Scene:
    """A scenario's own folder, chance and share of the full counts, and the loads that it has begun.

    `unfinished` is how many requests may have been begun without a reply, for the ledger.
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
        """This run's share of a full count."""
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
        """The settings of the ledger service, with more text behind them; `name` is a folder for one more server."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "forkd.toml").write_text(
            f'[master]\ncontrol = "{folder}/control.sock"\n[service.test]\napp = "{app or self.app}"\n'
            f'path = "{HANDLERS}"\nlisten = {listen}\nworkers = {workers}\n{KINDS[self.report.kind]}{text}'
        )

    @property
    def app(self) -> str:
        """The ledger service, as this kind of worker runs it."""
        return "ledger:answer_async" if self.report.kind == "async" else "ledger:answer"

    def begun(self, name: str = ".", *, program: list[str] | None = None) -> AbstractContextManager[Server]:
        """A server with the settings written, that has just been started."""
        return running(["forkd.toml"], self.folder / name, program=program)

    @contextmanager
    def serving(self, listeners: int = 1, *, name: str = ".", program: list[str] | None = None) -> Iterator[Server]:
        """A server with the settings written, that serves."""
        with self.begun(name, program=program) as server:
            try:
                yield server.serving(listeners)
            except Exception:
                print(*server.lines[-40:], sep="\n", file=sys.stderr)  # what it had to say of that
                raise

    def load(self, address: str, clients: int = 8, *, shape: str = "", most: int = 0) -> Load:
        """Begins a load, of the scenario's own shape unless told; `settle` ends it."""
        self.numbered += 1
        fates = self.fates / f"load{self.numbered}"
        seed = self.chance.randrange(10**6)
        load = Load(address, shape or self.report.shape, clients, seed, fates=fates, most=most)
        self.loads.append(load)
        return load

    def crowd(self, server: Server) -> None:
        """Two loads, from two processes; of pipelines half as many, or the ledger grows by a gigabyte."""
        for _ in range(2):
            self.load(server.addresses[0][1], 4 if self.report.shape == "pipelined" else 8)

    def settle(self, *forgiven: str, lost: int = 0) -> Tally:
        """Ends the loads and holds what they have seen against what was promised; `forgiven` losses are none."""
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
        """Ends the server; where the clients' `total` is all that it has served, its own accounts must be the same."""
        if total is not None:
            wanted = {"requests": total.counts["answered"], "in": total.sent, "out": total.received}
            try:
                # The last replies are counted after they have left.
                until(lambda: accounts(server) == wanted, limit=5)
            except AssertionError:
                self.report.expect(False, f"status counts {accounts(server)}, the clients {wanted}")
        self.report.expect(server.stop() == 0, "the server did not end well")
        server.gone()

    def audit(self) -> None:
        """Holds the ledger against what the clients know of each of their requests."""
        found = ledger.audit(self.ledger, self.fates)
        for what, count in (
            ("answered, but not run exactly once", found.miscounted),
            ("run twice", found.doubled),
        ):
            self.report.expect(not count, f"{count} requests {what}")
        self.report.expect(
            found.unfinished <= self.unfinished, f"{found.unfinished} requests begun and not answered, {found.examples}"
        )
        if self.unfinished:
            self.report.figures.append(f"{found.unfinished} requests begun and not answered")

    def abandon(self) -> None:
        """Ends what is left of the loads."""
        for load in self.loads:
            load.kill()

    def resets(self, before: dict[str, int], *, refusals: bool) -> None:
        """Nobody was reset since `before`, nor refused if that is told to be looked at."""
        after = tcp_counters()
        names = (*RESETS, REFUSALS) if refusals else RESETS
        found = {name: after[name] - before[name] for name in names if after[name] != before[name]}
        self.report.expect(not found, f"resets: {found}")


@dataclass(frozen=True)
class Scenario:
    """A fault, what is promised of it, and the play that shows it, in each of its shapes."""

    name: str
    fault: str
    promise: str
    play: Callable[[Scene], None]
    shapes: tuple[str, ...] = SHAPES


def accounts(server: Server) -> dict[str, Any]:
    """What `status` has counted, named as in `Scene.close`."""
    told = server.status("test")
    return {"requests": told["requests"], **told["bytes"]}


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds < 0.1 else 0}f} ms"
