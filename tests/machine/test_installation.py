"""`forkd install` on a machine with a real systemd."""

from __future__ import annotations

import pytest

from tests.booted import Machine
from tests.machine.box import FORKD, ask, shown

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_a_newcomer_has_a_service_in_five_commands_and_can_take_it_away(machine: Machine) -> None:
    before = set(_listed(machine))
    assert "would put /etc/forkd.toml" in machine.run(FORKD, "install", "--systemd", "--dry-run").stdout
    assert set(_listed(machine)) == before
    assert "next: " in machine.run(FORKD, "install", "--systemd").stdout
    machine.run("systemctl", "enable", "--now", "forkd")
    assert "active (running)" in shown(machine)
    assert ask(machine, "127.0.0.1:7007", b"hello\n") == b"hello\n"
    # The program is now on the path, and finds its server without options.
    assert "echo" in machine.run("forkd", "status").stdout
    assert machine.run("forkd", "call", "127.0.0.1:7007", "hello").stdout == "hello\n"
    machine.run("systemctl", "reload", "forkd")
    assert "serving echo on 127.0.0.1:7007" in machine.journal("--unit=forkd")
    assert "nothing to do" in machine.run(FORKD, "install", "--systemd").stdout

    refused = machine.run("forkd", "install", "--systemd", "--undo", check=False)
    assert refused.returncode == 1
    assert "systemctl disable --now forkd.service" in refused.stderr
    machine.run("systemctl", "disable", "--now", "forkd.service")
    machine.run(FORKD, "install", "--systemd", "--undo")
    assert set(_listed(machine)) - before == set()
    assert machine.show("forkd", "LoadState") == "not-found"


@pytest.mark.parametrize("closed", ["/opt/forkd", "/opt/forkd/bin/forkd", "/opt/forkd/pyvenv.cfg"])
def test_a_program_that_the_service_could_not_run_is_not_installed(machine: Machine, closed: str) -> None:
    before = set(_listed(machine))
    mode = machine.run("stat", "--format=%a", closed).stdout.strip()
    machine.run("chmod", "go-rwx", closed)
    try:
        refused = machine.run(FORKD, "install", "--systemd", check=False)
    finally:
        machine.run("chmod", mode, closed)
    assert refused.returncode == 1
    assert "could not run /opt/forkd/bin/forkd" in refused.stderr
    assert "python3 -m venv /opt/forkd" in refused.stderr
    assert set(_listed(machine)) == before


def test_a_unit_that_hides_the_installed_one_is_told(machine: Machine) -> None:
    machine.write("/etc/systemd/system/forkd.service", "[Service]\nExecStart=/bin/true\n")
    said = machine.run(FORKD, "install", "--systemd").stderr
    assert "systemd reads /etc/systemd/system/forkd.service instead of" in said


def _listed(machine: Machine) -> list[str]:
    return machine.run("find", "/etc", "/usr/local", "-name", "*forkd*").stdout.split()
