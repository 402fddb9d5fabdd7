"""The manual pages: generated from the program, complete, and valid for the programs that display them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from docs.tools import manual
from docs.tools.settings_page import TABLES
from forkd import errors
from forkd.cli.main import cli
from forkd.master import commands
from forkd.settings import config
from forkd.settings.schema import keys
from tests.server import ROOT

PAGES = ("forkd.1", "forkd.toml.5")


def sections(name: str) -> dict[str, list[str]]:
    """Returns the sections and subsections of a page, each with the tags of its entries, as displayed."""
    found: dict[str, list[str]] = {}
    lines = iter((ROOT / "man" / name).read_text().splitlines())
    for line in lines:
        if line.startswith((".SH", ".SS")):
            tags = found.setdefault(read(line[4:]).strip('"'), [])
        elif line == ".TP":
            tags.append(read(next(lines)))
    return found


def read(text: str) -> str:
    return re.sub(r"\\f[BIR]", "", text).replace(r"\-", "-")


@pytest.mark.parametrize("name", PAGES)
def test_the_page_matches_the_program(name: str) -> None:
    assert (ROOT / "man" / name).read_text() == manual.pages()[name], "run: make reference"


@pytest.mark.slow
def test_the_pages_are_written_to_the_given_folder(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "docs.tools.manual", str(tmp_path)], cwd=ROOT, check=True, timeout=30)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == manual.pages()


def test_the_sections_are_those_that_a_reader_looks_for() -> None:
    usual = ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "SIGNALS", "ENVIRONMENT", "FILES", "EXIT STATUS"]
    usual += ["EXAMPLES", "SEE ALSO"]
    assert [title for title in sections("forkd.1") if title.isupper()] == usual
    tables = ["[master]", "[master.log]", "[service.NAME]", "workers", "rpcbind"]
    assert list(sections("forkd.toml.5")) == ["NAME", "DESCRIPTION", *tables, "ADDRESSES", "EXAMPLE", "SEE ALSO"]


def test_every_command_is_there_with_every_option() -> None:
    page = sections("forkd.1")
    told = {
        title.split()[1]: [re.findall(r"(?<!\S)--?[a-z][\w-]*", tag) for tag in tags]
        for title, tags in page.items()
        if title.startswith("forkd ")
    }
    assert told == {
        name: [each.opts for each in command.params if isinstance(each, click.Option)]
        for name, command in cli.commands.items()
    }


def test_every_signal_and_every_exit_status_is_there() -> None:
    page = sections("forkd.1")
    assert page["SIGNALS"] == [each.name.removeprefix("SIG") for each in commands.COMMANDS]
    assert page["EXIT STATUS"] == [str(each.value) for each in errors.Exit]
    assert commands.MEANINGS.keys() == set(commands.Command)
    assert errors.MEANINGS.keys() == set(errors.Exit)


def test_every_key_is_there() -> None:
    page = sections("forkd.toml.5")
    for title, table, _ in TABLES:
        names = [key.name for key in keys(table).values() if key.meaning]
        assert page["ADDRESSES" if title == "listen" else title] == names


def test_the_example_is_a_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "forkd.toml"
    file.write_text(manual.EXAMPLE)
    found = config.load(file, cores=2)
    assert [(each.name, each.worker, each.threads) for each in found.services.values()] == [
        ("shout", "sync", 0),
        ("ticker", "event", 8),
    ]


@pytest.mark.parametrize("name", PAGES)
def test_man_shows_it_without_a_word(name: str) -> None:
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("needs the programs man and groff")
    result = run("man", "--warnings", "-l", str(ROOT / "man" / name))
    assert (result.returncode, result.stderr) == (0, "")
    assert "SEE ALSO" in result.stdout


@pytest.mark.parametrize("name", PAGES)
def test_mandoc_finds_nothing_wrong(name: str) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("needs the program mandoc")
    result = run("mandoc", "-T", "lint", str(ROOT / "man" / name))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
