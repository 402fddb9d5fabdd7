"""The life of a server: signals and commands, and their effect on open connections."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from forkd.errors import ControlError, ForkdError
from forkd.ipc import control_client
from tests.conftest import Forkd
from tests.server import FORKD, HANDLERS, ROOT, Server, alive, exchange, open_files, until

STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]


def begin(server: Server, request: bytes) -> socket.socket:
    """Returns a client that a worker is serving: its request if it is complete, else its connection (a stream)."""

    def busy() -> int:
        if request.endswith(b"\n"):
            return sum(each["request_age"] is not None for each in server.status()["workers"])
        found: int = server.status("test")["workers"]["busy"]
        return found

    before = busy()
    client = server.connect()
    client.sendall(request)
    until(lambda: busy() > before, "a busy worker")
    return client


def call(client: socket.socket, request: bytes) -> bytes:
    client.sendall(request)
    return client.recv(1000)


def size(server: Server) -> int:
    return int(server.status("test")["workers"]["total"])


def let_go(gate: Path) -> None:
    """Waits for an import of tests/handlers/gate.py to reach its gate, then lets it return."""
    os.close(at_gate(gate))


def at_gate(gate: Path) -> int:
    """Waits until an import has reached the gate. Returns the descriptor that holds it there."""

    def opened() -> int:
        try:
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return 0

    return int(until(opened, "an import at the gate"))


# Stops.


def test_it_serves_and_stops(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2).serving()
    assert exchange(server.connect(), b"hello\nworld\n") == b"HELLO\nWORLD\n"
    assert server.stop() == 0
    server.gone()
    assert not server.control_path.exists()


@pytest.mark.parametrize("number", STOPS)
def test_each_stop_signal_leaves_nothing(forkd: Forkd, tmp_path: Path, number: signal.Signals) -> None:
    server = forkd(
        "small:shout", workers=2, listen=f"unix:{tmp_path}/door.sock", master=f'pidfile = "{tmp_path}/forkd.pid"'
    ).serving()
    assert (tmp_path / "forkd.pid").read_text() == f"{server.pid}\n"
    with server.connect() as idle, server.connect() as silent:
        assert call(idle, b"here\n") == b"HERE\n"
        server.kill(number)
        assert idle.recv(100) == b""
        assert silent.recv(100) == b""
    assert server.exited() == 0
    server.gone()
    assert [each.name for each in tmp_path.iterdir()] == ["forkd.toml"]


def test_term_answers_the_request_that_has_begun(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=1).serving()
    with begin(server, b"0.3\n") as client:
        server.kill(signal.SIGTERM)
        assert client.recv(100) == b"slept 0.3\n"
        assert client.recv(100) == b""
    assert server.exited() == 0


def test_term_reads_a_request_to_its_end(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    with begin(server, b"half a ") as client:
        until(lambda: server.status("test")["workers"]["busy"] == 1)
        server.kill(signal.SIGTERM)
        server.said("signal: stop")
        client.sendall(b"request\n")
        assert client.recv(100) == b"HALF A REQUEST\n"
        assert client.recv(100) == b""
    assert server.exited() == 0


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:{}/door.sock"])
def test_term_serves_the_accept_queue(forkd: Forkd, tmp_path: Path, listen: str) -> None:
    server = forkd("small:nap", workers=1, listen=listen.format(tmp_path)).serving()
    with begin(server, b"0.2\n") as busy:
        queued = [server.connect() for _ in range(8)]
        silent = server.connect()
        for client in queued:
            client.sendall(b"0\n0\n")
        server.kill(signal.SIGTERM)
        assert busy.recv(100) == b"slept 0.2\n"
    for client in queued:
        assert exchange(client, b"") == b"slept 0\nslept 0\n"
    with silent:
        assert silent.recv(100) == b""
    assert server.exited() == 0


@pytest.mark.slow
def test_a_second_term_is_quick(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=1).serving()
    with begin(server, b"60\n") as client:
        server.kill(signal.SIGTERM)
        until(lambda: server.status()["master"]["phase"] == "stopping")
        server.kill(signal.SIGTERM)
        until(lambda: server.status()["master"]["phase"] == "quitting")
        assert server.exited(limit=5) == 0
        assert client.recv(100) == b""
    server.gone()


@pytest.mark.slow
def test_int_kills_a_stubborn_handler_after_two_seconds(forkd: Forkd) -> None:
    server = forkd("small:stubborn", workers=1).serving()
    with begin(server, b"x\n"):
        began = time.monotonic()
        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - began >= 2
    server.gone()


@pytest.mark.slow
def test_a_stop_that_takes_too_long_kills(forkd: Forkd) -> None:
    server = forkd("small:stubborn", workers=2, master="stop_timeout = 0.4").serving()
    with begin(server, b"x\n"):
        assert server.stop(signal.SIGTERM) == 0
    server.said("ending a worker: stopping takes too long")
    server.gone()


def test_quit_has_every_stack_in_the_log_first(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2, master='log.level = "debug"').serving()
    with begin(server, b"0.4\n") as client:
        server.kill(signal.SIGQUIT)
        assert client.recv(100) == b"slept 0.4\n"
    assert server.exited() == 0
    server.said(r"info stack service=test worker=\d gen=1 pid=\d+", 2)
    server.said(r'^    +File ".*small.py", line \d+ in nap$')
    server.said(r'^    +File ".*sync.py", line \d+ in run$', 2)
    stop = next(at for at, line in enumerate(server.lines) if "StopAsked" in line)
    assert max(at for at, line in enumerate(server.lines) if "info stack" in line) < stop


def test_the_lifespan_is_cleaned_up_at_a_stop(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("lives:tidies", workers=2).serving()
    assert server.stop() == 0
    assert (tmp_path / "tidied").read_text() == "tidied\n" * 2


# Signals while forkd starts.


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_signal_ends_a_start(forkd: Forkd, tmp_path: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "gate")
    server = forkd("gate:shout", listen=f"unix:{tmp_path}/door.sock")
    held = at_gate(tmp_path / "gate")
    assert server.stop(number) == 0
    server.gone()
    os.close(held)
    assert server.addresses == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["forkd.toml", "gate"]


def test_other_signals_do_not_hurt_a_start(forkd: Forkd, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    server = forkd("gate:shout", workers=1)
    held = at_gate(tmp_path / "gate")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU):
        server.kill(number)
        server.said(f"signal: .* signal={number.name}$")
    server.said("forkd is starting")
    os.close(held)
    server.serving()
    assert exchange(server.connect(), b"well\n") == b"WELL\n"
    assert size(server) == 1


# Sizes.


def test_ttin_and_ttou_change_the_pool(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    server.kill(signal.SIGTTIN)
    until(lambda: size(server) == 2)
    server.kill(signal.SIGTTOU)
    until(lambda: size(server) == 1)
    server.kill(signal.SIGTTOU)
    server.said("signal: remove a worker", 2)
    assert exchange(server.connect(), b"one is left\n") == b"ONE IS LEFT\n"
    assert size(server) == 1


def test_a_smaller_pool_never_ends_a_busy_worker(forkd: Forkd) -> None:
    server = forkd("small:session", workers=3).serving()
    clients = [begin(server, b"x") for _ in range(3)]
    busy = set(server.workers())
    for client in clients:
        assert client.recv(1) == b"x"
    server.ask(command="scale", service="test", size=1)
    for client in clients:
        assert call(client, b"still") == b"still"
    assert set(server.workers()) == busy
    clients.pop().close()
    clients.pop().close()
    until(lambda: size(server) == 1)
    assert call(clients[0], b"and still") == b"and still"
    assert set(server.workers()) < busy
    clients[0].close()


def test_scale_makes_it_larger(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    server.ask(command="scale", service="test", size=8)
    until(lambda: size(server) == 8)
    assert [each["slot"] for each in server.status()["workers"]] == list(range(8))


# Logs, stacks, totals.


def test_usr1_reopens_the_log_everywhere(forkd: Forkd, tmp_path: Path) -> None:
    log, moved = tmp_path / "forkd.log", tmp_path / "forkd.log.1"
    server = forkd("small:complain", workers=2, master=f'log.file = "{log}"').serving()
    exchange(server.connect(), b"the first\n")
    until(lambda: "cannot do the first" in log.read_text())
    log.rename(moved)
    server.kill(signal.SIGUSR1)
    # This includes the fork server, so the workers that it forks later also write to the new file.
    until(lambda: not any(str(moved) in open_files(pid) for pid in server.family()), "the old log is closed by all")
    # For a moment a process has the new file open twice: the descriptor it received, and the one its log writes to.
    until(lambda: all(open_files(pid).count(str(log)) == 1 for pid in server.family()), "one new log each")
    for worker in server.workers():
        os.kill(worker, signal.SIGKILL)
    until(lambda: log.read_text().count("worker crashed") == 2)
    exchange(server.connect(), b"the second\n")
    until(lambda: "cannot do the second" in log.read_text())
    assert "the second" not in moved.read_text()
    assert "crashed" not in moved.read_text()


def test_a_worker_that_is_forked_meanwhile_has_the_new_log(forkd: Forkd, tmp_path: Path) -> None:
    """The fork was ordered before the log was reopened, and the master only learns of the worker afterwards."""
    log, moved = tmp_path / "forkd.log", tmp_path / "forkd.log.1"
    server = forkd("small:complain", workers=1, master=f'log.file = "{log}"').serving()
    (fork_server,) = server.fork_servers()
    os.kill(fork_server, signal.SIGSTOP)
    server.ask(command="scale", service="test", size=2)
    log.rename(moved)
    server.kill(signal.SIGUSR1)
    until(log.exists, "a new log")
    os.kill(fork_server, signal.SIGCONT)
    until(lambda: len(server.workers()) == 2, "another worker")
    until(lambda: not any(str(moved) in open_files(pid) for pid in server.family()), "the old log is closed by all")


def test_usr1_keeps_the_old_log_when_there_can_be_no_new_one(forkd: Forkd, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    server = forkd("small:shout", workers=1, master=f'log.file = "{folder}/forkd.log"').serving()
    folder.rename(tmp_path / "elsewhere")
    server.kill(signal.SIGUSR1)
    log = tmp_path / "elsewhere" / "forkd.log"
    until(lambda: "still writing to the old file" in log.read_text())
    assert exchange(server.connect(), b"well\n") == b"WELL\n"


def test_the_stack_of_a_busy_worker_names_the_handler(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2).serving()
    with begin(server, b"60\n"):
        stacks = server.ask(command="stacks", service="test")
    assert sorted("in nap" in each["stack"] for each in stacks) == [False, True]
    assert all(each["service"] == "test" and each["gen"] == 1 and "in run" in each["stack"] for each in stacks)


@pytest.mark.slow
def test_a_stopped_worker_is_told_as_not_answering(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2).serving()
    worker = server.workers()[0]
    os.kill(worker, signal.SIGSTOP)
    stacks = server.ask(command="stacks")
    assert [each["pid"] for each in stacks if not each["stack"]] == [worker]
    os.kill(worker, signal.SIGCONT)
    assert server.stop() == 0


def test_a_worker_may_go_while_stacks_are_collected(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2).serving()
    worker = server.workers()[0]
    os.kill(worker, signal.SIGSTOP)  # so that the collection takes a while
    server.kill(signal.SIGQUIT)
    server.said("signal: quick stop with stacks")
    os.kill(worker, signal.SIGKILL)
    assert server.exited() == 0
    server.said("info stack", 1)
    server.gone()


def test_totals_never_run_backwards(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2).serving()

    def totals() -> list[int]:
        found = server.status("test")
        counts = [found["requests"], found["connections"]["accepted"], *found["bytes"].values()]
        return [*counts, *found["exits"].values()]

    def gone(pid: int) -> Any:
        return lambda: not alive(pid) and size(server) == 2

    seen = [totals()]
    for turn in range(4):
        for _ in range(3):
            assert exchange(server.connect(), b"a\nb\n") == b"A\nB\n"
            seen.append(totals())
        # A worker counts a request after its reply has left, and a killed one can no longer do so.
        until(lambda served=3 * (turn + 1): totals()[:4] == [2 * served, served, 4 * served, 4 * served])
        match turn:
            case 0:
                os.kill(worker := server.workers()[0], signal.SIGKILL)
                until(gone(worker))
            case 1:
                os.kill(worker := server.workers()[1], signal.SIGTERM)
                until(gone(worker))
            case 2:
                server.ask(command="reload")
        seen.append(totals())
    for earlier, later in pairwise(seen):
        assert all(now >= before for before, now in zip(earlier, later, strict=True)), (earlier, later)
    assert seen[-1][:4] == [24, 12, 48, 48]
    assert server.status("test")["exits"] == {"recycled": 1, "crashed": 1, "timed_out": 0}


def test_winch_sends_the_workers_away_and_hup_brings_them_back(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2).serving()
    with begin(server, b"0.2\n") as client:
        server.kill(signal.SIGWINCH)
        assert client.recv(100) == b"slept 0.2\n"
        assert call(client, b"0.01\n") == b"slept 0.01\n", "an open connection is served to its end"
    until(lambda: len(server.family()) == 1, "the master alone")
    assert server.status()["master"]["phase"] == "drained"
    with server.connect() as waiting:
        waiting.sendall(b"0\n")
        server.kill(signal.SIGHUP)
        assert waiting.recv(100) == b"slept 0\n"
    until(lambda: server.status()["master"]["phase"] == "serving")
    assert server.stop() == 0


def test_winch_of_a_terminal_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "forkd.toml").write_text(
        f'[master]\ncontrol = "{tmp_path}/control.sock"\n[service.test]\napp = "small:shout"\npath = "{HANDLERS}"\n'
        'listen = "127.0.0.1:0"\nworkers = 1\n'
    )
    # script(1) provides a terminal.
    terminal = ["script", "--quiet", "--return", "--command", f"exec {shlex.join(FORKD)} run forkd.toml", "/dev/null"]
    process = subprocess.Popen(
        terminal,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        path = tmp_path / "control.sock"

        def workers() -> int:
            try:
                document = control_client.ask(path, {"command": "status"}, 5)
            except ForkdError:
                return 0
            return int(document["services"]["test"]["workers"]["total"])

        until(workers)
        pid = control_client.ask(path, {"command": "status"}, 5)["master"]["pid"]
        os.kill(pid, signal.SIGWINCH)
        os.kill(pid, signal.SIGTTIN)  # its effect proves that the other signal was handled, too
        until(lambda: workers() == 2)
        assert control_client.ask(path, {"command": "status"}, 5)["master"]["phase"] == "serving"
        os.kill(pid, signal.SIGTERM)
        process.wait(20)
    finally:
        process.kill()
        process.wait(20)


def test_signals_without_a_meaning_do_not_hurt(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    for number in (signal.SIGPIPE, signal.SIGCHLD):
        server.kill(number)
        assert exchange(server.connect(), b"well\n") == b"WELL\n"
    assert server.stop() == 0


@pytest.mark.parametrize(
    "command",
    [{"command": "stacks", "service": ["test"]}, {"command": "scale", "service": {}, "size": 1}, {"command": {"a": 1}}],
)
def test_a_strange_command_is_refused(forkd: Forkd, command: dict[str, Any]) -> None:
    server = forkd("small:shout", workers=1).serving()
    with pytest.raises(ControlError, match=r"does not know|no service|one JSON object"):
        server.ask(**command)
    assert exchange(server.connect(), b"well\n") == b"WELL\n"


def test_a_stop_signal_too_many_does_not_change_how_it_ends(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    server.kill(signal.SIGTERM)
    while server.exited_already() is None:  # even while the interpreter shuts down
        try:
            os.kill(server.pid, signal.SIGTERM)
        except ProcessLookupError:
            break
    assert server.exited() == 0
