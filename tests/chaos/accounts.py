"""What must be the same afterwards (descriptors, counts, memory), and a master whose workers overwrite all they can."""

from __future__ import annotations

import re
import threading
from collections import Counter
from pathlib import Path

from tests.chaos import probe
from tests.chaos.harness import Scenario, Scene
from tests.load import LOSSES
from tests.server import FORKD, Server, exchange, until

MILLION = 1_000_000
SIGNALS = "kill,tkill,tgkill,pidfd_send_signal"
GROWTH = 1024  # KiB


def descriptors(scene: Scene) -> None:
    """After all reloads every process has the same descriptors open as at the start."""
    scene.write()
    with scene.serving() as server:
        before = _tables(server)
        scene.crowd(server)
        reloads = scene.times(200)
        for _ in range(reloads):
            server.ask(command="reload")
        total = scene.settle()
        after = _tables(server)
        for who, table in before.items():
            more, fewer = after[who] - table, table - after[who]
            scene.report.expect(not more and not fewer, f"{who}: more {dict(more)}, fewer {dict(fewer)}")
        scene.report.figures.append(", ".join(f"{who} {table.total()}" for who, table in after.items()))
        scene.close(server, total)
    scene.report.done = f"{reloads} reloads"


def _tables(server: Server) -> dict[str, Counter[str]]:
    """Returns what one process of each kind has open, once no old generation is left."""
    until(lambda: len(server.family()) == 2 + 16, "one generation")
    processes = {
        "master": server.pid,
        "fork server": server.fork_servers()[0],
        "worker": server.titled("forkd: test: worker 0, .*")[0],
    }
    return {who: probe.descriptors_at_rest(pid) for who, pid in processes.items()}


def million(scene: Scene) -> None:
    """Through reloads and replacements the totals match the clients' counts, and the master does not grow."""
    scene.write("max_requests = 200")
    wanted = scene.times(MILLION)
    memory: list[int] = []
    reloads = 0
    with scene.serving() as server:
        address = server.addresses[0][1]
        scene.load(address, 12, shape="pipelined", most=500)
        scene.load(address, 4, shape="single")
        while (done := server.status("test")["requests"]) < wanted:
            server.ask(command="reload")
            reloads += 1
            if done >= wanted / 2:
                memory.append(probe.private_memory(server.pid))
        total = scene.settle()
        recycled = server.status("test")["exits"]["recycled"]
        until(lambda: len(server.family()) == 2 + 16, "one generation")
        memory.append(probe.private_memory(server.pid))
        scene.report.expect(memory[-1] - memory[0] < GROWTH, f"the master grew by {memory[-1] - memory[0]} KiB")
        scene.close(server, total)
    scene.report.done = f"{reloads} reloads, {recycled} workers replaced"
    growth = memory[-1] - memory[0]
    scene.report.figures.append(f"the master has {memory[-1]} KiB of its own, {growth:+} in the second half")


def raving(scene: Scene) -> None:
    """Workers overwrite all the memory, counters and sockets they share: the master continues, signals only its own.

    The workers may suffer, because the master believes what they report about themselves.
    """
    trace = scene.folder / "trace"
    tracer = ["strace", "-DDD", "-f", "-q", "--seccomp-bpf", "-o", str(trace), "-e", f"trace={SIGNALS}"]
    scene.write(app="hostile:raving", workers="8")
    raves = scene.times(200)
    pace = threading.Event()
    with scene.serving(program=[*tracer, "-e", "decode-fds=pidfd", *FORKD]) as server:
        scene.load(server.addresses[0][1], 4, shape="single")
        for number in range(raves):
            _rave(server, scene.chance.randrange(10**9))
            scene.report.expect(server.status()["master"]["pid"] == server.pid, "the master was replaced")
            if number % 20 == 10:
                server.ask(command="reload")
            pace.wait(0.02)  # sets the rate of the fault
        # The master kills workers that seem late to it.
        scene.unfinished = 10**6
        scene.settle(*LOSSES)
        server.ask(command="reload")
        until(lambda: _answers(server), "requests served again")
        scene.close(server)
    strangers = _strangers(trace, server.pid)
    scene.report.expect(not strangers, f"signals to strangers: {strangers[:3]}")
    scene.report.done = f"{raves} times everything written over"


def _rave(server: Server, seed: int) -> None:
    try:
        exchange(server.connect(), f"rave {seed}\n".encode())
    except OSError:
        return


def _answers(server: Server) -> bool:
    try:
        return exchange(server.connect(), b"probe 1\n").startswith(b"probe ")
    except OSError:
        return False


def _strangers(trace: Path, master: int) -> list[str]:
    """Returns the signals that the master sent outside its family: the processes that ran under the same tracer."""
    lines = trace.read_text().splitlines()
    family = {int(line.split()[0]) for line in lines}
    found = []
    for line in lines:
        pid, _, call = line.partition(" ")
        target = re.match(r"\s*(?:kill\((-?\d+)|tk?g?kill\((\d+)|pidfd_send_signal\(\d+<pid:(-?\d+))", call)
        if target and int(pid) == master:
            whom = int(next(each for each in target.groups() if each is not None))
            # strace shows -1 for the pidfd of a process that is gone.
            if whom not in family and not (target[3] and whom == -1):
                found.append(line)
    return found


SCENARIOS = [
    Scenario("descriptors", "200 reloads", "the same descriptors open as at the start", descriptors, ("persistent",)),
    Scenario(
        "million",
        "a million requests through reloads and replacements",
        "counts as the clients have them, no growth of the master over 1 MiB",
        million,
        ("pipelined",),
    ),
    Scenario(
        "raving",
        "workers write random bytes over all they share",
        "the master continues, and signals only its own",
        raving,
        ("single",),
    ),
]
