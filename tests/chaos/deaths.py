"""Deaths and pauses under load: of workers, fork servers and the master; and signals at any moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from typing import Any

from tests.chaos import ledger, probe
from tests.chaos.harness import Scenario, Scene
from tests.load import PIPELINE
from tests.server import Server, connect, exchange, until, zombies

FORK_SERVER = r"forkd: test: fork server, .*"
ORDERS = [
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
]
AWAY = signal.SIGWINCH  # the workers leave; the accept queue waits for a reload, and is reset at a stop
ENDS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
SLACK = 10  # how many times its figure a time may take, since the machine may be busy with other work


def kill_workers(scene: Scene) -> None:
    """The longest-serving worker is killed every 50 ms; each kill costs at most the request in hand."""
    scene.write()
    kills = scene.times(300)
    slots: dict[int, int] = {}
    killed: dict[int, list[float]] = defaultdict(list)
    dead: set[int] = set()
    pace = threading.Event()
    with scene.serving() as server:
        scene.load(server.addresses[0][1])
        for _ in range(kills):
            workers = until(lambda: _living(server, dead), "a worker", limit=2)
            slots |= {each["pid"]: each["slot"] for each in workers}
            victim = max(workers, key=lambda each: each["age"])
            killed[victim["slot"]].append(time.monotonic())  # before the kill, which may let another process run first
            os.kill(victim["pid"], signal.SIGKILL)
            dead.add(victim["pid"])
            pace.wait(0.05)  # sets the rate of the fault; it waits for nothing
        until(lambda: len(_living(server, dead)) == 16, "a full pool", limit=60)
        slots |= {each["pid"]: each["slot"] for each in _living(server, dead)}
        # A worker has one request in hand, or a whole pipeline.
        scene.unfinished = kills * (PIPELINE if scene.report.shape == "pipelined" else 1)
        scene.settle(lost=scene.unfinished)
        scene.close(server)
    scene.report.done = f"{kills} workers killed"
    born: dict[int, list[float]] = defaultdict(list)
    for moment, pid in ledger.births(scene.ledger):
        born[slots[pid]].append(moment)
    times = [new - old for slot, moments in killed.items() for old, new in zip(moments, born[slot][1:], strict=True)]
    scene.report.took("killed to ready", times, SLACK * 0.025, quantile=0.99)


def _living(server: Server, dead: set[int]) -> list[dict[str, Any]]:
    """Returns the workers that serve and that we have not killed, even if the master has not noticed yet."""
    workers = server.status()["workers"]
    return [each for each in workers if each["state"] in ("idle", "busy") and each["pid"] not in dead]


def kill_fork_servers(scene: Scene) -> None:
    """Workers of a killed fork server continue, and a new generation follows.

    Each server gets three kills only, because each new generation is delayed longer than the last.
    """
    scene.write()
    kills = scene.times(50)
    done = 0
    while done < kills:
        with scene.serving() as server:
            scene.load(server.addresses[0][1])
            for number in range(min(3, kills - done)):
                [pid] = until(lambda server=server: server.titled(FORK_SERVER))
                os.kill(pid, signal.SIGKILL)
                done += 1
                until(lambda server=server, due=number + 2: server.status("test")["generation"] >= due, "the next one")
                until(lambda server=server: len(server.titled(FORK_SERVER)) == 1, "only the next fork server")
            scene.close(server, scene.settle())
    scene.report.done = f"{done} fork servers killed"


def kill_masters(scene: Scene) -> None:
    """All processes end, requests in hand are still answered, and a new server serves at once on the same address.

    Connections in the accept queue are reset, because the address must be free at once; none of their requests has run.
    """
    address = f"127.0.0.1:{probe.free_port()}"
    scene.write(listen=f'"{address}"')
    kills = scene.times(50)
    free, idle_gone, all_gone, served = [], [], [], []
    for number in range(kills):
        with scene.begun() as server:
            until(lambda: not probe.may_bind(address), "the address bound")
            bound = time.monotonic()
            scene.report.expect(exchange(connect(address), b"first 1\n").startswith(b"first "), "a wrong first answer")
            served.append(time.monotonic() - bound)
            server.serving()
            if not number:
                scene.load(address)
            until(lambda server=server: server.status("test")["requests"] > 50, "a load")
            idle = [each["pid"] for each in server.status()["workers"] if each["state"] == "idle"]
            with probe.watched(server.family()[1:]) as obituaries:
                killed = time.monotonic()
                os.kill(server.pid, signal.SIGKILL)
                until(lambda: probe.may_bind(address), "the address free", limit=5)
                free.append(time.monotonic() - killed)
                ends = obituaries.wait(limit=5)
            idle_gone += [ends[pid] - killed for pid in idle]
            all_gone.append(max(ends.values()) - killed)
            server.gone()
    scene.settle("refused", "reset", "crossed")
    scene.report.done = f"{kills} masters killed"
    scene.report.took("address free after", free, SLACK * 0.1)
    scene.report.took("idle workers gone after", idle_gone, SLACK * 0.1)
    scene.report.took("all gone after", all_gone, SLACK * 0.2)
    scene.report.took("the next one bound to its first answer", served, SLACK * 0.2)


def signals(scene: Scene) -> None:
    """Whatever came before, the server ends as the last signals ask, with status 0, and leaves no process behind."""
    scene.write(workers="4")
    lives, each_life = scene.times(10), 100
    pace = threading.Event()
    for life in range(lives):
        orders = ORDERS if life % 2 else [*ORDERS, AWAY]
        with scene.begun() as server:
            until(lambda server=server: all(probe.catches(server.pid, each) for each in [*ORDERS, *ENDS]))
            early = scene.chance.randrange(each_life // 4)
            _storm(scene, server, orders, early, pace)
            if life % 4 != 3:  # otherwise the end comes while it starts
                server.serving()
                scene.load(server.addresses[0][1], 2)
                _storm(scene, server, orders, each_life - early, pace)
                if life % 3 == 0:
                    until(lambda server=server: _at_rest(server), "a server at rest")
            ends = scene.chance.choices(ENDS, k=scene.chance.randint(1, 3))
            for each in ends:
                server.kill(each)
                pace.wait(scene.chance.uniform(0, 0.02))
            names = " ".join(each.name for each in ends)
            scene.report.expect(server.exited() == 0, f"life {life}, {names}: status {server.exited_already()}")
            server.gone()
            if scene.loads:
                scene.settle("refused", "crossed", *(["reset"] if AWAY in orders else []))
    scene.report.done = f"{lives} lives, {each_life} signals each"


def _storm(scene: Scene, server: Server, orders: list[signal.Signals], count: int, pace: threading.Event) -> None:
    for _ in range(count):
        os.kill(server.pid, scene.chance.choice(orders))
        pace.wait(scene.chance.uniform(0, 0.02))  # picks the moments of the fault


def _at_rest(server: Server) -> bool:
    """Whether there is one complete generation and nothing else; or only the master, if the workers were dismissed."""
    workers = server.status()["workers"]
    whole = {each["state"] for each in workers} <= {"idle", "busy"} and not zombies(server.pid)
    return whole and len(server.family()) == (2 + len(workers) if workers else 1)


def stopped_master(scene: Scene) -> None:
    """A master that was stopped for a while, as when its machine pauses, takes no worker for late afterwards.

    It is stopped while new workers boot, and while requests are in progress that end within their time.
    """
    os.environ["NAP"] = "0.2"
    # Twice the tick of the master's clock: pauses shorter than a tick go unnoticed.
    scene.write("request_timeout = 2\nboot_timeout = 2", workers="8")
    seconds = max(5.0, 60 * scene.share)
    with scene.serving() as server:
        scene.load(server.addresses[0][1])
        before = server.workers()
        server.ask(command="scale", service="test", size=16)
        os.kill(server.pid, signal.SIGSTOP)
        threading.Event().wait(seconds)  # the fault itself
        os.kill(server.pid, signal.SIGCONT)
        until(lambda: server.status("test")["workers"]["total"] == 16, "a whole pool")
        scene.report.expect(set(before) <= set(server.workers()), "a worker was replaced")
        exits = server.status("test")["exits"]
        scene.report.expect(not any(exits.values()), f"workers ended: {exits}")
        killed = [line for line in server.lines if "ending a worker" in line]
        scene.report.expect(not killed, f"{len(killed)} workers were killed: {killed[:1]}")
        scene.close(server, scene.settle())
    scene.report.done = f"the master stopped for {seconds:g} s"


SCENARIOS = [
    Scenario("kill-workers", "a worker killed every 50 ms, 300 times", "at most one request lost a kill", kill_workers),
    Scenario("kill-fork-servers", "the fork server killed 50 times", "none lost", kill_fork_servers),
    Scenario(
        "kill-masters",
        "the master killed 50 times",
        "address free and idle workers gone within 100 ms, requests in hand answered",
        kill_masters,
    ),
    Scenario(
        "signals",
        "1,000 signals of all kinds at random moments",
        "the end is what the last ones ask for; status 0, no process left",
        signals,
        ("single",),
    ),
    Scenario(
        "stopped-master", "a master stopped for a minute", "no worker killed for it", stopped_master, ("persistent",)
    ),
]
