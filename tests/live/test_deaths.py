"""Deaths of the master, of fork servers and of workers, at any time and by any signal."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from pathlib import Path

import pytest

from forkd.errors import ControlError
from tests.conftest import Forkd
from tests.live.test_life import begin, call
from tests.server import (
    FORKD,
    HANDLERS,
    Server,
    alive,
    connect,
    exchange,
    failing,
    open_files,
    running,
    strace_missing,
    title,
    until,
    zombies,
)

FATAL = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]
SHRUGGED_OFF = [
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGPIPE,
    signal.SIGWINCH,
    signal.SIGCHLD,
    signal.SIGIO,
]
TWO_DOORS = """
[service.test]
app = "small:{app}"
path = "{handlers}"
listen = ["{tcp}", "unix:{folder}/door.sock"]
workers = {workers}
"""


def settle(server: Server, workers: int = 1) -> None:
    """Waits until the service is complete again and no zombie is left."""
    until(lambda: server.status("test")["workers"]["total"] == workers, f"{workers} workers")
    until(lambda: len(server.family()) == 2 + workers, "no other process")
    until(lambda: not zombies(server.pid), "no zombies")


def start(forkd: Forkd, folder: Path, app: str, workers: int = 1, tcp: str = "127.0.0.1:0") -> Server:
    """Starts a server with everything that could be left behind: a TCP port, a unix socket, a control socket, a PID
    file."""
    file = TWO_DOORS.format(app=app, handlers=HANDLERS, folder=folder, workers=workers, tcp=tcp)
    return forkd(file=file, master=f'pidfile = "{folder}/forkd.pid"').serving(2)


def left_behind(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


# The master.


@pytest.mark.parametrize("number", FATAL)
def test_nothing_outlives_the_master(forkd: Forkd, tmp_path: Path, number: signal.Signals) -> None:
    server = start(forkd, tmp_path, "shout", workers=3)
    with server.connect() as silent, server.connect() as idle:
        assert call(idle, b"here\n") == b"HERE\n"
        began = time.monotonic()
        server.kill(number)
        assert idle.recv(100) == b""
        assert silent.recv(100) == b""
    server.gone(limit=3)
    assert time.monotonic() - began < 1.5
    assert server.exited() == -number
    assert left_behind(tmp_path) == ["forkd.toml"]
    again = start(forkd, tmp_path, "shout", tcp=server.addresses[0][1])
    for _, address in again.addresses:
        assert exchange(connect(address), b"again\n") == b"AGAIN\n"


def test_a_request_in_hand_is_answered_after_the_masters_death(forkd: Forkd, tmp_path: Path) -> None:
    server = start(forkd, tmp_path, "nap", workers=2)
    with begin(server, b"0.4\n") as client:
        server.kill(signal.SIGKILL)
        assert client.recv(100) == b"slept 0.4\n"
        assert client.recv(100) == b""
    server.gone(limit=3)
    assert left_behind(tmp_path) == ["forkd.toml"]


def test_a_busy_worker_does_not_keep_the_addresses_of_a_dead_master(forkd: Forkd, tmp_path: Path) -> None:
    server = start(forkd, tmp_path, "nap", workers=2)
    with begin(server, b"1\n") as client:
        server.kill(signal.SIGKILL)
        until(lambda: not (tmp_path / "door.sock").exists(), "free addresses")
        until(lambda: len([pid for pid in server._known if alive(pid)]) <= 2, "the busy worker and its fork server")
        again = start(forkd, tmp_path, "shout", tcp=server.addresses[0][1])
        assert exchange(again.connect(), b"again\n") == b"AGAIN\n"
        assert client.recv(100) == b"slept 1\n"
    server.gone(limit=3)
    assert (tmp_path / "door.sock").exists(), "the successor's socket"


def test_the_master_and_a_fork_server_die_at_once(forkd: Forkd, tmp_path: Path) -> None:
    server = start(forkd, tmp_path, "shout", workers=2)
    (fork_server,) = server.fork_servers()
    with server.connect() as idle:
        assert call(idle, b"here\n") == b"HERE\n"
        os.kill(server.pid, signal.SIGSTOP)  # so that it does not notice
        os.kill(fork_server, signal.SIGKILL)
        server.kill(signal.SIGKILL)
        assert idle.recv(100) == b""
    server.gone(limit=3)
    again = start(forkd, tmp_path, "shout", tcp=server.addresses[0][1])
    for _, address in again.addresses:
        assert exchange(connect(address), b"again\n") == b"AGAIN\n"


def test_an_import_dies_with_the_master(forkd: Forkd, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    server = forkd("gate:shout")
    until(server.fork_servers, "a fork server in its import")
    server.kill(signal.SIGKILL)
    server.gone(limit=3)


def test_a_worker_that_boots_dies_with_the_master(forkd: Forkd) -> None:
    server = forkd("lives:hangs", workers=1)
    until(lambda: server.titled("forkd: test: worker .*"), "a worker in its lifespan")
    server.kill(signal.SIGKILL)
    server.gone(limit=5)


@pytest.mark.slow
def test_a_stubborn_handler_is_killed_after_the_masters_death(forkd: Forkd) -> None:
    server = forkd("small:stubborn", workers=1, master="stop_timeout = 0.3").serving()
    with begin(server, b"x\n"):
        server.kill(signal.SIGKILL)
        server.gone(limit=5)


# Fork servers.


@pytest.mark.parametrize("number", [*FATAL, signal.SIGTERM])
def test_a_fork_server_is_replaced_and_nobody_notices(forkd: Forkd, number: signal.Signals) -> None:
    server = forkd("small:shout", workers=2).serving()
    (fork_server,) = server.fork_servers()
    with server.connect() as kept:
        assert call(kept, b"before\n") == b"BEFORE\n"
        os.kill(fork_server, number)
        while server.status("test")["generation"] == 1:
            assert exchange(server.connect(), b"meanwhile\n") == b"MEANWHILE\n"
        assert call(kept, b"after\n") == b"AFTER\n"
    settle(server, 2)
    assert {each["generation"] for each in server.status()["workers"]} == {2}
    server.said(r"error service test: the fork server ended \((signal|exit status) \d+.* service=test gen=1 pid=\d+")
    assert server.status("test")["exits"]["crashed"] == 0


def test_workers_die_without_their_fork_server(forkd: Forkd) -> None:
    """The master inherits such workers, and notices and counts their deaths."""
    server = forkd("small:die", workers=2).serving()
    os.kill(server.fork_servers()[0], signal.SIGSTOP)
    with server.connect() as client, server.connect() as other:
        assert call(other, b"here\n") == b"here\n"
        client.sendall(b"die 11\n")
        assert client.recv(100) == b""
        server.kill(signal.SIGCHLD)
        os.kill(server.fork_servers()[0], signal.SIGKILL)
        server.said(r"error worker crashed .* outcome=\"(signal 11 \(SIGSEGV\)|unknown)\"")
        other.sendall(b"die 9\n")
        assert other.recv(100) == b""
    server.said(r"error worker crashed .* outcome=\"signal 9 \(SIGKILL\)\"")
    settle(server, 2)
    assert server.status("test")["exits"]["crashed"] == 2


def test_every_process_but_the_master_dies(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=3).serving()
    os.kill(server.pid, signal.SIGSTOP)
    for pid in server.family()[1:]:
        os.kill(pid, signal.SIGKILL)
    server.kill(signal.SIGCONT)
    settle(server, 3)
    assert exchange(server.connect(), b"well\n") == b"WELL\n"


@pytest.mark.parametrize("kind", ["fork server", "worker"])
def test_signals_that_only_the_master_is_to_act_on(forkd: Forkd, kind: str) -> None:
    server = forkd("small:shout", workers=2).serving()
    before = server.family()
    with server.connect() as client:
        for number in SHRUGGED_OFF:
            for pid in before[1:]:
                if kind in title(pid):
                    os.kill(pid, number)
            assert call(client, b"well\n") == b"WELL\n"
    assert server.family() == before
    server.ask(command="stacks")
    assert server.stop() == 0


# Workers.


@pytest.mark.parametrize("number", [*FATAL, signal.SIGBUS, signal.SIGALRM])
def test_a_worker_that_is_killed_is_replaced_at_once(forkd: Forkd, number: signal.Signals) -> None:
    server = forkd("small:shout", workers=2).serving()
    worker = server.workers()[0]
    began = time.monotonic()
    os.kill(worker, number)
    server.said(
        rf'error worker crashed service=test worker=0 gen=1 pid={worker} age=[\d.]+ outcome="signal {int(number)} '
    )
    settle(server, 2)
    assert time.monotonic() - began < 1
    assert worker not in server.workers()
    assert server.status("test")["exits"] == {"recycled": 0, "crashed": 1, "timed_out": 0}
    assert len([line for line in server.lines if "crashed" in line]) == 1


def test_term_to_a_worker_has_it_finish_and_replaced(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=1).serving()
    (worker,) = server.workers()
    with begin(server, b"0.2\n") as client:
        os.kill(worker, signal.SIGTERM)
        assert client.recv(100) == b"slept 0.2\n"
        assert client.recv(100) == b""
    until(lambda: server.status("test")["exits"]["recycled"] == 1)
    settle(server)
    assert server.status("test")["exits"]["crashed"] == 0


def test_a_crash_in_a_handler_has_its_stack_in_the_log(forkd: Forkd) -> None:
    server = forkd("small:die", workers=1).serving()
    assert exchange(server.connect(), b"die 11\n") == b""
    server.said(r"error worker crashed .*SIGSEGV")
    server.said(r'    +File ".*small.py", line \d+ in die$')
    settle(server)


@pytest.mark.parametrize("status", [0, 1, 78])
def test_a_handler_that_exits_the_process_crashes_its_worker(forkd: Forkd, status: int) -> None:
    server = forkd("small:die", workers=1).serving()
    assert exchange(server.connect(), f"exit {status}\n".encode()) == b""
    server.said(rf'error worker crashed .*outcome="exit status {status}"')
    settle(server)
    assert server.status("test")["exits"] == {"recycled": 0, "crashed": 1, "timed_out": 0}
    assert exchange(server.connect(), b"well\n") == b"well\n"


def test_a_hanging_handler_is_ended_with_its_stack(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2, request_timeout=1).serving()
    with server.connect() as other:
        assert call(other, b"0\n") == b"slept 0\n"
        with begin(server, b"60\n") as client:
            assert client.recv(100) == b""
        assert call(other, b"0.1\n") == b"slept 0.1\n"
    server.said(r"warning ending a worker: request_timeout of 1 s is over service=test worker=\d .*signal=SIGABRT")
    server.said(r'    +File ".*small.py", line \d+ in nap$')
    settle(server, 2)
    assert server.status("test")["exits"] == {"recycled": 0, "crashed": 0, "timed_out": 1}


def test_a_handler_that_survives_its_timeout_is_killed(forkd: Forkd) -> None:
    server = forkd("small:stubborn", workers=1, request_timeout=0.2).serving()
    with begin(server, b"x\n") as client:
        os.kill(server.workers()[0], signal.SIGSTOP)  # SIGABRT stays pending, SIGKILL works at once
        assert client.recv(100) == b""
    server.said("warning ending a worker: it did not end by itself .*signal=SIGKILL")
    settle(server)
    assert server.status("test")["exits"]["timed_out"] == 1


# Services that cannot work.


def test_requests_that_crash_their_worker_do_not_empty_the_pool(forkd: Forkd) -> None:
    server = forkd("small:die", workers=1).serving()
    for _ in range(20):  # a back-off of 0.5, 1, 2, ..., 30 s would take minutes
        assert exchange(server.connect(), b"die 9\n") == b""
    server.said("error worker crashed", 20)
    assert exchange(server.connect(), b"well\n") == b"well\n"
    assert server.status("test")["exits"]["crashed"] == 20
    assert server.stop() == 0


def test_a_worker_that_can_no_longer_boot_is_tried_again_by_and_by(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("lives:told", workers=2, master='log.level = "debug"').serving()
    (tmp_path / "broken").touch()
    began = time.monotonic()
    first, second = server.workers()
    os.kill(first, signal.SIGKILL)
    server.said("error worker could not boot", 3)  # at once, at once again, and after 0.5 s plus or minus a fifth
    server.said("^    RuntimeError: broken as told")
    assert exchange(server.connect(), b"one is left\n") == b"one is left\n"
    assert time.monotonic() - began >= 0.4
    assert len([line for line in server.lines if "action: Fork(" in line]) == 2 + 3
    (tmp_path / "broken").unlink()
    settle(server, 2)
    assert alive(second)


@pytest.mark.parametrize(
    ("app", "status", "why"),
    [
        ("no_such_module:app", 78, r"^forkd.toml:\d: service.test.app: .*no module 'no_such_module'"),
        ("small:no_such_name", 78, r"^forkd.toml:\d: service.test.app: module 'small' has no 'no_such_name'"),
        ("lives:fails", 1, r"^forkd: service test: worker 0 could not boot \(exit status 1\)"),
        ("lives:aborts", 1, r"^forkd: service test: worker 0 could not boot \(signal 6 \(SIGABRT\)\)"),
        ("lives:exits", 1, r"^forkd: service test: worker 0 could not boot \(exit status 1\)"),
        ("lives:hangs", 1, r"^forkd: service test: (worker 0: )?not ready within its boot_timeout of 0.5 s"),
        ("gate:shout", 1, r"^forkd: service test: not ready within its boot_timeout of 0.5 s"),
    ],
)
def test_a_start_that_cannot_work_ends_with_the_reason(
    forkd: Forkd, tmp_path: Path, app: str, status: int, why: str
) -> None:
    os.mkfifo(tmp_path / "gate")
    server = forkd(
        app,
        workers=1,
        boot_timeout=0.5 if app in ("lives:hangs", "gate:shout") else 30,
        listen=f"unix:{tmp_path}/door.sock",
        master=f'pidfile = "{tmp_path}/forkd.pid"',
    )
    assert server.exited() == status
    server.said(why)
    server.gone()
    assert left_behind(tmp_path) == ["forkd.toml", "gate"]
    if app == "lives:fails":
        server.said(r"ConnectionError: no database today")


def test_other_services_go_down_with_one_that_cannot_start(forkd: Forkd, tmp_path: Path) -> None:
    services = [("small:shout", "good"), ("lives:fails", "bad")]
    file = "".join(
        f'[service.{name}]\napp = "{app}"\npath = "{HANDLERS}"\nlisten = "unix:{tmp_path}/{name}.sock"\n'
        for app, name in services
    )
    server = forkd(file=file)
    assert server.exited() == 1
    assert not any("serving" in line for line in server.lines)
    assert left_behind(tmp_path) == ["forkd.toml"]
    server.gone()


def test_a_master_without_descriptors_goes_on(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    used = len(open_files(server.pid))
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 5, hard))
    server.ask(command="scale", service="test", size=8)
    server.said("error no new worker: the master has too many descriptors open: raise LimitNOFILE= or ulimit -n")
    assert exchange(server.connect(), b"well\n") == b"WELL\n"
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
    until(lambda: server.status("test")["workers"]["total"] == 8)


def test_the_age_of_a_dead_worker_is_told_in_seconds(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    os.kill(server.workers()[0], signal.SIGKILL)
    (record,) = server.said(r"error worker crashed .* age=([\d.]+) ")
    assert re.fullmatch(r"\d+\.\d{1,3}", record[1])
    assert float(record[1]) < 10


def test_a_death_that_a_stopped_fork_server_does_not_tell_is_seen(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2, boot_timeout=0.3).serving()
    [fork_server] = server.fork_servers()
    os.kill(fork_server, signal.SIGSTOP)
    os.kill(server.workers()[0], signal.SIGKILL)
    server.said("error worker crashed .*outcome=unknown")
    # This fork server can no longer fork, so it is replaced in the end.
    until(lambda: server.status("test")["generation"] == 2, "another fork server")
    settle(server, 2)
    assert exchange(server.connect(), b"well\n") == b"WELL\n"


def test_a_master_that_was_away_kills_nobody_for_it(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2, request_timeout=2).serving()
    workers = set(server.workers())
    with begin(server, b"3\n") as client:
        os.kill(server.pid, signal.SIGSTOP)
        assert client.recv(100) == b"slept 3\n"
        with server.connect() as other:
            other.sendall(b"0.5\n")
            os.kill(server.pid, signal.SIGCONT)
            server.said("warning the master was stopped or starved for [0-9.]+ s")
            assert other.recv(100) == b"slept 0.5\n"
    assert set(server.workers()) == workers
    assert server.status("test")["exits"] == {"recycled": 0, "crashed": 0, "timed_out": 0}


# Forks that fail.

FORK = "clone,clone3,fork,vfork"
needs_strace = pytest.mark.skipif(strace_missing() is not None, reason=str(strace_missing()))


@needs_strace
def test_forks_that_fail_are_tried_again_and_the_others_serve(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2).serving()
    [fork_server] = server.fork_servers()
    with failing(fork_server, FORK, "EAGAIN"):
        os.kill(server.workers()[0], signal.SIGKILL)
        # The first attempt is made at once, the second after half a second, the third after another second.
        server.said(r"error no new worker: fork: Resource temporarily unavailable service=test gen=1", 3)
        assert exchange(server.connect(), b"well\n") == b"WELL\n"
        assert server.status("test")["workers"]["total"] == 1
    settle(server, 2)


@needs_strace
def test_a_reload_without_a_process_to_spare_changes_nothing(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    with failing(server.pid, FORK, "EAGAIN"):
        with pytest.raises(ControlError, match="cannot start a fork server: Resource temporarily unavailable"):
            server.ask(command="reload")
        with pytest.raises(ControlError, match="Resource temporarily unavailable"):
            server.ask(command="upgrade")
    assert exchange(server.connect(), b"well\n") == b"WELL\n"
    assert server.ask(command="upgrade")


@needs_strace
def test_a_start_without_a_process_to_spare_ends_with_the_reason(tmp_path: Path, forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    server.stop()
    injected = ["strace", "-o", os.devnull, "-e", f"trace={FORK}", "-e", f"inject={FORK}:error=EAGAIN", *FORKD]
    with running(["forkd.toml"], tmp_path, program=injected) as failed:
        assert failed.exited() == 1
        failed.said("forkd: service test: cannot start a fork server: Resource temporarily unavailable")
