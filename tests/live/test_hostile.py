"""A worker turns on its own server: the master keeps running, and the service recovers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forkd.errors import ControlError
from tests.conftest import Forkd
from tests.live.test_deaths import settle
from tests.server import ROOT, Server, exchange, until


def test_a_scoreboard_cannot_be_cut(forkd: Forkd) -> None:
    server = forkd("hostile:evil", workers=2).serving()
    assert exchange(server.connect(), b"cut\n") == b"done\n"
    assert exchange(server.connect(), b"hello\n") == b"hello\n"
    assert server.status()["master"]["pid"] == server.pid


def test_a_scoreboard_written_over_is_healed_and_nobody_else_is_signalled(forkd: Forkd) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    server = forkd("hostile:evil", workers=2).serving()
    server.connect().close()
    with server.connect() as client:
        client.sendall(b"scribble\n")
        client.recv(100)
    until(lambda: exchange_or_nothing(server, b"hello\n") == b"hello\n", "served again")
    server.ask(command="reload")
    for _ in range(10):
        assert exchange(server.connect(), b"hello\n") == b"hello\n"
    assert bystander.poll() is None
    bystander.communicate(b"\n")
    assert server.stop() == 0


def exchange_or_nothing(server: Server, data: bytes) -> bytes:
    try:
        return exchange(server.connect(), data)
    except OSError:
        return b""


def test_a_listener_that_a_worker_has_shut_down_listens_again(forkd: Forkd) -> None:
    server = forkd("hostile:evil", workers=2).serving()
    assert exchange(server.connect(), b"well\n") == b"well\n"
    exchange(server.connect(), b"shut\n")
    server.said(r"error worker failed: a listener is lost \(EINVAL\)")
    assert until(lambda: exchange_or_nothing(server, b"well\n")) == b"well\n"
    settle(server, 2)


def test_lies_told_at_the_import_are_passed_over(forkd: Forkd) -> None:
    server = forkd("meddler:shout", workers=2)
    before = _descriptors(server.serving())
    assert exchange(server.connect(), b"hello\n") == b"HELLO\n"
    server.ask(command="reload")
    until(lambda: len(server.workers()) == 2)
    until(lambda: _descriptors(server) <= before, "no descriptor kept")
    assert server.stop() == 0


HASTY = """
import os, socket
for fd in range(3, 64):
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.type == socket.SOCK_SEQPACKET:
                sock.send(b'{"ready": 1, "left_behind": 7}')
    except OSError:
        pass
"""


def test_an_import_that_says_it_is_ready_harms_nobody_else(forkd: Forkd, tmp_path: Path) -> None:
    """The order to fork arrives during the import and aborts it. The master reports that, and the others serve on."""
    server = forkd("small:shout", workers=1).serving()
    (tmp_path / "hasty.py").write_text(f"{HASTY}\nimport time\ntime.sleep(60)\n")
    other = f'[service.hasty]\napp = "hasty:shout"\npath = "{tmp_path}"\nlisten = "127.0.0.1:0"\n'
    path = tmp_path / "forkd.toml"
    path.write_text(path.read_text() + other)
    with pytest.raises(ControlError, match="service hasty"):
        server.ask(command="reload")
    assert exchange(server.connect(), b"well\n") == b"WELL\n"
    assert server.stop() == 0


def test_orders_for_many_workers_are_not_lost(forkd: Forkd) -> None:
    """These orders exceed what the socket to a fork server can hold at once."""
    server = forkd("small:shout", workers=1).serving()
    server.ask(command="scale", service="test", size=400)
    until(lambda: server.status("test")["workers"]["total"] == 400, "400 workers")
    assert server.status("test")["exits"] == {"recycled": 0, "crashed": 0, "timed_out": 0}
    assert server.stop() == 0
    server.gone()


def test_a_pipe_in_place_of_the_log_is_refused(forkd: Forkd, tmp_path: Path) -> None:
    log, old = tmp_path / "log", tmp_path / "old"
    server = forkd("small:shout", workers=1, master=f'log = {{ file = "{log}" }}').serving()
    log.rename(old)
    os.mkfifo(log)
    server.kill(signal.SIGUSR1)
    until(lambda: "cannot open the log file" in old.read_text())
    assert exchange(server.connect(), b"hello\n") == b"HELLO\n"


def test_closed_standard_streams_are_no_trouble() -> None:
    """Descriptors 0 to 2 are filled; otherwise one of forkd's sockets would become standard output."""
    program = f'exec "{sys.executable}" -m forkd check etc/forkd.toml <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", program], cwd=ROOT, check=False, timeout=30).returncode == 0


def _descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
