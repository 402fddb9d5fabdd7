"""`forkd load` as a program against a running server: what it prints and writes, and its exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram

from forkd.errors import Exit
from tests.conftest import Forkd
from tests.server import FORKD, LIMIT, ROOT, Server, program, until

pytestmark = pytest.mark.slow

KEYS = {"workers": 2}


def address(server: Server) -> str:
    return server.addresses[0][1]


def load(server: Server, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = program("load", address(server), *arguments, cwd=server.control_path.parent)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def figures(server: Server, *arguments: str) -> Any:
    return json.loads(load(server, *arguments, "--json", "-").stdout)


def row(text: str, name: str) -> list[str]:
    (found,) = [line.split()[len(name.split()) :] for line in text.splitlines() if line.strip().startswith(name + " ")]
    return found


@contextmanager
def started(server: Server, *arguments: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*FORKD, "load", address(server), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "150"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT)


def test_the_table(forkd: Forkd) -> None:
    server = forkd("small:shout", **KEYS).serving()
    done = load(server, "--requests", "500", "--connections", "2", "--request", "hi", "--expect", "HI")
    assert re.match(
        rf"{re.escape(address(server))}: 500 requests in \d+\.\d\d s; 2 connections, 1 in flight on each, 1 process\n",
        done.stdout,
    )
    assert row(done.stdout, "requests")[0] == "500"
    assert row(done.stdout, "connections")[0] == "2"
    assert row(done.stdout, "bytes in")[:2] == ["1.46", "KiB"]
    for name in ("p50", "p90", "p99", "p99.9", "p99.99", "max"):
        assert len(row(done.stdout, name)) == 4
    assert done.stdout.endswith("no failures\n")
    assert done.stderr == ""
    assert until(lambda: server.status("test")["requests"] == 500)


def test_the_figures_as_json(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("small:shout", **KEYS).serving()
    done = load(
        server, "--requests", "300", "--connections", "2", "--workers", "2", "--pipeline", "5", "--json", "f.json"
    )
    assert done.stdout.endswith("no failures\n")
    written = json.loads((tmp_path / "f.json").read_text())
    printed = figures(server, "--requests", "300", "--connections", "2", "--workers", "2", "--pipeline", "5")
    for what in (written, printed):
        assert (what["address"], what["requests"], what["passed"]) == (address(server), 300, True)
        assert what["bytes"] == {"in": 1800, "out": 1800}
        assert set(what["failures"].values()) == {0}
        assert HdrHistogram.decode(what["histograms"]["latency"]).get_total_count() == 300
        assert what["timeline"][-1][1:] == [300, 0]
    assert written.keys() == printed.keys()


def test_a_time_ends_it(forkd: Forkd) -> None:
    server = forkd("small:shout", **KEYS).serving()
    what = figures(server, "--duration", "0.3", "--connections", "2", "--warmup", "0.1")
    assert what["requests"] > 0
    assert what["seconds"] >= 0.3
    assert what["plan"]["duration"] == 0.3


def test_a_rate_is_kept(forkd: Forkd) -> None:
    server = forkd("small:shout", **KEYS).serving()
    what = figures(server, "--requests", "60", "--rate", "200", "--connections", "2", "--workers", "2")
    assert (what["requests"], what["unsent"]) == (60, 0)
    assert what["seconds"] >= 59 / 200  # never faster


def test_a_connection_a_request(forkd: Forkd) -> None:
    server = forkd("small:shout", **KEYS).serving()
    what = figures(server, "--requests", "50", "--per-connection", "1", "--connections", "4")
    assert (what["requests"], what["connections"], set(what["failures"].values())) == (50, 50, {0})
    # One more than requests: a first connection checks whether the server is there.
    assert until(lambda: server.status("test")["connections"]["accepted"] == 51)


def test_a_unix_socket_and_requests_from_a_file(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("small:shout", listen=f"unix:{tmp_path}/s", **KEYS).serving()
    (tmp_path / "requests").write_text("ONE\nTWO\nTHREE\n")
    what = figures(server, "--requests", "30", "--connections", "2", "--requests-from", "requests", "--expect", "echo")
    assert (what["address"], what["requests"]) == (f"unix:{tmp_path}/s", 30)
    assert set(what["failures"].values()) == {0}


def test_too_many_failures_fail_the_test(forkd: Forkd) -> None:
    server = forkd("small:die", **KEYS).serving()
    done = load(server, "--requests", "20", "--connections", "1", "--expect", "/x/")
    assert "failures: 20 wrong\n" in done.stdout
    done = load(server, "--requests", "20", "--connections", "1", "--expect", "/x/", "--max-errors", "19", status=1)
    assert "failures: 20 wrong\n" in done.stdout
    assert done.stderr == "forkd: 20 failures are more than --max-errors 19\n"


def test_a_slow_p99_fails_it(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("small:nap", **KEYS).serving()
    arguments = ["--requests", "3", "--connections", "1", "--request", "0.02", "--json", "f.json"]
    done = load(server, *arguments, "--max-p99", "0.01", status=1)
    assert re.fullmatch(r"forkd: p99 of 0\.\d+ s is more than --max-p99 0\.01\n", done.stderr)
    assert json.loads((tmp_path / "f.json").read_text())["passed"] is False
    load(server, *arguments, "--max-p99", "100", "--max-errors", "0")


def test_a_worker_that_dies_breaks_connections_off(forkd: Forkd) -> None:
    server = forkd("small:die", **KEYS).serving()
    what = load(server, "--requests", "1", "--connections", "1", "--request", "exit 3", status=1)
    assert "0 requests" in what.stdout
    assert what.stderr == "forkd: no request was answered; failures: 1 cut short\n"


def test_a_missing_server_is_reported_as_by_call(forkd: Forkd) -> None:
    server = forkd("small:shout", **KEYS).serving()
    assert server.stop() == 0
    done, called = (program(name, address(server), cwd=server.control_path.parent) for name in ("load", "call"))
    assert done.returncode == called.returncode == Exit.UNREACHABLE
    assert done.stderr == called.stderr
    assert "ECONNREFUSED" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--framing", "words"], "--framing words: must be lines,"),
        (["--request", "a", "--requests-from", "b"], "use only one of them"),
        (["--requests-from", "no/such"], "--requests-from no/such: No such file or directory"),
        (["--json", "no/such"], "no/such cannot be written: No such file or directory"),
        (["--workers", "3", "--connections", "2"], "each process needs a connection"),
        (["--connections", "100000000"], "ulimit -Hn"),
        (["--rate", "nan"], "--rate nan"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_usage_is_reported_before_anything_is_sent(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = program("load", "127.0.0.1:1", *arguments, cwd=tmp_path)
    assert done.returncode == Exit.USAGE
    assert told in done.stderr
    assert done.stderr.startswith("forkd: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_shows_the_figures_so_far(forkd: Forkd, number: signal.Signals) -> None:
    server = forkd("small:shout", **KEYS).serving()
    with started(server, "--duration", "600", "--connections", "2", "--workers", "2") as process:
        until(lambda: server.status("test")["requests"] > 10)
        # A terminal sends SIGINT to every process in the group. SIGTERM is sent to one process.
        (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert re.search(r": [1-9][\d,]* requests in [\d.]+ s, interrupted; ", out)
    assert out.endswith("no failures\n")
    assert err == ""


def test_clients_do_not_outlive_the_program(forkd: Forkd) -> None:
    server = forkd("small:shout", **KEYS).serving()
    with started(server, "--duration", "600", "--connections", "2", "--workers", "2") as process:
        until(lambda: server.status("test")["connections"]["open"] == 2)
        process.kill()
        # Each client holds the other end of our pipe, so the pipe ends when the last client does.
        process.communicate(timeout=LIMIT)
    assert until(lambda: server.status("test")["connections"]["open"] == 0)


def test_a_killed_client_is_reported(forkd: Forkd) -> None:
    server = forkd("small:shout", **KEYS).serving()
    with started(server, "--duration", "600", "--connections", "2", "--workers", "2") as process:
        until(lambda: server.status("test")["requests"] > 10)
        clients = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(clients[0]), signal.SIGKILL)
        until(lambda: server.status("test")["connections"]["open"] == 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, len(clients)) == (1, 2)
    assert "interrupted" in out
    assert err == "forkd: 1 of 2 client processes crashed; their last figures count\n"


def test_a_terminal_sees_a_line_that_moves(forkd: Forkd) -> None:
    server = forkd("small:shout", **KEYS).serving()
    terminal, ours = pty.openpty()
    with started(server, "--duration", "600", "--connections", "2", stderr=ours) as process:
        os.close(ours)
        seen = b""
        while not re.search(rb"of 600 s  [1-9][\d,]* requests .* per second  p50 .* 0 failures", seen):
            seen += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=LIMIT)
        with suppress(OSError):  # EIO, the end of a terminal
            while True:
                seen += os.read(terminal, 4096)
    os.close(terminal)
    assert process.returncode == 130
    assert "interrupted" in out
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")  # the cursor is visible again


def test_the_other_commands_do_without_its_rooms() -> None:
    code = "import sys, forkd.cli.main; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    heavy = r"(?m)^(rich|hdrh|matplotlib|numpy|forkd\.cli\.load\.(?!command$)\w+)$"
    assert "forkd.cli.load.command" in loaded.splitlines()
    assert re.search(heavy, loaded) is None


def test_the_picture(forkd: Forkd, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    server = forkd("small:shout", **KEYS).serving()
    load(server, "--requests", "50", "--connections", "2", "--plot", "f.svg")
    assert (tmp_path / "f.svg").read_text().rstrip().endswith("</svg>")


def test_a_picture_without_the_library_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    done = program("load", "127.0.0.1:1", "--plot", "f.svg", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == Exit.USAGE
    assert done.stderr == "forkd: --plot needs matplotlib: pip install 'forkd-server[plot]'\n"
    assert not (tmp_path / "f.svg").exists()
