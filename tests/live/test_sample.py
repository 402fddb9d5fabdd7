"""The shipped settings, served unchanged: etc/forkd.toml with its fixed ports.

The server runs in its own network namespace, whose loopback no other process can reach.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from forkd.ipc import control_client
from tests import netns
from tests.server import FORKD, ROOT, Server, exchange, program, running, until

SAMPLE = str(ROOT / "etc/forkd.toml")
PORTS = {"echo": 7007, "discard": 7009, "chargen": 7019, "qotd": 7017, "daytime": 7013, "time": 7037}

pytestmark = pytest.mark.slow


class Sample(NamedTuple):
    server: Server
    inside: Executor
    folder: Path

    def connect(self, service: str) -> socket.socket:
        """Connects a client inside the namespace. A socket stays in the namespace where it was created."""
        return self.inside.submit(socket.create_connection, ("127.0.0.1", PORTS[service]), 10).result()

    def connections(self, service: str) -> int:
        """Returns how many connections are open, according to the only control socket."""
        [path] = self.folder.glob("*.sock")
        found: int = control_client.ask(path, {"command": "status"}, 10)["services"][service]["connections"]["open"]
        return found


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    if reason := netns.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("sample")

    with netns.namespace() as here:
        forkd = here.command("env", f"RUNTIME_DIRECTORY={folder}", *FORKD)
        with (
            running([SAMPLE], folder, program=forkd) as server,
            ThreadPoolExecutor(1, initializer=enter, initargs=[here.name]) as inside,
        ):
            yield Sample(server.serving(len(PORTS)), inside, folder)
            assert server.stop() == 0
            server.gone()
        assert list(folder.iterdir()) == []


def enter(name: str) -> None:
    """Moves only this thread into a network namespace (setns(2))."""
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    assert ctypes.CDLL(None, use_errno=True).setns(fd, 0) == 0, os.strerror(ctypes.get_errno())
    os.close(fd)


def test_it_serves_where_it_says(sample: Sample) -> None:
    assert sample.server.addresses == [(name, f"127.0.0.1:{port}") for name, port in PORTS.items()]


def test_echo(sample: Sample) -> None:
    data = os.urandom(100_000)
    assert exchange(sample.connect("echo"), data) == data


def test_discard(sample: Sample) -> None:
    assert exchange(sample.connect("discard"), b"x" * 100_000) == b""


def test_chargen(sample: Sample) -> None:
    with sample.connect("chargen") as client, client.makefile("rb") as lines:
        for start in range(200):
            line = bytes(32 + (start + at) % 95 for at in range(72))
            assert lines.readline() == line + b"\r\n"


def test_qotd(sample: Sample) -> None:
    quote = exchange(sample.connect("qotd"), b"")
    assert quote.startswith(b'"')
    assert quote.endswith(b"\r\n")
    assert len(quote) < 512


def test_daytime(sample: Sample) -> None:
    assert re.fullmatch(rb"\w+, \w+ \d+, \d{4} \d\d:\d\d:\d\d-\S+\r\n", exchange(sample.connect("daytime"), b""))


def test_time(sample: Sample) -> None:
    before = int(time.time())
    told = exchange(sample.connect("time"), b"")
    assert len(told) == 4
    assert before <= int.from_bytes(told) - 2_208_988_800 <= time.time()


def test_sixteen_silent_clients_do_not_keep_the_next_one_waiting(sample: Sample) -> None:
    with ExitStack() as held:
        for _ in range(16):
            held.enter_context(sample.connect("echo"))
        until(lambda: sample.connections("echo") >= 16)
        assert exchange(sample.connect("echo"), b"hello") == b"hello"


def test_its_commands_find_it_by_its_file(sample: Sample) -> None:
    result = program("status", "-c", SAMPLE, cwd=sample.folder, RUNTIME_DIRECTORY=str(sample.folder))
    assert result.returncode == 0, result.stderr
    for name, port in PORTS.items():
        assert f"{name} on 127.0.0.1:{port}" in result.stdout
