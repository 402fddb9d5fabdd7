"""The README, the tutorial and how-to guides, followed to the letter; tests/machine does what needs systemd.

The pages use fixed ports, so the commands run in a network namespace of their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import netns
from tests.console import Command, File, Terminal, ending, for_machine, steps
from tests.server import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Terminal]:
    """Yields a terminal in an empty folder, with this Python's `forkd` on the path."""
    if reason := netns.missing():
        pytest.skip(reason)
    runtime, folder = tmp_path / "run", tmp_path / "reader"
    runtime.mkdir()
    folder.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RUNTIME_DIRECTORY": str(runtime), "COLUMNS": "120"}
    with (
        netns.namespace() as here,
        ending(Terminal(str(folder), environment, lambda argv: here.command(*argv))) as terminal,
    ):
        yield terminal
    assert list(runtime.iterdir()) == []


def test_the_tutorial_can_be_followed(reader: Terminal) -> None:
    page, _ = for_machine((ROOT / "docs/tutorial.md").read_text())
    reader.follow(page)
    commands = {" ".join(each.split()[:2]) for each in reader.typed}
    assert {"forkd run", "forkd call", "forkd check", "forkd status", "forkd reload", "forkd load"} <= commands


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_the_first_page_can_be_followed(reader: Terminal, name: str) -> None:
    page = steps((ROOT / name).read_text())
    reader.follow([each for each in page if isinstance(each, File) or not each.text.startswith("sudo ")])
    assert [each.split()[1] for each in reader.typed] == ["run", "call"]


def test_the_readmes_test_passes(reader: Terminal) -> None:
    page = steps((ROOT / "README.md").read_text())
    reader.follow([each for each in page if isinstance(each, File)])
    reader.follow([Command("python -m pytest -q test_shouting.py", ("...", "1 passed in ..."), 0)])


@pytest.mark.parametrize("name", ["choose-workers", "test-your-service", "write-a-framing", "write-a-service"])
def test_a_guide_can_be_followed(reader: Terminal, name: str) -> None:
    page = steps((ROOT / f"docs/how-to/{name}.md").read_text())
    reader.follow(page)
    if any(isinstance(each, File) and each.path.startswith("test_") for each in page):
        reader.follow([Command("python -m pytest -q", ("...", "... passed in ..."), 0)])
