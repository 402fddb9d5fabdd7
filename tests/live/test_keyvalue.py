"""The key-value example as shipped, driven by Redis' own programs."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import ROOT, Server, exchange, running, until

EXAMPLES = ROOT / "examples"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("redis-cli") and shutil.which("redis-benchmark")),
        reason="redis-cli and redis-benchmark are not installed (Debian: redis-tools)",
    ),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Runs the shipped file, but with ports that the kernel chooses and the test's own store."""
    text = (EXAMPLES / "keyvalue.toml").read_text()
    text = text.replace("127.0.0.1:6380", "127.0.0.1:0").replace("127.0.0.1:6381", "127.0.0.1:0")
    text = text.replace("\napp =", f'\npath = "{EXAMPLES}"\napp =')
    (tmp_path / "keyvalue.toml").write_text(f'[master]\ncontrol = "{tmp_path}/control.sock"\n{text}')
    program = ["env", f"FORKD_KEYVALUE={tmp_path}/values", sys.executable, "-m", "forkd"]
    with running(["keyvalue.toml"], tmp_path, program=program) as server:
        yield server.serving(2)


CLIENTS = {"memory": "1", "shared": "50"}

services = pytest.mark.parametrize("service", CLIENTS)


def port(server: Server, service: str) -> str:
    return dict(server.addresses)[service].rpartition(":")[2]


def redis_cli(server: Server, service: str, *arguments: str, stdin: str = "") -> str:
    command = ["redis-cli", "-p", port(server, service), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=True).stdout


@services
def test_redis_cli(server: Server, service: str) -> None:
    script = {
        "PING": "PONG",
        'SET greeting "hello you" EX 100': "OK",
        "GET greeting": "hello you",
        "TTL greeting": "100",
        "SET greeting x NX": "",
        "INCRBY n 41": "41",
        "INCR n": "42",
        "EXISTS greeting n m": "2",
        "DEL greeting": "1",
        "DBSIZE": "1",
        "HELLO 3": "NOPROTO unsupported protocol version\n",
        "FOO bar": "ERR unknown command 'FOO', with args beginning with: 'bar' \n",
        "SELECT 0": "OK",
        "FLUSHALL": "OK",
    }
    said = redis_cli(server, service, stdin="".join(line + "\n" for line in script))
    assert said == "".join(reply + "\n" for reply in script.values())


@services
def test_redis_cli_pipes_bytes_of_any_kind(server: Server, service: str) -> None:
    every = bytes(range(256))
    requests = b"".join(b"*3\r\n$3\r\nSET\r\n$4\r\n%04d\r\n$256\r\n%b\r\n" % (n, every) for n in range(1000))
    command = ["redis-cli", "-p", port(server, service), "--pipe"]
    result = subprocess.run(command, input=requests, capture_output=True, timeout=30, check=True)
    assert b"errors: 0, replies: 1000" in result.stdout
    got = exchange(server.connect(service), b"GET 0999\r\nDBSIZE\r\n")
    assert got == b"$256\r\n" + every + b"\r\n:1000\r\n"


@pytest.mark.timeout(240)
@services
@pytest.mark.parametrize("depth", ["1", "16"])
def test_redis_benchmark(server: Server, service: str, depth: str) -> None:
    rates = redis_benchmark(server, service, "-t", "ping,set,get", "-n", "50000", "-P", depth)
    assert set(rates) == {"PING_INLINE", "PING_MBULK", "SET", "GET"}
    rates |= redis_benchmark(server, service, "-t", "incr", "-n", "10000", "-P", depth)
    print(service, depth, rates)

    # Each request was counted once. redis-benchmark may send a few more than asked for.
    assert 10_000 <= int(redis_cli(server, service, "GET", "counter:__rand_int__")) < 10_000 + 50 * int(depth)
    assert redis_cli(server, service, "GET", "key:__rand_int__") == "VXK\n"
    status = server.status(service)
    assert status["errors"] == 0
    assert status["exits"] == {"recycled": 0, "crashed": 0, "timed_out": 0}
    assert status["requests"] >= 210_000


def redis_benchmark(server: Server, service: str, *arguments: str) -> dict[str, float]:
    """Returns the requests per second of each kind, with as many clients as the service may have workers."""
    command = ["redis-benchmark", "-p", port(server, service), "-c", CLIENTS[service], "--csv", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return {row["test"]: float(row["rps"]) for row in csv.DictReader(io.StringIO(result.stdout))}


def test_the_values_of_shared_outlive_their_workers(server: Server) -> None:
    assert redis_cli(server, "shared", "SET", "a", "1") == "OK\n"
    before = set(server.workers("shared"))
    server.ask(command="reload")
    until(lambda: before.isdisjoint(server.workers("shared")), "the old generation gone")
    assert redis_cli(server, "shared", "GET", "a") == "1\n"
