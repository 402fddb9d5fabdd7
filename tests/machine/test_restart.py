"""`systemctl restart` under load: the listening sockets outlive the process, so no client is refused.

The environment variable RESTARTS is the number of restarts: 50 in `make machine`, otherwise 5.
"""

from __future__ import annotations

import os

import pytest

from tests.booted import Machine
from tests.machine.box import LEDGER, LOCAL, drop_in, install, loaded, service

RESTARTS = int(os.environ.get("RESTARTS", "5"))
TCP, UNIX = f'"{LEDGER}"', f'{{ address = "{LOCAL}", mode = "0666" }}'

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + 5 * RESTARTS)]


def restart(machine: Machine) -> None:
    # Without this, systemd would refuse: its limit on starts counts these as well as failed ones.
    machine.run("systemctl", "reset-failed", "forkd.service")
    machine.run("systemctl", "restart", "forkd")


@pytest.mark.parametrize(("worker", "shape"), [("sync", "single"), ("sync", "persistent"), ("event", "persistent")])
def test_a_restart_refuses_and_resets_nobody_at_sockets_of_forkds_own(
    machine: Machine, worker: str, shape: str
) -> None:
    install(machine)
    settings = service("ledger", "ledger:answer", f"[{TCP}, {UNIX}]", 8, f'worker = "{worker}"')
    machine.write("/etc/forkd.toml", settings)
    machine.run("systemctl", "start", "forkd")
    with loaded(machine, LEDGER, shape) as tcp, loaded(machine, LOCAL, shape) as unix:
        for _ in range(RESTARTS):
            restart(machine)
    for tally in (tcp, unix):
        assert tally.losses("crossed") == {}, tally.counts
    # A TCP client that calls while the tap is closed retries after 1 s, 2 s, 4 s: longer than between restarts.
    assert tcp.counts["answered"] > 0
    assert unix.counts["answered"] >= 4 * RESTARTS


@pytest.mark.parametrize("shape", ["single", "persistent"])
def test_a_restart_refuses_and_resets_nobody_at_sockets_of_systemds(machine: Machine, shape: str) -> None:
    install(machine, "passed")
    drop_in(machine, "[Socket]\nListenStream=/run/forkd-echo.sock\n", "forkd.socket")
    machine.write("/etc/forkd.toml", service("ledger", "ledger:answer", '"systemd:echo"', 8))
    machine.run("systemctl", "start", "forkd.socket", "forkd.service")
    with (
        loaded(machine, "127.0.0.1:7007", shape) as tcp,
        loaded(machine, "unix:/run/forkd-echo.sock", shape) as unix,
    ):
        for _ in range(RESTARTS):
            restart(machine)
    for tally in (tcp, unix):
        assert tally.losses("crossed") == {}, tally.counts
        assert tally.counts["answered"] >= 4 * RESTARTS
