"""forkd under a service manager: its messages, its watchdog, and the sockets that survive a restart."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkd.errors import ControlError
from tests.live.test_life import at_gate, begin
from tests.manager import Manager, managed
from tests.server import HANDLERS, Server, connect, exchange, until

FIGURES = r"1 service, 1 worker, \d busy, \d+ requests?"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(str(tmp_path / "notify"))
    yield found
    found.close()


def write(
    folder: Path, app: str = "small:shout", *, listen: str = '"127.0.0.1:0"', master: str = "", **keys: object
) -> None:
    keys = {"workers": 1, **keys}
    lines = "\n".join(f"{key} = {value}" for key, value in keys.items())
    (folder / "forkd.toml").write_text(
        f'[master]\ncontrol = "{folder}/control.sock"\n{master}\n'
        f'[service.test]\napp = "{app}"\npath = "{HANDLERS}"\nlisten = [{listen}]\n{lines}\n'
    )


def said(manager: Manager, *keys: str) -> list[str]:
    """Returns the lines sent with these keys, in order."""
    return [line for message in manager.messages for line in message if line.partition("=")[0] in keys]


# Its life.


def test_it_is_ready_when_it_serves_and_says_who_it_is(manager: Manager, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    write(tmp_path, "gate:shout")
    with managed(manager, tmp_path) as server:
        gate = at_gate(tmp_path / "gate")
        manager.said("EXTEND_TIMEOUT_USEC=15000000", 3)
        manager.said("STATUS=starting: 1 service, 0 workers, 0 busy, 0 requests")
        assert said(manager, "READY") == []
        os.close(gate)
        server.serving()
        manager.said("READY=1")
        manager.said(f"STATUS={FIGURES}")
        manager.stored("forkd=127.0.0.1%3A0=test")
        assert set(manager.senders) == {server.pid}
        extended = len(said(manager, "EXTEND_TIMEOUT_USEC"))
        assert exchange(server.connect(), b"x\n") == b"X\n"
        manager.said("STATUS=1 service, 1 worker, 0 busy, 1 request")
        assert len(said(manager, "EXTEND_TIMEOUT_USEC")) == extended, "nothing is in progress now"
        assert server.stop() == 0
        assert said(manager, "STOPPING", "STATUS")[-3:] == ["STOPPING=1", "STATUS=stopping", "STATUS=stopped"]
        assert manager.barriers == 2, "expected at the start (for the store) and at the end"
        server.gone()


def test_a_reload_and_one_that_fails(manager: Manager, tmp_path: Path) -> None:
    write(tmp_path)
    with managed(manager, tmp_path) as server:
        server.serving()
        manager.said("READY=1")
        manager.forget()
        server.ask(command="reload")
        manager.said("READY=1")
        begun, when, ready = said(manager, "RELOADING", "MONOTONIC_USEC", "READY")
        assert (begun, ready) == ("RELOADING=1", "READY=1")
        assert re.fullmatch(r"MONOTONIC_USEC=\d+", when)
        manager.forget()
        write(tmp_path, "small:absent")
        with pytest.raises(ControlError, match="absent"):
            server.ask(command="reload")
        manager.said("READY=1")
        assert said(manager, "RELOADING", "READY") == ["RELOADING=1", "READY=1"]
        failed = rf"STATUS={FIGURES}; last reload failed: forkd\.toml:\d+: service\.test\.app: .*'absent'.*"
        manager.said(failed)
        write(tmp_path, "small:shout", workers=-1)
        manager.forget()
        with pytest.raises(ControlError, match="workers"):
            server.ask(command="reload")
        manager.said("READY=1")
        assert said(manager, "RELOADING", "READY") == ["RELOADING=1", "READY=1"]
        [match] = manager.said(rf"STATUS=({FIGURES}); last reload failed: forkd\.toml:\d+: service\.test\.workers: .*")
        assert exchange(server.connect(), b"x\n") == b"X\n"
        again = manager.said(r"STATUS=.* 1 request; last reload failed: .*")
        assert match[1] not in again[0][0]
        write(tmp_path)
        server.ask(command="reload")
        manager.said(f"STATUS={FIGURES}", 1)
        assert set(manager.senders) == {server.pid}


def test_an_upgrade_keeps_everything(manager: Manager, tmp_path: Path) -> None:
    write(tmp_path, listen=f'"127.0.0.1:0", "unix:{tmp_path}/door.sock"')
    with managed(manager, tmp_path, WATCHDOG_USEC="1000000") as server:
        server.serving(2)
        manager.said("READY=1")
        until(lambda: len(manager.names()) == 2)
        stored = manager.names()
        manager.forget()
        server.ask(command="upgrade")
        manager.said("RELOADING=1")
        manager.said("READY=1")
        manager.forget()
        manager.said("WATCHDOG=1", 3)
        assert manager.names() == stored
        assert not manager.given(r"forkd=(?!probe).*")
        assert set(manager.senders) == {server.pid}
        assert server.stop() == 0
        assert len(manager.names()) == 2


@pytest.mark.slow
def test_a_drain_that_takes_its_time_is_given_it(manager: Manager, tmp_path: Path) -> None:
    write(tmp_path, "small:nap", master="stop_timeout = 8")
    with managed(manager, tmp_path) as server:
        server.serving()
        with begin(server, b"2.5\n") as client:
            manager.forget()
            server.kill(signal.SIGTERM)
            asked = [int(match[1]) for match in manager.said(r"EXTEND_TIMEOUT_USEC=(\d+)", 3)]
            assert all(5_000_000 < each <= 13_000_000 for each in asked)
            assert asked == sorted(asked, reverse=True), "each must ask only for the time left"
            manager.said(r"STATUS=stopping: 1 service, 1 worker, 1 busy, 0 requests")
            assert client.recv(100) == b"slept 2.5\n"
        assert server.exited() == 0


# A start that fails.


@pytest.mark.parametrize("what", ["address", "settings", "file", "application", "worker"])
def test_the_reason_why_it_does_not_start_is_told(manager: Manager, tmp_path: Path, what: str) -> None:
    expected = {
        "address": (1, errno.EADDRINUSE, r"service test: cannot listen on .*: another process listens there.*"),
        "settings": (78, errno.EINVAL, r"forkd\.toml:\d+: service\.test\.workers: .*; forkd\.toml:\d+: .*backlog.*"),
        "file": (78, errno.EINVAL, r"forkd\.toml: .*"),
        "application": (78, None, r"forkd\.toml:\d+: service\.test\.app: .*'absent'.*"),
        "worker": (1, None, r"service test: .*no database today.*"),
    }[what]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        match what:
            case "address":
                write(tmp_path, listen=f'"127.0.0.1:{taken.getsockname()[1]}"')
            case "settings":
                write(tmp_path, workers=-1, backlog=-1)
            case "application":
                write(tmp_path, "small:absent")
            case "worker":
                write(tmp_path, "lives:fails")
        status, number, reason = expected
        with managed(manager, tmp_path) as server:
            assert server.exited() == status
            assert re.fullmatch(f"STATUS={reason}", said(manager, "STATUS")[-1])
            assert said(manager, "ERRNO") == ([f"ERRNO={number}"] if number else [])
            assert said(manager, "READY") == []
            assert manager.barriers, "the message must be read before its sender exits"
            assert manager.names() == []


# The watchdog.


def test_the_watchdog_is_told_while_the_master_turns(manager: Manager, tmp_path: Path) -> None:
    write(tmp_path)
    with managed(manager, tmp_path, WATCHDOG_USEC="400000") as server:
        server.serving()
        manager.said("WATCHDOG=1", 3)
        os.kill(server.pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        manager.forget()
        with pytest.raises(AssertionError):
            manager.said("WATCHDOG=1", limit=1)
        os.kill(server.pid, signal.SIGCONT)
        manager.said("WATCHDOG=1")
        assert server.stop() == 0


def test_the_watchdog_of_another_process_is_left_alone(manager: Manager, tmp_path: Path) -> None:
    write(tmp_path)
    with managed(manager, tmp_path, WATCHDOG_USEC="400000", WATCHDOG_PID="1") as server:
        server.serving()
        manager.said("READY=1")
        assert server.stop() == 0
        assert said(manager, "WATCHDOG") == []


@pytest.mark.slow
def test_the_watchdog_is_told_no_more_when_a_pool_is_lost(manager: Manager, tmp_path: Path) -> None:
    """The pool is lost because a worker cannot boot. At a start, that would have been reported."""
    write(tmp_path, "lives:told", boot_timeout=1)
    with managed(manager, tmp_path, WATCHDOG_USEC="400000") as server:
        server.serving()
        (tmp_path / "broken").touch()
        os.kill(server.workers()[0], signal.SIGKILL)
        server.said("no worker serves test; watchdog pings suspended")
        manager.said("STATUS=1 service, 0 workers, 0 busy, 0 requests; test has no worker")
        manager.forget()
        with pytest.raises(AssertionError):
            manager.said("WATCHDOG=1", limit=1)
        (tmp_path / "broken").unlink()
        manager.said("WATCHDOG=1")
        assert exchange(server.connect(), b"x\n") == b"x\n"


def test_a_pool_that_is_busy_or_rests_is_well(manager: Manager, tmp_path: Path) -> None:
    write(tmp_path, "small:nap", boot_timeout=0.5)
    with managed(manager, tmp_path, WATCHDOG_USEC="400000") as server:
        server.serving()
        with begin(server, b"1\n") as client:
            manager.forget()
            manager.said("WATCHDOG=1", 4)
            assert client.recv(100) == b"slept 1\n"
        server.kill(signal.SIGWINCH)
        until(lambda: server.workers() == [])
        manager.forget()
        manager.said("WATCHDOG=1", 4)
        server.ask(command="reload")
        manager.said("READY=1")
        assert exchange(server.connect(), b"0\n") == b"slept 0\n"


# What others learn of the manager.


def test_nothing_of_the_managers_reaches_an_application(manager: Manager, tmp_path: Path) -> None:
    write(tmp_path, "small:environment")
    with managed(manager, tmp_path, WATCHDOG_USEC="10000000", LISTEN_FDS="1", LISTEN_PID="1") as server:
        server.serving()
        names = set(exchange(server.connect(), b"?\n").decode().split())
        assert "PATH" in names
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & names


def test_a_manager_that_is_not_there_is_not_missed(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    write(tmp_path, listen=f'"unix:{tmp_path}/door.sock"')
    with managed(manager, tmp_path, WATCHDOG_USEC="400000") as server:
        server.serving()
        manager.said("READY=1")
        manager.close()
        (tmp_path / "notify").unlink()
        server.ask(command="reload")
        assert exchange(server.connect(), b"x\n") == b"X\n"
        assert server.stop() == 0
        assert not (tmp_path / "door.sock").exists()


# A restart.


def restarted(manager: Manager, server: Server) -> None:
    """Stops the first server, as a restart does."""
    assert server.stop() == 0
    server.gone()


@pytest.mark.parametrize("worker", ["sync", "event"])
def test_nobody_is_refused_in_a_restart(manager: Manager, tmp_path: Path, worker: str) -> None:
    path = tmp_path / "door.sock"
    name = f"unix:@forkd-test-restart-{os.getpid()}"
    write(tmp_path, listen=f'"127.0.0.1:0", "[::1]:0", "unix:{path}", "{name}"', workers=4, worker=f'"{worker}"')
    with managed(manager, tmp_path) as server:
        addresses = server.serving(4).addresses
        until(lambda: len(manager.names()) == 4)
        restarted(manager, server)
    assert len(manager.names()) == 4
    waiting = [connect(f"unix:{path}"), connect(name), *(_calling(address) for _, address in addresses[:2])]
    manager.forget()
    with managed(manager, tmp_path) as server:
        assert server.serving(4).addresses == addresses
        for client in waiting:
            assert exchange(client, b"x\n") == b"X\n"
        until(lambda: len(manager.names()) == 4)
        assert not manager.given(r"forkd=(?!probe).*"), "sockets that came back are still stored"
        restarted(manager, server)
    manager.empty()  # as after a stop
    with pytest.raises(ConnectionRefusedError):
        connect(addresses[0][1])
    with managed(manager, tmp_path) as server:
        server.serving(4)
        assert exchange(connect(f"unix:{path}"), b"x\n") == b"X\n"


def _calling(address: str) -> socket.socket:
    """Returns a client whose connection is still being set up and is dropped while the tap is closed."""
    host, _, port = address.rpartition(":")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setblocking(False)
    assert sock.connect_ex((host.strip("[]"), int(port))) == errno.EINPROGRESS
    sock.settimeout(10)
    return sock


@pytest.mark.parametrize("worker", ["sync", "event"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_came_through_half_a_closed_tap_is_served_by_the_next(
    manager: Manager, tmp_path: Path, worker: str, family: socket.AddressFamily
) -> None:
    """Such a connection has inherited the closed tap, so nothing that its client sends would reach us."""
    write(tmp_path, listen='"*:0"', worker=f'"{worker}"')
    with managed(manager, tmp_path) as server:
        [(_, address)] = server.serving().addresses
        manager.stored("forkd=*%3A0=test")
        restarted(manager, server)
    with socket.socket(family) as near:
        level, hops = (socket.IPPROTO_IP, socket.IP_TTL)
        if family == socket.AF_INET6:
            level, hops = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        near.settimeout(10)
        near.setsockopt(level, hops, 255)
        near.connect(("127.0.0.1" if family == socket.AF_INET else "::1", int(address.rpartition(":")[2])))
        near.setsockopt(level, hops, 64)
        with managed(manager, tmp_path) as server:
            server.serving()
            assert exchange(near, b"x\n") == b"X\n"
            for _ in range(3):
                assert exchange(server.connect(), b"y\n") == b"Y\n"


def test_a_stored_socket_is_neither_named_nor_counted(manager: Manager, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        write(tmp_path, listen='"systemd:0", "127.0.0.1:0"')
        with managed(manager, tmp_path, passed=[("forkd.socket", given.fileno())]) as server:
            addresses = server.serving(2).addresses
            manager.stored("forkd=127.0.0.1%3A0=test")
            restarted(manager, server)
        with managed(manager, tmp_path, passed=[("forkd.socket", given.fileno())]) as server:
            assert server.serving(2).addresses == addresses
        write(tmp_path, listen='"systemd:1"')
        with managed(manager, tmp_path, passed=[("forkd.socket", given.fileno())]) as server:
            assert server.exited() == 1
            assert server.said(r"no socket named '1' \(it passed: forkd\.socket\)")


def test_a_socket_that_nobody_wants_any_more_is_given_back(manager: Manager, tmp_path: Path) -> None:
    write(tmp_path, listen='"127.0.0.1:0", "[::1]:0"')
    with managed(manager, tmp_path) as server:
        addresses = [address for _, address in server.serving(2).addresses]
        until(lambda: len(manager.names()) == 2)
        restarted(manager, server)
    write(tmp_path, listen='"[::1]:0"')
    with managed(manager, tmp_path) as server:
        server.serving()
        manager.stored("forkd=[%3A%3A1]%3A0=test")
        with pytest.raises(ConnectionRefusedError):
            connect(addresses[0])
        assert exchange(connect(addresses[1]), b"x\n") == b"X\n"


def test_who_called_before_the_stop_is_served_by_the_first(manager: Manager, tmp_path: Path) -> None:
    """The first server serves a unix socket's queue as it is at the stop; the second serves later connections."""
    path = tmp_path / "door.sock"
    write(tmp_path, "small:pid", listen=f'"unix:{path}"')
    with managed(manager, tmp_path) as server:
        server.serving()
        until(manager.names)
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        early = [connect(f"unix:{path}") for _ in range(5)]
        for each in early:
            each.sendall(b"?\n")
        server.kill(signal.SIGTERM)
        manager.said("STOPPING=1")
        until(lambda: manager.names() == [f"forkd=unix%3A{path}={path.stat().st_ino}"] and manager.given(".*unix.*", 2))
        late = connect(f"unix:{path}")
        os.kill(worker, signal.SIGCONT)
        assert [int(exchange(each, b"")) for each in early] == [worker] * 5
        assert server.exited() == 0
    with managed(manager, tmp_path) as server:
        server.serving()
        assert int(exchange(late, b"?\n")) == server.workers()[0]


def test_a_master_that_was_killed_leaves_its_listeners_with_their_queues(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "door.sock"
    write(tmp_path, listen=f'"127.0.0.1:0", "unix:{path}"')
    with managed(manager, tmp_path) as server:
        addresses = [address for _, address in server.serving(2).addresses]
        until(lambda: len(manager.names()) == 2)
        server.stop(signal.SIGKILL)
        server.gone()
    clients = [connect(address) for address in addresses]
    with managed(manager, tmp_path) as server:
        server.serving(2)
        assert [exchange(client, b"x\n") for client in clients] == [b"X\n"] * 2
        assert server.stop() == 0
        server.gone()
