"""The files that a master has opened for itself stay in place, whatever is removed by mistake."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Forkd
from tests.server import HANDLERS, LIMIT, Server, program, running

pytestmark = pytest.mark.slow  # the master checks once a second

GONE = "was removed or replaced"
AGAIN = rf" warning the {{}} \S+ {GONE}; created it again$"
NOT_AGAIN = rf" warning the {{}} \S+ {GONE}, and cannot be created again yet: {{}}$"


@pytest.fixture
def caller(forkd: Forkd) -> Iterator[tuple[Server, socket.socket]]:
    """Yields a server, and a client connected to its control socket."""
    server = forkd("small:shout", workers=1).serving()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT)
        sock.connect(str(server.control_path))
        yield server, sock


def test_a_control_socket_that_was_deleted_is_made_again(caller: tuple[Server, socket.socket]) -> None:
    server, earlier = caller
    for count in (1, 2):
        server.control_path.unlink()
        server.said(AGAIN.format("control socket"), count)
        status = program("status", "--control", str(server.control_path), cwd=server.control_path.parent)
        assert status.returncode == 0, status.stderr
        assert server.control_path.stat().st_mode & 0o777 == 0o600
        earlier.sendall(b'{"command": "reload"}\n')
        assert json.loads(earlier.recv(65536))["result"]["generations"] == {"test": count + 1}
    assert server.stop() == 0
    assert not server.control_path.exists()


def test_a_master_that_is_killed_leaves_no_socket_that_a_later_generation_knows_of(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    server.control_path.unlink()
    server.said(AGAIN.format("control socket"))
    server.ask(command="reload")
    server.stop(signal.SIGKILL)
    server.gone()
    assert not server.control_path.exists()


def test_a_stale_socket_in_its_place_is_replaced(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("small:shout", workers=1).serving()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    (tmp_path / "stale").rename(server.control_path)
    server.said(AGAIN.format("control socket"))
    assert server.status()["master"]["pid"] == server.pid


def test_what_is_somebody_elses_by_now_is_left_alone(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("small:shout", workers=1, master=f'pidfile = "{tmp_path}/pid"').serving()
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(LIMIT)
        other.bind(str(tmp_path / "other"))
        other.listen()
        (tmp_path / "other").rename(server.control_path)
        (tmp_path / "others").write_text("4711\n")
        (tmp_path / "others").rename(tmp_path / "pid")
        server.said(NOT_AGAIN.format("control socket", "another server listens there"))
        server.said(NOT_AGAIN.format("PID file", "File exists"))
        for _ in range(3):
            other.accept()[0].close()  # forkd checks every second whether it is still there
    server.said(AGAIN.format("control socket"))
    assert server.status()["master"]["pid"] == server.pid
    assert server.stop() == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["forkd.toml", "pid"]
    assert (tmp_path / "pid").read_text() == "4711\n"
    assert len([line for line in server.lines if GONE in line]) == 3


def test_they_come_again_with_their_folder(tmp_path: Path) -> None:
    folder, away = tmp_path / "run", tmp_path / "away"
    folder.mkdir()
    master = f'[master]\ncontrol = "{folder}/control.sock"\npidfile = "{folder}/pid"\n'
    service = f'[service.test]\napp = "small:shout"\npath = "{HANDLERS}"\nlisten = "127.0.0.1:0"\nworkers = 1\n'
    (tmp_path / "forkd.toml").write_text(master + service)
    with running([str(tmp_path / "forkd.toml")], folder) as server:
        server.serving()
        folder.rename(away)
        server.said(NOT_AGAIN.format("control socket", "No such file or directory"))
        server.said(NOT_AGAIN.format("PID file", "No such file or directory"))
        folder.mkdir()
        server.said(AGAIN.format("control socket"))
        server.said(AGAIN.format("PID file"))
        assert server.status()["master"]["pid"] == server.pid
        assert (folder / "pid").read_text() == f"{server.pid}\n"
        assert server.stop() == 0
        assert list(folder.iterdir()) == []
        assert len([line for line in server.lines if GONE in line]) == 4
