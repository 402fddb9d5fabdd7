"""What a server costs apart from requests: memory, idle connections, idle workers, starting."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench import asking, load, processes
from bench.asking import Failure
from bench.contenders import Contender
from bench.rounds import Measures
from bench.server import Server, serving
from forkd.ipc import control_client

IDLE: Final = 10_000
_STARTS: Final = 10


def memory(contender: Contender, connections: int) -> Measures:
    """Measures one worker's private memory after 100,000 requests, and the memory of all processes."""
    with serving(contender) as server:
        asking.ask(server.port, "-c", connections, "-n", 100_000)
        of_worker = processes.memory(processes.busiest(server.family()))
        of_all = processes.memory_of_all(server.family(), "Pss")
        return {"private dirty MB": of_worker["Private_Dirty"] / 1e6, "all processes, Pss MB": of_all / 1e6}


def beside(contender: Contender, workers: int, idle: int, seconds: float) -> Measures:
    """Measures 64 busy connections beside `idle` idle ones, and the memory of each idle one."""
    busy = load.Load()
    with serving(contender, workers) as server:
        load.warm_up(server, busy)
        before = server.family()
        dirty, pss = (processes.memory_of_all(before, name) for name in ("Private_Dirty", "Pss"))
        with idle_connections(server, idle):
            found: dict[str, float] = {}
            if idle:
                after = server.family()
                found["bytes a connection"] = (processes.memory_of_all(after, "Private_Dirty") - dirty) / idle
                found["Pss a connection"] = (processes.memory_of_all(after, "Pss") - pss) / idle
            return {**load.measure(server, busy, seconds), **found}


@contextmanager
def idle_connections(server: Server, count: int) -> Iterator[None]:
    """Opens connections that send one request, get its reply, and stay silent."""
    with ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            sock.sendall(b"idle\n")
            if sock.recv(100) != b"idle\n":
                raise Failure("an idle connection was not answered")
        yield


def idleness(contender: Contender, seconds: float) -> Measures:
    """Measures how often all processes of a server without clients wake up."""
    with serving(contender, 16) as server:
        server.rest()
        time.sleep(1)
        before, began = processes.wakeups(server.family()), time.monotonic()
        time.sleep(seconds)
        woken = processes.wakeups(server.family()) - before
        return {"wake-ups a second": woken / (time.monotonic() - began)}


def first_answer(contender: Contender) -> Measures:
    """Measures the time from the start of the program to its first answer."""
    with serving(contender) as server:
        return {"ms": server.answered_after * 1000}


def bare_python(program: str) -> Measures:
    """Measures a Python that runs one line, on the servers' core."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], preexec_fn=processes.on_core(processes.SERVERS), check=True)
    return {"ms": (time.monotonic() - began) * 1000}


def worker_start(contender: Contender) -> Measures:
    """Measures the time from the command to add a worker until the master logs it as ready; median of several."""
    with serving(contender, 1) as server:
        took = sorted(_one_more(server, count) for count in range(2, 2 + _STARTS))
        heaviest = max(processes.memory(pid)["Rss"] for pid in server.family())
        return {"ms": took[len(took) // 2], "slowest ms": took[-1], "memory of a worker MB": heaviest / 1e6}


def _one_more(server: Server, count: int) -> float:
    began = time.monotonic()
    control_client.ask(server.folder / "control", {"command": "scale", "service": "lines", "size": count}, timeout=10)
    while _ready(server.said) < count:
        if time.monotonic() - began > 10:
            raise Failure("a worker was not ready within 10 s")
        time.sleep(0.0002)
    took = (time.monotonic() - began) * 1000
    time.sleep(0.05)
    return took


def _ready(said: Path) -> int:
    return len(re.findall(r"worker ready", said.read_text()))
