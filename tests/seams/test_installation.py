"""`forkd install` on a folder that stands for a machine: files installed, kept and removed on disk."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from forkd.cli.install import installation, shipped
from forkd.cli.install.place import RECORD, Place
from forkd.cli.install.plan import Piece, decide, undo
from forkd.errors import ForkdError
from tests.server import ROOT, program


def install(machine: Path, *pieces: Piece) -> dict[str, str]:
    """Puts the pieces in place. Returns what was done to each file, if anything."""
    place = Place(machine)
    paths = {*place.record.files, *(each.path + end for each in pieces for end in ("", ".new"))}
    steps = decide(pieces, place.there(paths), place.record.files)
    place.do(steps, {})
    return {each.path: each.what.value for each in steps if each.what.value != "nothing"}


def remove(machine: Path) -> dict[str, str]:
    place = Place(machine)
    steps = undo(place.there(place.record.files), place.record.files)
    place.do(steps, {})
    return {each.path: each.what.value for each in steps}


def files(machine: Path) -> set[str]:
    return {f"/{path.relative_to(machine)}" for path in machine.rglob("*") if not path.is_dir() or path.is_symlink()}


PIECES = (
    Piece("/etc/forkd.toml", b"settings\n", settings=True, beside=True),
    Piece("/usr/local/lib/systemd/system/forkd.service", b"unit\n", beside=True),
    Piece("/usr/local/bin/forkd", link="/opt/forkd/bin/forkd"),
)


def test_it_is_installed_once_and_removed_completely(tmp_path: Path) -> None:
    assert set(install(tmp_path, *PIECES).values()) == {"put"}
    assert install(tmp_path, *PIECES) == {}
    assert (tmp_path / "etc/forkd.toml").read_bytes() == b"settings\n"
    assert stat.S_IMODE((tmp_path / "etc/forkd.toml").stat().st_mode) == 0o644
    assert (tmp_path / "usr/local/bin/forkd").readlink() == Path("/opt/forkd/bin/forkd")
    assert set(remove(tmp_path).values()) == {"remove"}
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_or_are_used_stay(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    install(tmp_path, *PIECES)
    (tmp_path / "usr/local/bin/other").write_text("")
    remove(tmp_path)
    assert files(tmp_path) == {"/usr/local/bin/other"}
    assert (tmp_path / "etc").is_dir()
    assert not (tmp_path / "usr/local/lib").exists()


def test_a_changed_file_is_neither_overwritten_nor_removed(tmp_path: Path) -> None:
    install(tmp_path, *PIECES)
    settings = tmp_path / "etc/forkd.toml"
    settings.write_text("mine\n")
    assert install(tmp_path, *PIECES) == {}
    newer = Piece("/etc/forkd.toml", b"newer\n", settings=True, beside=True)
    assert install(tmp_path, newer, *PIECES[1:]) == {"/etc/forkd.toml": "leave", "/etc/forkd.toml.new": "put"}
    assert install(tmp_path, newer, *PIECES[1:]) == {}
    assert (settings.read_text(), (tmp_path / "etc/forkd.toml.new").read_text()) == ("mine\n", "newer\n")
    remove(tmp_path)
    assert files(tmp_path) == {"/etc/forkd.toml"}


def test_a_folder_in_place_of_a_file_is_left(tmp_path: Path) -> None:
    (tmp_path / "etc/forkd.toml").mkdir(parents=True)
    assert install(tmp_path, Piece("/etc/forkd.toml", b"x")) == {"/etc/forkd.toml": "leave"}


def test_an_installation_that_breaks_off_is_completed_and_undone(tmp_path: Path) -> None:
    (tmp_path / "usr").write_text("no folder")
    with pytest.raises(OSError, match="usr"):
        install(tmp_path, *PIECES)
    (tmp_path / "usr").unlink()
    install(tmp_path, *PIECES)
    remove(tmp_path)
    assert files(tmp_path) == set()


def test_a_damaged_record_is_reported(tmp_path: Path) -> None:
    path = tmp_path / RECORD.lstrip("/")
    path.parent.mkdir(parents=True)
    path.write_text("{}}")
    with pytest.raises(ForkdError, match=r"installed\.json: this is not a record"):
        Place(tmp_path)


def test_every_shipped_file_is_found() -> None:
    for name in ("systemd/forkd.service", "etc/forkd.toml", "man/forkd.1", "completion/_forkd"):
        assert shipped.read(name) == (ROOT / name).read_bytes()
    with pytest.raises(ForkdError, match="lacks its file systemd/none"):
        shipped.read("systemd/none")


@pytest.mark.parametrize("name", ["forkd", "my forkd", "100%", "ß-1.0_@x"])
def test_systemd_finds_the_program_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs the program systemd-analyze")
    program = tmp_path / name / "forkd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "forkd.service"
    unit.write_bytes(installation.with_program(shipped.read("systemd/forkd.service"), str(program)))
    assert unit.read_text().count(" run /etc/forkd.toml") == 1
    command = ["systemd-analyze", "--man=no", "--recursive-errors=no", "verify", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize("name", ['a"b', "$HOME", "it's", "a\\b", "a\nb"])
def test_a_program_path_that_systemd_cannot_use_is_refused(name: str) -> None:
    with pytest.raises(ForkdError, match="in a folder with a plainer name"):
        installation.with_program(shipped.read("systemd/forkd.service"), f"/opt/{name}/bin/forkd")


@pytest.mark.slow
def test_the_command_installs_shows_and_undoes(tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    machine.mkdir()
    command = ("install", "--systemd", "--root", str(machine))
    shown = program(*command, "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0
    assert "would put /usr/local/lib/systemd/system/forkd.service" in shown.stdout
    assert files(machine) == set()
    assert "put /etc/forkd.toml" in program(*command, cwd=tmp_path).stdout
    unit = (machine / "usr/local/lib/systemd/system/forkd.service").read_text()
    started = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert started.endswith("/forkd run /etc/forkd.toml")
    assert Path(started.removeprefix("ExecStart=").split()[0]).is_file()
    assert "forkd run /etc/forkd.toml" in (machine / "etc/forkd.toml").read_text()
    assert "nothing to do" in program(*command, cwd=tmp_path).stdout
    assert program(*command, "--ports", "high", cwd=tmp_path).stdout.count("put ") == 2
    assert "nothing to do" in program(*command, cwd=tmp_path).stdout  # the choice is remembered
    assert program(*command, "--ports", "any", cwd=tmp_path).stdout.count("removed ") == 2
    record = json.loads((machine / RECORD.lstrip("/")).read_text())
    assert set(record["files"]) | {RECORD} == files(machine)
    (machine / "etc/forkd.toml").write_text("mine\n")
    undone = program(*command, "--undo", cwd=tmp_path)
    assert (undone.returncode, undone.stderr) == (
        0,
        "left /etc/forkd.toml (changed since it was installed)\n",
    )
    assert files(machine) == {"/etc/forkd.toml"}


def test_the_command_needs_a_service_manager(tmp_path: Path) -> None:
    said = program("install", cwd=tmp_path)
    assert said.returncode == 2
    assert "--systemd" in said.stderr
