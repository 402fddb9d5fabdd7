"""The README's and the tutorial's steps for systemd, followed to the letter on a machine that has it."""

from __future__ import annotations

import pytest

from tests.booted import Machine
from tests.console import Command, File, Terminal, ending, for_machine, steps
from tests.machine.box import FORKD, ask
from tests.server import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

# Without a network pip cannot install anything: the machine already has the result of these two.
DONE = {"sudo python3 -m venv /opt/forkd", "sudo /opt/forkd/bin/pip install forkd-server"}
FOLDER = "/tmp/reader"  # a folder of the throw-away machine


@pytest.fixture
def reader(machine: Machine) -> Terminal:
    """A terminal in an empty folder of a machine where forkd was never installed. `sudo` works."""
    machine.run(FORKD, "install", "--systemd", "--undo", check=False)
    machine.run("rm", "-rf", FOLDER)
    machine.run("mkdir", FOLDER)

    def inside(argv: list[str]) -> list[str]:
        *shell, script = argv
        return machine.command("env", "--chdir=/tmp", *shell, f'sudo() {{ "$@"; }}\n{script}')

    return Terminal(FOLDER, {}, inside, root=machine.root, done=DONE)


def test_the_tutorial_can_be_followed(machine: Machine, reader: Terminal) -> None:
    before, page = for_machine((ROOT / "docs/tutorial.md").read_text())
    with ending(reader):
        reader.follow([each for each in before if isinstance(each, File)])
        reader.follow(page)
    assert set(reader.typed) >= DONE
    assert machine.show("forkd", "LoadState") == "not-found"


def test_the_readme_can_be_followed(machine: Machine, reader: Terminal) -> None:
    page = steps((ROOT / "README.md").read_text())
    with ending(reader):
        reader.follow([each for each in page if isinstance(each, Command) and each.text.startswith("sudo ")])
    assert len(reader.typed) == 4
    assert set(reader.typed) >= DONE
    assert ask(machine, "127.0.0.1:7007", b"hello\n") == b"hello\n"
