"""The servers that are measured: how each is started, and why one may be missing."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.asking import BUILD

ROOT = Path(__file__).parent.parent
PEERS = "bench.peers"


@dataclass(frozen=True, slots=True)
class Contender:
    """A server; `command` makes its command line from a port, a number of workers and a folder of its own.

    `missing` returns why it cannot run here, "" if it can.
    """

    name: str
    command: Callable[[int, int, Path], list[str]]
    missing: Callable[[], str] = lambda: ""


def environment() -> dict[str, str]:
    """Returns the environment of every server, with this checkout's forkd and peers on Python's path."""
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def forkd(name: str, app: str, worker: str = "sync", log: str = "info", **more: object) -> Contender:
    """forkd with a service of one of the peers' applications; missing if this forkd refuses the settings."""

    def write(port: int, workers: int, folder: Path) -> Path:
        settings = {"app": app, "path": str(ROOT), "listen": f"127.0.0.1:{port}", "worker": worker, "workers": workers}
        lines = [f"{key} = {_toml(value)}" for key, value in (settings | more).items()]
        file = folder / "forkd.toml"
        head = f'[master]\ncontrol = "{folder}/control"\n[master.log]\nlevel = "{log}"\n[service.lines]\n'
        file.write_text(head + "\n".join(lines) + "\n")
        return file

    def command(port: int, workers: int, folder: Path) -> list[str]:
        return [sys.executable, "-m", "forkd", "run", str(write(port, workers, folder))]

    @functools.cache
    def missing() -> str:
        with tempfile.TemporaryDirectory() as folder:
            check = [sys.executable, "-m", "forkd", "check", str(write(1, 1, Path(folder)))]
            done = subprocess.run(check, capture_output=True, text=True, env=environment(), cwd=ROOT, check=False)
        if done.returncode == 0:
            return ""
        return _reason(done.stderr)

    return Contender(name, command, missing)


def _reason(said: str) -> str:
    """Returns the first mistake that forkd reports in its settings, or the last line of a traceback."""
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")] or ["forkd check printed nothing"]
    first = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return re.sub(r"^.*forkd\.toml:\d+: ", "", first)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def python(name: str, module: str, *arguments: str, wants: str = "") -> Contender:
    def missing() -> str:
        if wants and importlib.util.find_spec(wants) is None:
            return f"{wants} is not installed (pip install '.[bench]')"
        return ""

    return Contender(name, lambda port, *_: [sys.executable, "-m", f"{PEERS}.{module}", str(port), *arguments], missing)


def bare(loop: str, step: str, name: str) -> Contender:
    """A bare loop in Python, with as much of forkd's work as `step` names."""

    def command(port: int, workers: int, _: Path) -> list[str]:
        return [sys.executable, "-m", f"{PEERS}.bare", str(port), str(workers), loop, step]

    return Contender(name, command)


def c(name: str, program: str) -> Contender:
    def missing() -> str:
        return "" if (BUILD / program).exists() else "not compiled (run make bench; it needs a C compiler)"

    return Contender(name, lambda port, workers, _: [str(BUILD / program), str(port), str(workers)], missing)


@functools.cache
def _net_server_missing() -> str:
    if shutil.which("perl") is None:
        return "perl is not installed"
    done = subprocess.run(["perl", "-MNet::Server::PreFork", "-e", "1"], capture_output=True, check=False)
    return "Net::Server is not installed (Debian: libnet-server-perl)" if done.returncode else ""


def _tcpserver_missing() -> str:
    if shutil.which("tcpserver") is None:
        return "tcpserver is not installed (Debian: ucspi-tcp)"
    return "" if (BUILD / "filter").exists() else "its filter is not compiled (run make bench; it needs a C compiler)"


def _prefork_pl(port: int, workers: int, _: Path) -> list[str]:
    return ["perl", str(ROOT / "bench/peers/prefork.pl"), str(port), str(workers)]


def _tcpserver(port: int, _: int, __: Path) -> list[str]:
    # No lookups of names and users, and room for all clients at once.
    options = ["-q", "-H", "-R", "-l", "localhost", "-c", "1000", "-b", "1024"]
    return ["tcpserver", *options, "127.0.0.1", str(port), str(BUILD / "filter")]


LINES = f"{PEERS}.forkd_lines:lines"

FORKD_SYNC = forkd("forkd sync", LINES)
FORKD_EVENT = forkd("forkd event", LINES, "event")
FORKD_THREADS = forkd("forkd event, 4 threads", LINES, "event", threads=4)
FORKD_ASYNC = forkd("forkd event, async", f"{PEERS}.forkd_async:lines", "event")
FORKD_BIG = forkd("forkd sync, an application of 50 MB", f"{PEERS}.forkd_big:lines", log="debug")
FORKD_KEYVALUE = forkd("forkd event", "examples.keyvalue:memory", "event")

C_PREFORK = c("C prefork", "prefork")
C_EPOLL = c("C epoll", "epoll")
ASYNCIO = python("asyncio Protocol", "protocol", "asyncio")
UVLOOP = python("uvloop Protocol", "protocol", "uvloop", wants="uvloop")
STREAMS = python("asyncio streams", "streams")
GEVENT = python("gevent", "gevent_lines", wants="gevent")
TWISTED = python("Twisted", "twisted_lines", wants="twisted")
THREADS = python("socketserver, threads", "socketserver_lines", "threads")
FORKS = python("socketserver, forks", "socketserver_lines", "forks")
NET_SERVER = Contender("Net::Server::PreFork", _prefork_pl, _net_server_missing)
TCPSERVER = Contender("tcpserver", _tcpserver, _tcpserver_missing)
BARE, FRAMED, MEASURED = (
    "a loop in Python",
    "a loop in Python, with framing",
    "a loop in Python, with framing and figures",
)
LOOPS_SYNC, LOOPS_EVENT = (
    [bare(loop, "nothing", BARE), bare(loop, "framing", FRAMED), bare(loop, "figures", MEASURED)]
    for loop in ("sync", "event")
)
KEYVALUE_ASYNCIO = python("asyncio Protocol", "keyvalue_protocol", "asyncio")
KEYVALUE_UVLOOP = python("uvloop Protocol", "keyvalue_protocol", "uvloop", wants="uvloop")

ALL = [
    *(FORKD_SYNC, FORKD_EVENT, FORKD_THREADS, FORKD_ASYNC),
    *(C_PREFORK, C_EPOLL, ASYNCIO, UVLOOP, STREAMS, GEVENT, TWISTED, THREADS, FORKS, NET_SERVER, TCPSERVER),
    *(*LOOPS_SYNC, *LOOPS_EVENT),
]
