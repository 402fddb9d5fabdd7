"""What is shipped beside the code agrees with it: the sample, the units, the reference tables, the version."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

import pytest

import forkd
from forkd import errors
from forkd.errors import Exit
from forkd.master import commands
from forkd.serving.outcome import End
from forkd.settings import config
from tests.server import ROOT

UNITS = sorted([*(ROOT / "systemd").glob("*.service"), *(ROOT / "systemd").glob("*.socket")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_sample_loads() -> None:
    assert len(config.load(ROOT / "etc/forkd.toml", cores=2).services) == 6


@pytest.mark.parametrize("unit", [pytest.param(unit, id=unit.name) for unit in UNITS])
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs the program systemd-analyze")
    # systemd-analyze checks that the programs exist, and here they are not installed.
    for each in UNITS:
        text = re.sub(r"(?m)^(Exec\w+=[-@:+!|]*)(/\S+)", r"\1/bin/true", each.read_text())
        (tmp_path / each.name).write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "--man=no", "--recursive-errors=no", "verify", str(tmp_path / unit.name)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(("drop_in", "most"), [(None, 1.6), ("high-ports.conf", 1.1), ("passed-sockets.conf", 0.4)])
@pytest.mark.parametrize("name", ["forkd.service", "forkd@.service"])
def test_the_unit_exposes_little(name: str, drop_in: str | None, most: float, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs the program systemd-analyze")
    for each in UNITS:
        shutil.copy(each, tmp_path)
    if drop_in is not None:
        (tmp_path / f"{name}.d").mkdir()
        shutil.copy(ROOT / "systemd" / drop_in, tmp_path / f"{name}.d/ports.conf")
    told = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    found = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", told.stdout)
    assert found, told.stderr
    assert float(found[0]) <= most, told.stdout


def test_an_instance_differs_from_the_service_in_its_names_alone() -> None:
    one, other = ((ROOT / "systemd" / name).read_text().splitlines() for name in ("forkd.service", "forkd@.service"))
    lines = [{line for line in each if line and not line.startswith("#")} for each in (one, other)]
    assert {line.partition("=")[0] for line in lines[0] ^ lines[1]} == {
        "Description",
        "ExecReload",
        "ExecStart",
        "Group",
        "User",
        "DynamicUser",
        "RuntimeDirectory",
        "RuntimeDirectoryPreserve",
        "StateDirectory",
        "LogsDirectory",
    }


def table(text: str, *header: str) -> list[list[str]]:
    """Returns the rows of the first table that begins with these columns, without backquotes around cells."""
    found: list[list[str]] = []
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("| ").split("|")]
        if not found and cells[: len(header)] != list(header):
            continue
        if not line.startswith("|"):
            break
        if not set(line) <= set("|-: "):
            found.append(cells)
    return found[1:]


def test_the_reference_lists_the_exit_statuses() -> None:
    rows = table((ROOT / "docs/reference/exit-status.md").read_text(), "status", "meaning")
    assert rows == [[str(each.value), errors.MEANINGS[each]] for each in sorted(Exit)], "make reference"


def test_the_reference_lists_the_signals() -> None:
    rows = table((ROOT / "docs/reference/signals.md").read_text(), "signal to the master", "meaning")
    assert rows == [
        [each.name.removeprefix("SIG"), commands.MEANINGS[command]] for each, command in commands.COMMANDS.items()
    ], "make reference"


def test_the_reference_lists_the_ends_of_connections() -> None:
    rows = table((ROOT / "docs/reference/log.md").read_text(), "end", "why the connection ended")
    told = [word for ends, _ in rows for word in re.split(r"\W+", ends)]
    assert sorted(told) == sorted(each.name.lower() for each in End)


def test_the_library_ships_its_types(tmp_path: Path) -> None:
    assert resources.files("forkd").joinpath("py.typed").is_file()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["forkd"]


def test_there_is_one_version() -> None:
    assert PROJECT["project"]["version"] == forkd.__version__


def test_the_program_matches_the_project() -> None:
    assert PROJECT["project"]["scripts"] == {"forkd": "forkd.cli.main:main"}
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    try:
        installed = metadata.version("forkd-server")
    except metadata.PackageNotFoundError:
        pytest.skip("forkd is not installed")
    assert installed == forkd.__version__


def files() -> Iterator[Path]:
    """Yields the project's own files: nothing that .gitignore leaves out, and nothing of git itself."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line]
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        left_out = any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in [*ignored, ".git"])
        if path.is_file() and not left_out:
            yield path


def test_no_file_names_a_place_of_one_machine() -> None:
    # A path on one developer's machine means nothing to anyone else.
    private = re.compile(rb"(?<![\w.$}*~-])/(?:" + b"|".join([b"wo" + b"rk", b"ro" + b"ot"]) + rb")(?![\w-])")
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in files()
        if (match := private.search(path.read_bytes())) is not None
    }
    assert found == {}


def test_the_project_is_looked_through() -> None:
    names = {str(path.relative_to(ROOT)) for path in files()}
    assert {"pyproject.toml", "forkd/cli/main.py", "etc/forkd.toml", "tests/test_shipped.py"} <= names
    assert not any("__pycache__" in name or name.startswith(".venv") for name in names)
