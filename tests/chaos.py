"""Faults under load, each reply checked: `python -m tests.chaos [--share S] [--seed N] [--shape X] [SCENARIO ...]`.

Each scenario runs in a network namespace of its own (root needed), so that its TCP counters start
clean, and prints one row of a table; the exit status is 1 if any broke its promise. `--share 0.1` does a tenth
of the counts. The seed is printed, and given back with `--seed` the same faults come in the same order.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from forkd.errors import ControlError
from tests.load import Load, losses, tcp_counters
from tests.server import HANDLERS, ROOT, Server, alive, running, until

SHAPES = ("single", "persistent", "pipelined")
RESETS = ("TcpEstabResets", "TcpExtTCPAbortOnData", "TcpExtTCPAbortOnClose", "TcpExtTCPAbortOnLinger")


@dataclass
class Report:
    """What a scenario has seen: how many requests ended how, and what broke a promise."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    note: str = ""

    def expect(self, right: bool, what: str) -> None:
        if not right:
            self.broken.append(what)


@dataclass
class Scene:
    """A scenario's own folder, chance and share of the full counts."""

    folder: Path
    chance: random.Random
    share: float
    report: Report

    def times(self, full: int) -> range:
        return range(max(2, round(full * self.share)))

    def write(self, text: str = "", *, workers: str = "16", listen: str = '"127.0.0.1:0"') -> None:
        """The settings of the ledger service, with more text behind them."""
        (self.folder / "forkd.toml").write_text(
            f'[master]\ncontrol = "{self.folder}/control.sock"\n[service.test]\napp = "ledger:answer"\n'
            f'path = "{HANDLERS}"\nlisten = {listen}\nworkers = {workers}\n{text}'
        )

    def finish(self, loads: list[Load], server: Server, *, lost: int = 0, refused_too: bool = False) -> None:
        """Ends the loads and the server, and holds both against what was promised."""
        counts = Counter[str]()
        for load in loads:
            counts += load.finish()
        self.report.counts += counts
        lost_now = losses(counts)
        if refused_too:
            lost_now.pop("refused", None)
        self.report.expect(sum(lost_now.values()) <= lost, f"lost: {lost_now}")
        self.report.expect(counts["answered"] > 0, "nothing was answered")
        if server.exited_already() is None:
            seen = server.status("test")["requests"]
            if not lost:
                self.report.expect(seen == counts["answered"], f"status counts {seen} requests")
            self.report.expect(server.stop() == 0, "the server did not end well")
        server.gone()


def reload(scene: Scene, shape: str) -> None:
    """Reloads under load: nobody is refused, cut or reset."""
    scene.write()
    with running(["forkd.toml"], scene.folder) as server:
        address = server.serving().addresses[0][1]
        before = tcp_counters()
        loads = [Load(address, shape, 8, seed) for seed in (1, 2)]
        for _ in scene.times(200):
            server.ask(command="reload")
        scene.finish(loads, server)
        resets = {name: count for name in (*RESETS, "TcpOutRsts") if (count := tcp_counters()[name] - before[name])}
        scene.report.expect(not resets, f"resets: {resets}")


def broken_reload(scene: Scene, shape: str) -> None:
    """Every second reload is broken, in one of several ways; the caller is told, and nobody else notices."""
    (scene.folder / "broken.py").write_text("import nothing_of_this_name\n")
    (scene.folder / "hangs.py").write_text("import time\ntime.sleep(60)\n")
    (scene.folder / "bootless.py").write_text(
        "import forkd\n@forkd.service(forkd.Lines())\ndef answer(r): return r\n"
        "@answer.lifespan\ndef life():\n    raise ValueError('no')\n    yield\n"
    )
    other = f'[service.other]\npath = "{scene.folder}"\nlisten = "127.0.0.1:0"\n'
    breaks = [
        "this is no TOML",
        "idle_timeout = -1",
        'wrokers = "many"',
        other + 'app = "broken:answer"',
        other + 'app = "absent:answer"',
        other + 'app = "bootless:answer"',
        other + 'app = "hangs:answer"\nboot_timeout = 0.2',
        '[service.other]\napp = "ledger:answer"\nlisten = "192.0.2.1:7000"',
        '[service.other]\napp = "ledger:answer"\nlisten = "unix:/nowhere/at/all"',
        '[service.other]\napp = "ledger:answer"\nlisten = "127.0.0.1:0"\nuser = "nobody-of-this-name"',
    ]
    scene.write()
    with running(["forkd.toml"], scene.folder) as server:
        address = server.serving().addresses[0][1]
        loads = [Load(address, shape, 8)]
        for number in scene.times(100):
            scene.write(scene.chance.choice(breaks) if number % 2 else "")
            try:
                server.ask(command="reload")
                told = False
            except ControlError:
                told = True
            scene.report.expect(told == bool(number % 2), f"reload {number} was answered wrongly")
        scene.finish(loads, server)


def stop(scene: Scene, shape: str) -> None:
    """Stops under 64 clients: every established one is answered, none is reset."""
    scene.write()
    took = []
    for _ in scene.times(50):
        before = tcp_counters()
        with running(["forkd.toml"], scene.folder) as server:
            address = server.serving().addresses[0][1]
            loads = [Load(address, shape, 32, seed) for seed in (1, 2)]
            until(lambda server=server: server.status("test")["requests"] > 200)
            began = time.monotonic()
            scene.report.expect(server.stop() == 0, "the server did not end well")
            took.append(time.monotonic() - began)
            scene.finish(loads, server, refused_too=True)
        resets = {name: count for name in RESETS if (count := tcp_counters()[name] - before[name])}
        scene.report.expect(not resets, f"resets: {resets}")
    scene.report.note = f"stop in {sorted(took)[len(took) // 2]:.2f} s, at most {max(took):.2f} s"


def kill_workers(scene: Scene, shape: str) -> None:
    """A worker is killed every 50 ms: each costs one request at most."""
    scene.write()
    with running(["forkd.toml"], scene.folder) as server:
        address = server.serving().addresses[0][1]
        loads = [Load(address, shape, 8)]
        kills = scene.times(300)
        pace = threading.Event()
        for _ in kills:
            workers = until(lambda: server.workers())
            os.kill(scene.chance.choice(workers), signal.SIGKILL)
            pace.wait(0.05)  # the fault's own rate, not a wait for something
        scene.finish(loads, server, lost=len(kills) * (50 if shape == "pipelined" else 1))


def kill_fork_servers(scene: Scene, shape: str) -> None:
    """The fork server is killed: its workers go on, a new generation follows."""
    scene.write()
    with running(["forkd.toml"], scene.folder) as server:
        address = server.serving().addresses[0][1]
        loads = [Load(address, shape, 8)]
        for number in scene.times(50):
            [pid] = until(lambda: server.titled(r"forkd: test: fork server, .*"))
            os.kill(pid, signal.SIGKILL)
            until(lambda number=number: server.status("test")["generation"] >= number + 2, "the next generation")
            until(lambda: len(server.titled(r"forkd: test: fork server, .*")) == 1)
        scene.finish(loads, server)


def scale(scene: Scene, shape: str) -> None:
    """The pool is scaled from one worker to sixteen and back."""
    scene.write()
    with running(["forkd.toml"], scene.folder) as server:
        address = server.serving().addresses[0][1]
        loads = [Load(address, shape, 1)]
        for number in scene.times(50):
            size = 16 if number % 2 else 1
            server.ask(command="scale", service="test", size=size)
            until(lambda size=size: server.status("test")["workers"]["total"] == size, f"{size} workers")
        scene.finish(loads, server)


def kill_masters(scene: Scene, shape: str) -> None:
    """The master is killed under load: everybody goes, and a new one serves at once on the same address.

    Those in its accept queue are reset, for the address has to be free at once; no answer is wrong.
    """
    scene.write()
    with running(["forkd.toml"], scene.folder) as first:
        address = first.serving().addresses[0][1]
        first.stop()
    for _ in scene.times(50):
        scene.write(listen=f'"{address}"')
        with running(["forkd.toml"], scene.folder) as server:
            server.serving()
            load = Load(address, shape, 8)
            pids = server.family()
            os.kill(server.pid, signal.SIGKILL)
            until(lambda pids=pids: not any(alive(pid) for pid in pids), "everybody gone", 5)
            counts = load.finish()
            scene.report.counts += counts
            scene.report.expect(not counts["wrong"] + counts["timed out"], f"wrong or unanswered: {counts}")
            server.gone()


SCENARIOS: dict[str, Callable[[Scene, str], None]] = {
    "reload": reload,
    "broken-reload": broken_reload,
    "stop": stop,
    "kill-workers": kill_workers,
    "kill-fork-servers": kill_fork_servers,
    "scale": scale,
    "kill-masters": kill_masters,
}


def play(name: str, shape: str, share: float, seed: int) -> bool:
    """Runs one scenario in this process's namespace and prints its row."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), random.Random(f"{seed} {name} {shape}"), share, report)
        try:
            SCENARIOS[name](scene, shape)
        except AssertionError as error:
            report.broken.append(str(error))
    counts = ", ".join(f"{count} {what}" for what, count in sorted(report.counts.items()))
    verdict = "kept" if not report.broken else "BROKEN: " + "; ".join(report.broken[:5])
    print(f"| {name} | {shape} | {counts} | {report.note} | {verdict} |", flush=True)
    return not report.broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--shape", choices=SHAPES, action="append", help="how clients ask; all, unless told")
    parser.add_argument("--here", metavar="SHAPE", help=argparse.SUPPRESS)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    told = parser.parse_args()
    if told.here:
        return 0 if all(play(name, told.here, told.share, told.seed) for name in told.scenarios) else 1
    print(f"seed {told.seed}, share {told.share:g}\n")
    print("| fault | shape | requests | | promise |\n| --- | --- | --- | --- | --- |", flush=True)
    good = True
    for name in told.scenarios or SCENARIOS:
        for shape in told.shape or SHAPES:
            inside = [sys.executable, "-m", "tests.chaos", "--here", shape, "--share", str(told.share)]
            inside += ["--seed", str(told.seed), name]
            command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *inside]
            good &= subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
