"""Faults under load: `python -m tests.chaos [--share S] [--seed N] [--kind K] [--shape X] [SCENARIO ...]`.

Each scenario runs in a network namespace of its own, so that its TCP counters start at zero, and prints one row of a
table. This needs root. The exit status is 1 if any scenario broke its promise. `--share 0.1` runs a tenth of the
counts. The seed is printed; with the same `--seed` the same faults come in the same order. With `--rows FILE` an
interrupted run continues with its seed, and skips the scenarios whose results FILE already has.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

from tests.chaos import accounts, changes, deaths, kernel, page
from tests.chaos.harness import KINDS, SHAPES, Report, Scenario, Scene
from tests.server import ROOT

SCENARIOS = {
    each.name: each for each in [*changes.SCENARIOS, *deaths.SCENARIOS, *kernel.SCENARIOS, *accounts.SCENARIOS]
}


def play(scenario: Scenario, kind: str, shape: str, share: float, seed: int) -> Report:
    """Runs one scenario in this process's network namespace."""
    report = Report(scenario.name, shape, kind, share)
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), random.Random(f"{seed} {scenario.name} {shape}"), share, report)
        try:
            scenario.play(scene)
            scene.audit()
        except Exception as error:  # a server that stops answering can fail in many ways
            report.broken.append(f"{type(error).__name__}: {error}")
        finally:
            scene.abandon()
    return report


# Loopback handles a packet on the processor that sent it, so packets of one connection may overtake each other. On a
# network card that keeps flows apart they cannot. RPS (Linux, Documentation/networking/scaling.rst) prevents it here.
_NETWORK = (
    "ip link set lo up && mount -t sysfs none /sys && echo {every_cpu:x} > /sys/class/net/lo/queues/rx-0/rps_cpus"
    ' && umount /sys && exec "$@"'
)


def play_apart(scenario: Scenario, kind: str, shape: str, share: float, seed: int) -> Report:
    """Runs one scenario in a network namespace of its own."""
    inside = [sys.executable, "-m", "tests.chaos", "--here", "--kind", kind, "--shape", shape]
    network = _NETWORK.format(every_cpu=(1 << (os.cpu_count() or 1)) - 1)
    command = ["unshare", "--net", "--mount", "sh", "-c", network, "sh", *inside]
    done = subprocess.run(
        [*command, "--share", str(share), "--seed", str(seed), scenario.name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        return Report(scenario.name, shape, kind, share, broken=["the scenario could not be run"])
    return read(json.loads(done.stdout.splitlines()[-1]))


class Rows:
    """The results of a run so far, and its seed; kept in a file of JSON lines if one is given."""

    def __init__(self, file: Path | None, seed: int) -> None:
        self.seed = seed
        self.days = [date.today()]
        self._file = file
        self._reports: list[Report] = []
        if file is None:
            return
        if not file.exists():
            file.write_text(json.dumps({"seed": seed, "began": str(self.days[0])}) + "\n")
        head, *lines = map(json.loads, file.read_text().splitlines())
        self.seed = head["seed"]
        self.days = [date.fromisoformat(head["began"]), *self.days]
        self._reports = [read(each) for each in lines]

    def find(self, scenario: str, kind: str, shape: str) -> Report | None:
        wanted = (scenario, kind, shape)
        return next((each for each in self._reports if (each.scenario, each.kind, each.shape) == wanted), None)

    def keep(self, report: Report) -> None:
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(vars(report)) + "\n")


def read(told: dict[str, Any]) -> Report:
    """Returns a report from its JSON object."""
    return Report(**told | {"counts": Counter(told["counts"])})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--shape", choices=SHAPES, action="append", help="how clients send requests (default: all)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="the kind of worker (default: all)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of results to FILE")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="keep results in FILE, and continue from it")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    told = parser.parse_args()
    if told.here:
        print(json.dumps(vars(play(SCENARIOS[told.scenarios[0]], told.kind[0], told.shape[0], told.share, told.seed))))
        return 0
    seen = Rows(told.rows, told.seed)
    print(f"seed {seen.seed}, share {told.share:g}\n\n{page.HEAD}", flush=True)
    reports = []
    for name, kind in product(told.scenarios or SCENARIOS, told.kind or KINDS):
        for shape in SCENARIOS[name].shapes:
            if not told.shape or shape in told.shape:
                report = seen.find(name, kind, shape)
                if report is None:
                    report = play_apart(SCENARIOS[name], kind, shape, told.share, seen.seed)
                    seen.keep(report)
                reports.append(report)
                print(page.row(report), flush=True)
    if told.page:
        told.page.write_text(page.whole(SCENARIOS, reports, seen.seed, seen.days))
    return 1 if any(each.broken for each in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
