"""The servers that forkd is compared with answer as it does, and the measuring client counts correctly."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading

import pytest

from bench import asking, contenders, load, processes
from bench.asking import Failure
from bench.server import serving
from tests.server import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    """Compiles the C programs as `make bench` does."""
    for program in ("cc", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"the measuring client needs {program}")
    names = ("client", "prefork", "epoll", "filter")
    subprocess.run(["make", "--silent", *(f"bench/build/{name}" for name in names)], cwd=ROOT, check=True)


@pytest.mark.parametrize("contender", contenders.ALL, ids=lambda each: each.name)
def test_each_contender_answers_every_line_however_it_comes(contender: contenders.Contender) -> None:
    reason = contender.missing()
    if reason:
        pytest.skip(reason)
    with serving(contender, 4) as server:
        for options in (["-n", 40], ["-n", 8, "-s", 16384], ["-n", 40, "-d", 8], ["-n", 20, "-r", 1]):
            said = asking.ask(server.port, "-c", 4, *options)
            assert said["requests"] == options[1]
            assert said["bytes_received"] == said["bytes_sent"] == options[1] * (16384 if "-s" in options else 64)
        with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            sock.sendall(b"one\ntwo\nth")
            sock.sendall(b"ree\n")
            assert read(sock, 14) == b"one\ntwo\nthree\n"
        assert server.cpu_ns() > 0
        family = server.family()
    assert not any(processes.alive(pid) for pid in family)


def test_the_client_counts_connections_and_keeps_the_pace() -> None:
    with serving(contenders.C_EPOLL) as server:
        assert asking.ask(server.port, "-n", 11, "-r", 2)["connections"] == 6
        said = asking.ask(server.port, "-c", 4, "-t", 0.2, "-R", 1000)
        assert 100 < said["requests"] < 300
        assert 0 < said["p50"] <= said["p99"] <= said["max"]


@pytest.mark.slow
def test_the_client_may_sleep_until_a_request_is_due() -> None:
    with serving(contenders.C_PREFORK, 4) as server:
        kept = asking.ask(server.port, "-c", 4, "-n", 200, "-R", 400, "-w")
        single = asking.ask(server.port, "-c", 16, "-n", 200, "-R", 400, "-w", "-r", 1)
    assert (kept["requests"], kept["connections"]) == (200, 4)
    assert (single["requests"], single["connections"]) == (200, 200)
    assert 0.25 < single["seconds"] < 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"x" * 64, "other bytes"),
        (b"", "closed a connection"),
    ],
)
def test_a_server_that_answers_wrongly_is_not_measured(answer: bytes, told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(64)
                sock.sendall(answer)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(64)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Failure, match=told):
            asking.ask(listener.getsockname()[1], "-n", 1)
        thread.join()


def test_processor_time_of_children_that_have_ended_is_counted() -> None:
    if reason := contenders.FORKS.missing():
        pytest.skip(reason)
    found = load.load(contenders.FORKS, 1, load.Load(connections=2, a_connection=1), 0.2)
    # Forking alone takes a hundred microseconds. Without the children's time, the figure would be much smaller.
    assert found["cpu us"] > 100
    assert found["requests"] > 0


def read(sock: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count and (piece := sock.recv(count - len(received))):
        received += piece
    return received
