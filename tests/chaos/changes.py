"""What an operator does under load: good and broken reloads, changes of listeners and pool sizes, stops, upgrades."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

from forkd.errors import ControlError
from tests.chaos import probe
from tests.chaos.harness import Scenario, Scene
from tests.load import tcp_counters
from tests.server import HANDLERS, Server, connect, exchange, until

REQUESTS = 100_000


def reload(scene: Scene) -> None:
    """No client is refused, cut off or reset: not one packet with RST leaves the server."""
    scene.write()
    with scene.serving() as server:
        address = server.addresses[0][1]
        before, inode = tcp_counters(), probe.listener(address)
        scene.crowd(server)
        reloads, wanted = scene.times(200), scene.times(REQUESTS)
        done = 0
        began = time.monotonic()
        while done < reloads or server.status("test")["requests"] < wanted:
            server.ask(command="reload")
            done += 1
        seconds = time.monotonic() - began
        scene.report.expect(probe.listener(address) == inode, "the listener was replaced")
        scene.close(server, scene.settle())
        scene.resets(before, refusals=True)
    scene.report.done = f"{done} reloads"
    scene.report.figures.append(f"{seconds / done:.2f} s a reload")


def broken_reloads(scene: Scene) -> None:
    """The caller gets an error, the old generation continues, and no client notices."""
    scene.write()
    with socket.create_server(("127.0.0.1", 0)) as taken, scene.serving() as server:
        breaks = _breaks(scene.folder, taken.getsockname()[1])
        kinds = list(breaks)
        scene.chance.shuffle(kinds)
        before = tcp_counters()
        scene.crowd(server)
        reloads = scene.times(100, least=2 * len(kinds))
        generation = 1
        for number in range(reloads):
            kind = kinds[number // 2 % len(kinds)] if number % 2 else ""
            scene.write(breaks.get(kind, ""))
            try:
                server.ask(command="reload")
                told = False
            except ControlError:
                told = True
            generation += not kind
            scene.report.expect(told == bool(kind), f"reload {number} ({kind or 'good'}) got the wrong answer")
            scene.report.expect(
                server.status("test")["generation"] >= generation, f"reload {number}: an old generation serves"
            )
        scene.close(server, scene.settle())
        scene.resets(before, refusals=True)
    scene.report.done = f"{reloads} reloads, half of them broken in {len(kinds)} ways"


def _breaks(folder: Path, taken: int) -> dict[str, str]:
    """Returns each mistake by name, and the text that puts it into the settings."""
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    (folder / "hangs.py").write_text("import time\ntime.sleep(60)\n")
    (folder / "bootless.py").write_text(
        "import forkd\n@forkd.service(forkd.Lines())\ndef answer(r): return r\n"
        "@answer.lifespan\ndef life():\n    raise ValueError('no')\n    yield\n"
    )
    (folder / "threaded.py").write_text(
        "import threading\nimport forkd\n@forkd.service(forkd.Lines())\ndef answer(r): return r\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    other = f'[service.other]\npath = "{folder}"\nlisten = "127.0.0.1:0"\n'
    ledger = f'[service.other]\npath = "{HANDLERS}"\napp = "ledger:answer"\n'
    return {
        "no TOML": "this is no TOML",
        "a value out of bounds": "idle_timeout = -1",
        "an unknown key": 'wrokers = "many"',
        "a failing import": other + 'app = "broken:answer"',
        "an absent module": other + 'app = "absent:answer"',
        "a failing boot": other + 'app = "bootless:answer"',
        "a hanging import": other + 'app = "hangs:answer"\nboot_timeout = 0.2',
        "an address of others": ledger + 'listen = "192.0.2.1:7000"',
        "an address in use": ledger + f'listen = "127.0.0.1:{taken}"',
        "an unknown user": ledger + 'listen = "127.0.0.1:0"\nuser = "nobody-of-this-name"',
        "a thread": other + 'app = "threaded:answer"\nfork_check = "refuse"',
    }


def listeners(scene: Scene) -> None:
    """Kept listeners are undisturbed; added ones answer, and removed ones refuse."""
    stays = f"127.0.0.1:{probe.free_port()}"
    kept = f"unix:{scene.folder}/kept.sock"
    scene.write(listen=_listen([stays, kept]))
    with scene.serving(2) as server:
        inode = probe.listener(stays)
        scene.load(stays)
        scene.load(kept, shape="single", clients=2)
        others = [f"127.0.0.1:{probe.free_port()}" for _ in range(4)] + [f"unix:{scene.folder}/{n}.sock" for n in "ab"]
        reloads = scene.times(50)
        for _ in range(reloads):
            chosen = [each for each in others if scene.chance.random() < 0.5]
            scene.chance.shuffle(chosen)
            scene.write(f"backlog = {scene.chance.choice([64, 256, 1024])}", listen=_listen([stays, kept, *chosen]))
            server.ask(command="reload")
            for each in chosen:
                scene.report.expect(_answers(each), f"{each} does not answer")
            for each in set(others) - set(chosen):
                until(lambda each=each: _refuses(each), f"{each} closed")
            scene.report.expect(probe.listener(stays) == inode, "the kept listener was replaced")
        scene.settle()
        scene.close(server)
    scene.report.done = f"{reloads} reloads, each with other listeners"


def _listen(addresses: list[str]) -> str:
    """Returns the value of `listen`."""
    return "[" + ", ".join(f'"{each}"' for each in addresses) + "]"


def _answers(address: str) -> bool:
    return exchange(connect(address), b"probe 1\n").startswith(b"probe ")


def _refuses(address: str) -> bool:
    """Whether no one listens there. A connection made in the moment of closing is reset."""
    try:
        exchange(connect(address), b"probe 1\n")
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except ConnectionResetError:
        pass
    return False


def scale(scene: Scene) -> None:
    """The pool grows and shrinks; only idle workers leave."""
    scene.write()
    with scene.serving() as server:
        # Only idle workers are dismissed, so a pool of one must not be fully busy.
        scene.load(server.addresses[0][1], 1)
        before = tcp_counters()
        times = scene.times(50)
        for number in range(times):
            size = 16 if number % 2 else 1
            server.ask(command="scale", service="test", size=size)
            until(lambda size=size: _staying(server) == size, f"{size} workers")
            wanted = server.status("test")["requests"] + 20  # some work with each size
            until(lambda wanted=wanted: server.status("test")["requests"] >= wanted, f"{wanted} requests")
        scene.close(server, scene.settle())
        scene.resets(before, refusals=True)
    scene.report.done = f"scaled {times} times"


def _staying(server: Server) -> int:
    """Returns how many workers serve and have no order to leave."""
    return sum(each["state"] in ("busy", "idle") for each in server.status()["workers"])


def recycle(scene: Scene) -> None:
    """Each worker leaves after 50 requests and is replaced; a client ends its connection after 20 or one pipeline."""
    scene.write("max_requests = 50")
    wanted, replaced = scene.times(REQUESTS), scene.times(1000)
    with scene.serving() as server:
        address = server.addresses[0][1]
        before = tcp_counters()
        for _ in range(2):
            scene.load(address, most=20)

        def enough() -> bool:
            told = server.status("test")
            return bool(told["requests"] >= wanted and told["exits"]["recycled"] >= replaced)

        until(enough, f"{wanted} requests and {replaced} workers replaced", limit=3600)
        total = scene.settle()
        recycled = server.status("test")["exits"]["recycled"]
        scene.close(server, total)
        scene.resets(before, refusals=True)
    scene.report.done = f"{recycled} workers replaced"
    scene.report.figures.append(f"{total.counts['answered'] / recycled:.0f} requests a worker")


def stop(scene: Scene) -> None:
    """Every established connection is answered; none is reset.

    An idle connection may end just as its client sends another request; that request has not run.
    """
    scene.write()
    took = []
    stops = scene.times(50)
    for _ in range(stops):
        before = tcp_counters()
        with scene.serving() as server:
            for _ in range(2):
                scene.load(server.addresses[0][1], 32)
            until(lambda server=server: server.status("test")["requests"] > 200)
            began = time.monotonic()
            scene.report.expect(server.stop() == 0, "the server did not exit with status 0")
            took.append(time.monotonic() - began)
            scene.settle("refused", "crossed")
            server.gone()
        scene.resets(before, refusals=False)
    scene.report.done = f"{stops} stops, 64 clients"
    scene.report.took("a stop", took, 5)


def upgrade(scene: Scene) -> None:
    """The program replaces itself, by command and by signal: the PID stays the same, and no client is lost."""
    scene.write()
    with scene.serving() as server:
        before, inode = tcp_counters(), probe.listener(server.addresses[0][1])
        scene.crowd(server)
        upgrades = scene.times(50)
        began = time.monotonic()
        for number in range(upgrades):
            generation = server.status("test")["generation"]
            if number % 2:
                server.kill(signal.SIGUSR2)
                until(lambda server=server, past=generation: _generation(server) > past, "the upgraded program")
            else:
                server.ask(command="upgrade")
            scene.report.expect(server.status()["master"]["pid"] == server.pid, "another process is the master")
            scene.report.expect(probe.listener(server.addresses[0][1]) == inode, "the listener was replaced")
        seconds = time.monotonic() - began
        scene.close(server, scene.settle())
        scene.resets(before, refusals=True)
    scene.report.done = f"{upgrades} upgrades"
    scene.report.figures.append(f"{seconds / upgrades:.2f} s an upgrade")


def _generation(server: Server) -> int:
    """Returns the generation that serves; 0 while an upgrade leaves the control socket unanswered."""
    try:
        return int(server.status("test")["generation"])
    except ControlError:
        return 0


SCENARIOS = [
    Scenario("reload", "200 reloads, 100,000 requests or more", "none refused, lost or reset", reload),
    Scenario("broken-reload", "100 reloads, every second one broken", "none refused, lost or reset", broken_reloads),
    Scenario(
        "listeners", "listeners added, dropped and changed over 50 reloads", "none lost where they stay", listeners
    ),
    Scenario("scale", "a pool scaled from 1 worker to 16 and back, 50 times", "none lost", scale),
    Scenario("recycle", "every worker replaced after 50 requests, 100,000 requests", "none lost", recycle),
    Scenario("stop", "50 stops under 64 clients", "none reset, all that were let in answered", stop),
    Scenario("upgrade", "50 upgrades of the program in a row", "none lost", upgrade),
]
