"""forkd as a service under a real systemd: started, confined, reloaded, watched, ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.booted import Machine
from tests.machine.box import (
    FORKD,
    LEDGER,
    LEDGER_SERVICE,
    LOCAL,
    NAP,
    NAP_SERVICE,
    ask,
    ended,
    install,
    loaded,
    serve,
    service,
    shown,
    status,
)
from tests.server import alive, title, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

# The address of daytime, the highest exposure allowed (systemd-analyze security), and what the settings listen on.
PORTS = {
    "any": ("127.0.0.1:13", 1.6, ["127.0.0.1:7007", "127.0.0.1:13", "unix:/run/forkd/local.sock"]),
    "high": ("127.0.0.1:7013", 1.1, ["127.0.0.1:7007", "127.0.0.1:7013", "unix:/run/forkd/local.sock"]),
    "passed": ("127.0.0.1:13", 0.4, ["systemd:echo", "systemd:daytime", "systemd:local"]),
}


@pytest.mark.parametrize("ports", PORTS)
def test_it_serves_and_is_hardly_exposed(machine: Machine, ports: str) -> None:
    daytime, most, listen = PORTS[ports]
    local = "unix:/run/forkd/local.sock"
    install(machine, ports)
    names = {"echo": "echo", "daytime": "daytime", "local": "echo"}
    machine.write(
        "/etc/forkd.toml",
        "".join(
            service(name, f"forkd.services:{app}", f'"{where}"', 1)
            for (name, app), where in zip(names.items(), listen, strict=True)
        ),
    )
    if ports == "passed":
        local = "unix:/run/forkd-local.sock"
        for name, stream in (("daytime", daytime), ("local", local.removeprefix("unix:"))):
            lines = f"[Socket]\nService=forkd.service\nFileDescriptorName={name}\nListenStream={stream}\n"
            machine.write(f"/etc/systemd/system/forkd-{name}.socket", lines)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "forkd-daytime.socket", "forkd-local.socket")
    machine.run("systemctl", "enable", "--now", "forkd")
    assert ask(machine, "127.0.0.1:7007", b"hello\n") == b"hello\n"
    assert re.search(rb"\d\d:\d\d:\d\d", ask(machine, daytime, b""))
    assert ask(machine, local, b"hello\n") == b"hello\n"
    told = machine.run("systemd-analyze", "security", "--no-pager", "forkd.service").stdout
    assert float(re.findall(r"Overall exposure level for \S+: ([0-9.]+)", told)[0]) <= most, told
    pids = machine.processes()
    assert len(pids) == 7
    for pid in pids:
        kernel = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^Uid:(\t[1-9]\d*){4}$", kernel, re.M), kernel
        assert re.search(r"^NoNewPrivs:\t1$", kernel, re.M)
        rights = 1 << 10 if ports == "any" and title(pid) == "forkd: master" else 0  # CAP_NET_BIND_SERVICE
        assert re.search(rf"^CapEff:\t{rights:016x}$", kernel, re.M), (title(pid), kernel)
    text = shown(machine)
    assert "active (running)" in text
    assert re.search(r'Status: ".*3 services, 3 workers, \d busy, \d+ requests', text), text


def test_a_reload_tells_whether_the_new_generation_serves(machine: Machine) -> None:
    serve(machine, LEDGER_SERVICE)
    main = machine.main()
    with loaded(machine, LEDGER) as tally:
        machine.run("systemctl", "reload", "forkd")
        assert status(machine)["services"]["ledger"]["generation"] == 2
        machine.write("/etc/forkd.toml", service("ledger", "small:nothing", f'"{LEDGER}"'))
        broken = machine.run("systemctl", "reload", "forkd", check=False)
        assert broken.returncode != 0
        assert "nothing" in shown(machine)
        machine.write("/etc/forkd.toml", LEDGER_SERVICE.replace("workers", "wrokers"))
        assert machine.run("systemctl", "reload", "forkd", check=False).returncode != 0
        text = shown(machine)
        assert "active (running)" in text
        assert "wrokers" in text
        machine.write("/etc/forkd.toml", LEDGER_SERVICE)
        assert status(machine)["services"]["ledger"]["generation"] == 2
        machine.run("systemctl", "reload", "forkd")
    assert machine.main() == main
    assert tally.losses() == {}
    assert tally.counts["answered"] > 100


def test_a_master_that_was_killed_is_back_by_itself_and_its_workers_finish(machine: Machine) -> None:
    serve(machine, LEDGER_SERVICE + NAP_SERVICE)
    main = machine.main()
    with loaded(machine, LEDGER) as tally, loaded(machine, LOCAL, "persistent") as local:
        with machine.connect(NAP) as client:
            client.sendall(b"0.5\n")
            until(lambda: status(machine)["services"]["nap"]["workers"]["busy"] == 1, "a request in hand")
            os.kill(main, signal.SIGKILL)
            assert client.recv(100) == b"slept 0.5\n"
        until(lambda: machine.show("forkd", "ActiveState") == "active" and machine.main() not in (0, main), "a new one")
    assert machine.show("forkd", "NRestarts") == "1"
    assert tally.losses() == {}
    assert local.losses("crossed") == {}
    for address in (LEDGER, LOCAL):
        assert ask(machine, address, b"1 x\n").startswith(b"1 ")
    until(lambda: len(machine.processes()) == 9, "no process but the new ones")


def test_a_master_that_hangs_is_brought_back_by_the_watchdog(machine: Machine) -> None:
    serve(machine, LEDGER_SERVICE, lines="WatchdogSec=1")
    main = machine.main()
    os.kill(main, signal.SIGSTOP)
    until(lambda: machine.show("forkd", "NRestarts") == "1", "started again")
    until(lambda: machine.show("forkd", "ActiveState") == "active", "serving again")
    assert not alive(main)
    assert "watchdog" in machine.journal("--unit=forkd")
    assert ask(machine, LEDGER, b"1 x\n").startswith(b"1 ")
    until(lambda: len(machine.processes()) == 6, "no process but the new ones")


def test_a_healthy_master_is_let_be_by_the_watchdog(machine: Machine) -> None:
    serve(machine, LEDGER_SERVICE, lines="WatchdogSec=1")
    main = machine.main()
    fed = machine.show("forkd", "WatchdogTimestampMonotonic")
    for _ in range(4):
        until(lambda: machine.show("forkd", "WatchdogTimestampMonotonic") != fed, "the watchdog fed again")  # noqa: B023
        fed = machine.show("forkd", "WatchdogTimestampMonotonic")
    assert (machine.main(), machine.show("forkd", "NRestarts")) == (main, "0")


@pytest.mark.parametrize("ports", ["any", "passed"])
def test_wrong_settings_fail_at_once_and_are_not_tried_again(machine: Machine, ports: str) -> None:
    install(machine, ports)
    machine.write("/etc/forkd.toml", LEDGER_SERVICE.replace("workers", "wrokers"))
    assert machine.run("systemctl", "start", "forkd", check=False).returncode != 0
    assert (machine.show("forkd", "ActiveState"), machine.show("forkd", "NRestarts")) == ("failed", "0")
    assert machine.show("forkd", "ExecMainStatus") == "78"
    assert re.search(r"/etc/forkd\.toml:\d+: service\.ledger\.wrokers: ", shown(machine)), shown(machine)


def test_callers_at_a_socket_do_not_start_wrong_settings_for_ever(machine: Machine) -> None:
    install(machine, "passed")
    machine.write("/etc/forkd.toml", "no = [\n")
    machine.run("systemctl", "start", "forkd.socket")
    with machine.connect("127.0.0.1:7007") as client, pytest.raises(ConnectionResetError):
        client.recv(1)  # blocks until systemd gives up and closes the socket
    assert machine.show("forkd.socket", "ActiveState") == "failed"
    assert machine.show("forkd", "ActiveState") == "failed"


def test_a_stop_answers_what_is_in_hand_and_leaves_nothing(machine: Machine) -> None:
    serve(machine, LEDGER_SERVICE + NAP_SERVICE)
    with loaded(machine, LEDGER) as tally, loaded(machine, LOCAL, "persistent") as local:
        with machine.connect(NAP) as client:
            client.sendall(b"0.5\n")
            until(lambda: status(machine)["services"]["nap"]["workers"]["busy"] == 1, "a request in hand")
            machine.run("systemctl", "stop", "forkd")
            assert client.recv(100) == b"slept 0.5\n"
        assert machine.processes() == []
        assert machine.show("forkd", "Result") == "success"
        said = machine.journal("--unit=forkd")
        assert "illing" not in said
        assert "remains running" not in said
        assert not (machine.root / "run/forkd").exists()
    assert tally.losses("refused") == {}
    # Clients that came to the unix socket after the stop had begun waited in the queue for the next start.
    assert local.losses("refused", "crossed", "reset") == {}
    assert local.counts["reset"] <= 4
    assert tally.counts["answered"] > 100


def test_a_stop_ends_what_an_application_has_left_running(machine: Machine) -> None:
    serve(machine, service("litter", "litter:shout", f'"{LEDGER}"', 1))
    before = machine.processes()
    assert [title(pid) for pid in before].count("sleep 1000") == 2
    os.kill(machine.main(), signal.SIGKILL)
    until(lambda: machine.show("forkd", "NRestarts") == "1", "started again")
    until(lambda: machine.show("forkd", "ActiveState") == "active", "serving again")
    machine.run("systemctl", "stop", "forkd")
    assert machine.processes() == []
    assert not any(alive(pid) for pid in before)
    said = machine.journal("--unit=forkd")
    assert "a process that an application left running" in said
    assert "remains running" not in said.rpartition("Stopping")[2]


def test_two_instances_run_beside_each_other(machine: Machine) -> None:
    install(machine)
    for name, port in (("one", 7301), ("two", 7302)):
        machine.write(f"/etc/forkd/{name}.toml", service("pid", "small:shout", f'"127.0.0.1:{port}"'))
    machine.run("systemctl", "start", "forkd@one", "forkd@two")
    assert ask(machine, "127.0.0.1:7301", b"one\n") == b"ONE\n"
    assert ask(machine, "127.0.0.1:7302", b"two\n") == b"TWO\n"
    users = {Path(f"/proc/{machine.main(f'forkd@{name}.service')}").stat().st_uid for name in ("one", "two")}
    assert len(users) == 2
    assert 0 not in users
    for name in ("one", "two"):
        assert status(machine, "--config", f"/etc/forkd/{name}.toml")["master"]["config"] == f"/etc/forkd/{name}.toml"
        machine.run("systemctl", "reload", f"forkd@{name}")
    machine.run("systemctl", "stop", "forkd@one")
    assert machine.processes("forkd@one.service") == []
    assert ask(machine, "127.0.0.1:7302", b"two\n") == b"TWO\n"


@pytest.mark.parametrize("listen", ["systemd:shop", "systemd:0"])
@pytest.mark.parametrize("ports", ["any", "passed"])
def test_an_instance_is_started_by_who_calls_at_its_socket(machine: Machine, ports: str, listen: str) -> None:
    install(machine, ports)
    machine.write("/etc/forkd/shop.toml", service("shop", "small:shout", f'"{listen}"'))
    machine.run("systemctl", "enable", "--now", "forkd@shop.socket")
    assert machine.show("forkd@shop.service", "ActiveState") == "inactive"
    assert ask(machine, "unix:/run/forkd-shop.sock", b"hello\n") == b"HELLO\n"
    until(lambda: machine.show("forkd@shop.service", "ActiveState") == "active", "started")
    machine.run("systemctl", "disable", "--now", "forkd@shop.socket")


@pytest.mark.parametrize("ports", ["any", "passed"])
def test_an_application_gets_at_nothing_but_its_own(machine: Machine, ports: str) -> None:
    listen = f'"{LEDGER}"' if ports == "any" else '"systemd:echo"'
    serve(machine, service("attack", "attacker:attack", listen), ports=ports)
    address = LEDGER if ports == "any" else "127.0.0.1:7007"
    for when in (b"import\n", b"now\n"):
        found = json.loads(ask(machine, address, when))
        got = {attempt: outcome for attempt, outcome in found.items() if not outcome.startswith("refused")}
        assert got == {}
        assert len(found) > 10


def test_a_group_may_be_given_a_unix_socket(machine: Machine) -> None:
    local = f'{{ address = "{LOCAL}", mode = "0660", group = "www-data" }}'
    serve(machine, service("shout", "small:shout", local), lines="SupplementaryGroups=www-data")
    file = machine.root / "run/forkd/ledger.sock"
    assert file.stat().st_mode & 0o777 == 0o660
    assert file.group() == "www-data"


def test_what_can_be_called_from_a_machine_without_a_network_is_what_was_passed(machine: Machine) -> None:
    serve(machine, service("shout", "small:shout", '"systemd:echo"'), ports="passed")
    main = machine.main()
    ours, theirs = (Path(f"/proc/{pid}/ns/net").stat().st_ino for pid in (main, machine.pid))
    assert ours != theirs
    with machine.connect("127.0.0.1:7007") as client:
        assert client.family == socket.AF_INET
        client.sendall(b"hello\n")
        assert client.recv(100) == b"HELLO\n"


def test_a_forkd_is_upgraded_in_place(machine: Machine) -> None:
    serve(machine, service("daytime", "forkd.services:daytime", '"127.0.0.1:13"', 1))
    main = machine.main()
    machine.run(FORKD, "upgrade")
    assert machine.main() == main
    machine.write("/etc/forkd.toml", service("daytime", "forkd.services:daytime", '"127.0.0.1:14"', 1))
    began = time.monotonic()
    machine.run("systemctl", "reload", "forkd")
    assert time.monotonic() - began < 10
    assert ask(machine, "127.0.0.1:14", b"")
    ended_before = machine.show("forkd", "NRestarts")
    machine.run("systemctl", "stop", "forkd")
    ended(machine)
    assert ended_before == "0"


@pytest.mark.parametrize("unit", ["forkd", "forkd@shop"])
def test_its_log_file_is_rotated(machine: Machine, unit: str) -> None:
    if machine.run("sh", "-c", "command -v logrotate", check=False).returncode != 0:
        pytest.skip("needs the program logrotate")
    install(machine)
    name = unit.replace("@", "-")
    log = f"/var/log/{name}/forkd.log"
    settings = f'[master.log]\nfile = "{log}"\n' + service("remark", "small:remark", f'"{LEDGER}"', 1)
    machine.write("/etc/forkd/shop.toml" if "@" in unit else "/etc/forkd.toml", settings)
    machine.run("systemctl", "start", unit)
    assert ask(machine, LEDGER, b"WARNING before\n") == b"logged\n"
    machine.run("logrotate", "--force", "/etc/logrotate.d/forkd")

    def goes_on() -> bool:
        assert ask(machine, LEDGER, b"WARNING after\n") == b"logged\n"
        return "remark: after" in machine.run("cat", log, check=False).stdout

    until(goes_on, "records in a new log file")
    assert "remark: before" in machine.run("cat", f"{log}.1").stdout
