"""What the kernel refuses: accept(2) fails, or a process has no descriptors left."""

from __future__ import annotations

import resource
import statistics
import threading
import time
from pathlib import Path

from tests.chaos import probe
from tests.chaos.harness import Scenario, Scene
from tests.server import FORKD, Server, until

# accept(2), "Error handling": these concern one connection, not the listener.
PASSING = [
    "ECONNABORTED",
    "EPROTO",
    "ENETDOWN",
    "ENOPROTOOPT",
    "EHOSTDOWN",
    "ENONET",
    "EHOSTUNREACH",
    "EOPNOTSUPP",
    "ENETUNREACH",
    "EPERM",
    "ETIMEDOUT",
    "EINTR",
]
CLEAN_RATE = 0.9  # the share of the clean rate that must be left


def accept_errors(scene: Scene) -> None:
    """Every 7th accept4(2) fails: no request is lost, no worker dies, and the rate falls by less than a tenth."""
    chosen = scene.chance.sample(PASSING, scene.times(len(PASSING)))
    pairs = scene.times(7, least=3)
    seconds = max(0.3, scene.share)
    ratios = []
    scene.write(workers="4", name="clean")
    with scene.serving(name="clean", program=_traced(scene.folder / "clean.trace")) as clean:
        for error in chosen:
            scene.write(workers="4", name=error)
            trace = scene.folder / f"{error}.trace"
            inject = f"inject=accept4:error={error}:when=7+7"
            with scene.serving(name=error, program=_traced(trace, "-e", inject)) as failing:
                workers = failing.workers()
                rates = [(_rate(scene, failing, seconds), _rate(scene, clean, seconds)) for _ in range(pairs)]
                ratios.append(statistics.median(one for one, _ in rates) / statistics.median(one for _, one in rates))
                scene.report.expect(failing.workers() == workers, f"{error}: a worker died")
                scene.report.expect("(INJECTED)" in trace.read_text(), f"{error}: nothing failed")
                scene.close(failing)
        scene.close(clean)
    scene.report.done = f"{len(chosen)} errors"
    ratio = statistics.median(ratios)
    scene.report.figures.append(f"{ratio:.0%} of the clean rate, at worst {min(ratios):.0%} with one error")
    # A sample runs as a test, and a test does not judge speed.
    scene.report.expect(scene.share < 1 or ratio >= CLEAN_RATE, f"{ratio:.0%} of the clean rate")


def _traced(output: Path, *more: str) -> list[str]:
    """Returns a command for forkd under strace, which detaches itself: the process that we start becomes forkd."""
    tracer = ["strace", "-DDD", "-f", "-qq", "--seccomp-bpf", "-o", str(output), "-e", "trace=accept4", *more]
    return [*tracer, *FORKD]


def _rate(scene: Scene, server: Server, seconds: float) -> float:
    """Measures the rate in requests per second."""
    scene.load(server.addresses[0][1], 4)
    threading.Event().wait(seconds)  # the length of the measurement
    total = scene.settle()
    return total.counts["answered"] / total.seconds


def no_descriptors(scene: Scene) -> None:
    """The workers run out of descriptors for a while: callers wait, at no cost, and are served afterwards."""
    scene.write()
    seconds = max(1.5, 5 * scene.share)
    with scene.serving() as server:
        address = server.addresses[0][1]
        # Before any client connects, since the descriptor of a closed connection would be free for the next one.
        limits = {pid: probe.lowest_free_descriptor(pid) for pid in server.workers()}
        hard = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE)[1] for pid in limits}
        scene.load(address)
        until(lambda: server.status("test")["requests"] > 50, "a load")
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard[pid]))
        server.said("accept failed", len(limits))
        until(lambda: server.status("test")["connections"]["open"] == 0, "the end of connections accepted before")
        requests = server.status("test")["requests"]
        began, used = time.monotonic(), probe.processor_seconds(server.family())
        threading.Event().wait(seconds)  # the fault itself
        share = (probe.processor_seconds(server.family()) - used) / (time.monotonic() - began)
        scene.report.expect(server.status("test")["requests"] == requests, "the workers still had free descriptors")
        for pid in limits:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard[pid], hard[pid]))
        free = time.monotonic()
        until(lambda: server.status("test")["requests"] > requests, "requests served again")
        scene.report.took("serving again after", [time.monotonic() - free], 1.0)
        scene.report.expect(share < 0.05, f"{share:.1%} of a processor wasted")
        records = sum("accept failed" in line for line in server.lines)
        scene.report.figures.append(f"{share:.1%} of a processor used and {records} records logged meanwhile")
        scene.report.expect(set(server.workers()) == set(limits), "a worker was replaced")
        scene.close(server, scene.settle())
    scene.report.done = f"no descriptors for {seconds:g} s"


SCENARIOS = [
    Scenario(
        "accept-errors",
        "every 7th accept(2) fails, with each of twelve errors",
        "none lost, 90 % of the clean rate, no worker dies",
        accept_errors,
        ("single",),
    ),
    Scenario(
        "no-descriptors",
        "all descriptors used up for 5 s",
        "none lost, 5 % of a processor at most, serving again within 1 s",
        no_descriptors,
        ("single",),
    ),
]
