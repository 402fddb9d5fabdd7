"""Shared by the tests in a booted machine: services to run there, and ways to set up forkd for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.booted import SHARE, Machine
from tests.load import Load, Tally
from tests.server import exchange, until

FORKD = "/opt/forkd/bin/forkd"
LEDGER = "127.0.0.1:7100"
LOCAL = "unix:/run/forkd/ledger.sock"
NAP = "127.0.0.1:7200"


def service(name: str, app: str, listen: str, workers: int = 2, more: str = "") -> str:
    """Returns the settings of a service of tests/handlers or of forkd; `listen` is a TOML value."""
    path = "" if app.startswith("forkd.") else f'path = "{SHARE}/handlers"\n'
    return f'[service.{name}]\napp = "{app}"\n{path}listen = {listen}\nworkers = {workers}\n{more}\n'


LEDGER_SERVICE = service("ledger", "ledger:answer", f'["{LEDGER}", {{ address = "{LOCAL}", mode = "0666" }}]', 4)
NAP_SERVICE = service("nap", "small:nap", f'"{NAP}"')


def install(machine: Machine, ports: str = "any") -> None:
    machine.run(FORKD, "install", "--systemd", "--ports", ports)


def drop_in(machine: Machine, text: str, unit: str = "forkd.service") -> None:
    """Adds lines to a unit, as an administrator would with systemctl edit --runtime."""
    machine.write(f"/run/systemd/system/{unit}.d/test.conf", text)
    machine.run("systemctl", "daemon-reload")


def serve(machine: Machine, settings: str, *, ports: str = "any", lines: str = "") -> None:
    """Starts forkd through systemd with these settings, and with `lines` added to its [Service]."""
    install(machine, ports)
    machine.write("/etc/forkd.toml", settings)
    if lines:
        drop_in(machine, f"[Service]\n{lines}\n")
    machine.run("systemctl", "start", "forkd")


def ask(machine: Machine, address: str, request: bytes) -> bytes:
    """Sends `request` on a new connection, and returns everything that comes back."""
    return exchange(machine.connect(address), request)


def status(machine: Machine, *options: str) -> Any:
    return json.loads(machine.run(FORKD, "status", "--json", *options).stdout)


def shown(machine: Machine, unit: str = "forkd") -> str:
    """Returns what systemctl status shows of a unit."""
    return machine.run("systemctl", "status", "--no-pager", "--full", unit, check=False).stdout


def ended(machine: Machine, unit: str = "forkd.service") -> None:
    """Waits until no process of the unit is left."""
    until(lambda: not machine.processes(unit), f"no process of {unit}")


@contextmanager
def loaded(machine: Machine, address: str, shape: str = "single", clients: int = 4) -> Iterator[Tally]:
    """Runs clients that check every byte, for the length of the block; fills in the tally at its end."""
    if address.startswith("unix:/"):
        address = f"unix:{machine.root}{address.removeprefix('unix:')}"
    load = Load(address, shape, clients, before=machine.in_network())
    tally = Tally()
    try:
        yield tally
        tally.add(load.finish())
    finally:
        load.kill()
