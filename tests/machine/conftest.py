"""One machine for all tests that need a systemd of their own, with a clean forkd for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.booted import Machine, booted, missing

_CLEAN = """
    systemctl kill --signal=KILL 'forkd*.service'
    systemctl stop 'forkd*.socket' 'forkd*.service'
    systemctl disable forkd.service forkd.socket
    rm -rf /etc/forkd /etc/forkd.toml* /etc/systemd/system/forkd* /run/systemd/system/forkd*
    rm -rf /var/lib/forkd* /var/lib/private/forkd* /var/log/forkd* /var/log/private/forkd*
    systemctl daemon-reload
    systemctl reset-failed
    journalctl --rotate
    journalctl --vacuum-time=1us
    true
"""


@pytest.fixture(scope="session")
def booted_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if reason := missing():
        pytest.skip(reason)
    with booted(tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@pytest.fixture
def machine(booted_machine: Machine) -> Iterator[Machine]:
    """A machine with forkd in /opt/forkd, but none running or set up."""
    yield booted_machine
    booted_machine.run("sh", "-c", _CLEAN)
