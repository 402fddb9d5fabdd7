"""Upgrades: the master replaces its own program in place, or everything stays as it was and the reason is reported."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forkd.errors import ControlError
from tests.conftest import Forkd
from tests.live.test_life import begin, call
from tests.server import HANDLERS, ROOT, Server, exchange, open_files, program, running, until, zombies

FILE = """
[master]
control = "{folder}/control.sock"
pidfile = "{folder}/forkd.pid"
[service.test]
app = "small:{app}"
path = "{handlers}"
listen = ["127.0.0.1:0", "unix:{folder}/door.sock"]
workers = 2
"""


def write(folder: Path, app: str = "shout") -> None:
    (folder / "forkd.toml").write_text(FILE.format(folder=folder, app=app, handlers=HANDLERS))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Returns a copy of the forkd package, which a test changes as an installation would."""
    package = tmp_path / "site" / "forkd"
    shutil.copytree(ROOT / "forkd", package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


@contextmanager
def copied(folder: Path) -> Iterator[Server]:
    """Runs a server from the copy, with an interpreter that a test may remove, too."""
    python = folder / "python"
    python.symlink_to(Path(sys.executable).resolve())
    paths = [str(folder / "site"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    command = ["env", f"PYTHONPATH={os.pathsep.join(paths)}", str(python), "-m", "forkd"]
    write(folder)
    with running(["forkd.toml"], folder, program=command) as made:
        yield made.serving(2)


@pytest.fixture
def server(tmp_path: Path, package: Path) -> Iterator[Server]:
    with copied(tmp_path) as made:
        yield made


def change(package: Path, room: str, old: str, new: str) -> None:
    path = package / f"{room}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def inodes(server: Server) -> list[tuple[int, int]]:
    """Returns the inodes of the master's listening sockets and files, which identify them."""
    listening = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"}
    held = [each for each in open_files(server.pid) if each.strip("socket:[]") in listening]
    files = [
        server.control_path,
        server.control_path.with_name("forkd.pid"),
        server.control_path.with_name("door.sock"),
    ]
    return [*sorted(held), *(file.stat().st_ino for file in files)]


def test_a_new_version_takes_over(server: Server, package: Path) -> None:
    before = inodes(server)
    with server.connect() as client:
        assert call(client, b"one\n") == b"ONE\n"
        change(package, "__init__", '__version__ = "', '__version__ = "9.')
        answer = server.ask(command="upgrade")
        assert answer["version"].startswith("9.")
        assert answer["generations"] == {"test": 2}
        assert call(client, b"two\n") == b"TWO\n", "an open connection must continue"
    status = server.status()
    assert status["master"]["pid"] == server.pid
    assert status["master"]["version"].startswith("9.")
    assert status["services"]["test"]["requests"] == 2, "totals must be kept"
    assert inodes(server) == before
    assert exchange(server.connect(), b"well\n") == b"WELL\n"
    until(lambda: len(server.family()) == 4, "the new generation alone")
    assert not zombies(server.pid)
    assert server.stop() == 0
    assert not server.control_path.exists()
    assert not server.control_path.with_name("forkd.pid").exists()
    server.gone()


def test_a_fork_server_of_an_older_version_serves_on(server: Server, package: Path, tmp_path: Path) -> None:
    """The new master can work with the old fork server if the reload that follows fails."""
    change(package, "__init__", '__version__ = "', '__version__ = "9.')
    write(tmp_path, app="absent")
    with pytest.raises(ControlError, match=r"forkd 9\.\S+ has taken over, but the services are the old ones: .*absent"):
        server.ask(command="upgrade")
    assert server.status("test")["generation"] == 1
    os.kill(server.workers()[0], signal.SIGKILL)
    server.said("error worker crashed")
    until(lambda: server.status("test")["workers"]["total"] == 2, "the old fork server forks for the new master")
    assert exchange(server.connect(), b"well\n") == b"WELL\n"
    write(tmp_path)
    assert server.ask(command="reload")["generations"] == {"test": 3}


def _syntax(package: Path) -> None:
    change(package, "master/master", "class Master:", "class Master")


def _missing(package: Path) -> None:
    (package / "lifecycle" / "pool.py").unlink()


def _crash(package: Path) -> None:
    change(package, "master/successor", "import os\n", "import os\nos.abort()\n")


def _exit(package: Path) -> None:
    change(package, "master/successor", "import os\n", "import os\nos._exit(0)\n")


def _hang(package: Path) -> None:
    change(package, "master/successor", "import os\n", "import os\nos.read(os.pipe()[0], 1)\n")


def _other_format(package: Path) -> None:
    change(package, "master/estate", "FORMAT: Final = 1\n", "FORMAT: Final = 2\n")


def _other_fields(package: Path) -> None:
    change(package, "lifecycle/events", "    minimum: int\n", "    minimum: int\n    wished: int\n")


def _no_python(package: Path) -> None:
    (package.parent.parent / "python").unlink()


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (_syntax, "SyntaxError"),
        (_missing, "ModuleNotFoundError: No module named 'forkd.lifecycle.pool'"),
        (_crash, "it ended without a message"),
        (_exit, "it ended without a message"),
        (_hang, "it was not ready within 4 s"),
        (_other_format, r"it cannot take over from forkd \S+: restart forkd instead"),
        (_other_fields, r"it cannot read what the master leaves \(.*wished.*\): restart forkd instead"),
        (_no_python, "No such file or directory"),
    ],
)
def test_a_broken_program_changes_nothing(
    tmp_path: Path, package: Path, breaks: Callable[[Path], None], reason: str
) -> None:
    change(package, "master/upgrade", "PATIENCE: Final = 30.0", "PATIENCE: Final = 4.0")
    with copied(tmp_path) as server, server.connect() as client:
        before, workers = inodes(server), server.workers()
        held = len(open_files(server.pid))
        breaks(package)
        with pytest.raises(ControlError, match=f"the new program does not start: .*{reason}"):
            server.ask(command="upgrade")
        server.said("error upgrade: nothing changed: ")
        assert call(client, b"well\n") == b"WELL\n"
        assert server.workers() == workers
        assert inodes(server) == before
        until(lambda: len(open_files(server.pid)) <= held, "no additional descriptors")
        until(lambda: len(server.family()) == 4, "no process of the rehearsal")
        shutil.copytree(ROOT / "forkd", package, dirs_exist_ok=True)
        python = tmp_path / "python"
        python.unlink(missing_ok=True)
        python.symlink_to(Path(sys.executable).resolve())
        assert server.ask(command="upgrade")["generations"] == {"test": 2}


def test_an_upgrade_by_signal(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    server.kill(signal.SIGUSR2)
    server.said("upgrade: forkd .* has taken over")
    until(lambda: server.status("test")["generation"] == 2)
    assert server.status()["master"]["pid"] == server.pid
    assert exchange(server.connect(), b"well\n") == b"WELL\n"


def test_an_upgrade_of_an_application_without_a_file(tmp_path: Path) -> None:
    arguments = ["small:shout", "--listen", "127.0.0.1:0", "--workers", "1", "--set", f'path="{HANDLERS}"']
    arguments += ["--set", f'master.control="{tmp_path}/control.sock"']
    with running(arguments, tmp_path) as server:
        server.serving()
        assert server.ask(command="upgrade")["generations"] == {"shout": 2}
        assert exchange(server.connect(), b"well\n") == b"WELL\n"


def test_the_command_tells_of_both(forkd: Forkd, tmp_path: Path) -> None:
    forkd("small:shout", workers=1).serving()
    done = program("upgrade", "-c", "forkd.toml", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].startswith("the master runs forkd ")
    assert done.stdout.splitlines()[1] == "test: generation 2 serves"


def test_requests_in_hand_are_answered_across_an_upgrade(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2).serving()
    with begin(server, b"1\n") as client:
        server.ask(command="upgrade")
        assert client.recv(100) == b"slept 1\n"


def test_signals_and_commands_amid_an_upgrade_are_obeyed_after_it(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGHUP):
        server.kill(number)
    server.said("upgrade: forkd .* has taken over")
    until(lambda: server.status("test")["generation"] >= 3)
    assert server.ask(command="upgrade")
    assert server.stop() == 0
    server.gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_amid_an_upgrade(forkd: Forkd, number: signal.Signals) -> None:
    server = forkd("small:shout", workers=1).serving()
    server.kill(signal.SIGUSR2)
    server.said("signal: upgrade")
    assert server.stop(number) == 0
    server.gone()


def test_a_server_that_stops_is_not_upgraded(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=1).serving()
    with begin(server, b"0.5\n") as client:
        server.kill(signal.SIGTERM)
        until(lambda: server.status()["master"]["phase"] == "stopping")
        with pytest.raises(ControlError, match="forkd is stopping"):
            server.ask(command="upgrade")
        assert client.recv(100) == b"slept 0.5\n"
    assert server.exited() == 0


def test_a_drained_server_is_brought_back_by_an_upgrade(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    server.kill(signal.SIGWINCH)
    until(lambda: len(server.family()) == 1)
    assert server.ask(command="upgrade")["generations"] == {"test": 2}
    assert exchange(server.connect(), b"well\n") == b"WELL\n"


def test_a_size_that_was_asked_for_outlives_a_failed_reload(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("small:shout", workers=1).serving()
    server.ask(command="scale", service="test", size=3)
    until(lambda: server.status("test")["workers"]["total"] == 3)
    (tmp_path / "forkd.toml").write_text("this is no TOML")
    with pytest.raises(ControlError, match=r"has taken over, but .*TOML"):
        server.ask(command="upgrade")
    assert server.status("test")["workers"]["total"] == 3
    os.kill(server.workers()[0], signal.SIGKILL)
    until(lambda: server.status("test")["exits"]["crashed"] == 1)
    until(lambda: server.status("test")["workers"]["total"] == 3)
