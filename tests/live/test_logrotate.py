"""Debian's own logrotate(8), with the shipped file, next to a server under load."""

from __future__ import annotations

import getpass
import grp
import gzip
import os
import re
import shutil
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Forkd
from tests.server import LIMIT, ROOT, Server, connect, open_files, until

TURNS = 6
CONNECTIONS = 40  # at least, between two rotations

pytestmark = pytest.mark.slow

LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} info "
    r"(signal: (?:reopen logs signal=SIGUSR1|stop signal=SIGTERM)|"
    r"access service=\w+ worker=\d+ gen=1 connection=\d+ peer=(?P<peer>\S+) "
    r"seconds=\S+ requests=3 bytes_in=6 bytes_out=6 end=client)"
)
KINDS = {
    "sync": 'app = "visits:visit"\nworkers = 3',
    "event": 'app = "visits:visit"\nworkers = 2\nworker = "event"',
    "threads": 'app = "visits:visit"\nworkers = 1\nworker = "event"\nthreads = 3',
    "async": 'app = "visits:awaited"\nworkers = 1\nworker = "event"',
}


def missing() -> str | None:
    """Returns why logs cannot be rotated here, as a reason to skip; None if they can."""
    if Path("/run/systemd/system").is_dir():
        return "the shipped file would call this machine's systemd"
    return None if shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin") else "needs the program logrotate"


class Rotation:
    """Runs logrotate with the shipped file, adapted to the test's paths."""

    def __init__(self, folder: Path) -> None:
        text = (ROOT / "etc/forkd.logrotate").read_text()
        for shipped, ours in (
            ("/var/log/forkd/*.log", f"{folder}/logs/*.log"),
            ("/var/log/forkd-*/*.log", f"{folder}/logs-*/*.log"),
            ("/run/forkd/forkd.pid", f"{folder}/forkd.pid"),
            ("su forkd forkd", f"su {getpass.getuser()} {_group()}" if os.geteuid() == 0 else ""),
        ):
            assert shipped in text
            text = text.replace(shipped, ours)
        self._file, self._state = folder / "forkd.logrotate", folder / "state"
        self._file.write_text(text)
        self._file.chmod(0o644)

    def turn(self) -> None:
        """Forces a rotation."""
        path = f"{os.environ['PATH']}:/usr/sbin"
        done = subprocess.run(
            ["logrotate", "--force", "--state", str(self._state), str(self._file)],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def _group() -> str:
    return grp.getgrgid(os.getgid()).gr_name


class Callers:
    """Clients that call one service each, over and over. `made` names their connections in the order they ended."""

    def __init__(self, server: Server, services: list[str]) -> None:
        self.made: list[str] = []
        self._over = threading.Event()
        addresses = dict(server.addresses)
        self._threads = [threading.Thread(target=self._call, args=(addresses[each],)) for each in services]
        for thread in self._threads:
            thread.start()

    def _call(self, address: str) -> None:
        while not self._over.is_set():
            with connect(address) as client:
                name = "{}:{}".format(*client.getsockname())
                client.sendall(b"a\nb\nc\n")
                client.shutdown(socket.SHUT_WR)
                answer = bytearray()
                while piece := client.recv(100):
                    answer += piece
                assert answer == b"A\nB\nC\n"
                self.made.append(name)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(LIMIT)


def test_no_line_is_lost_or_torn_and_everybody_closes_the_old_file(forkd: Forkd, tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o755)
    handlers = ROOT / "tests/handlers"
    services = "".join(
        f'[service.{name}]\npath = "{handlers}"\nlisten = "127.0.0.1:0"\naccess = true\n{keys}\n'
        for name, keys in KINDS.items()
    )
    master = f'pidfile = "{tmp_path}/forkd.pid"\nlog.file = "{logs}/forkd.log"'
    server = forkd(file=services, master=master).serving(len(KINDS))
    rotation, callers = Rotation(tmp_path), Callers(server, [*KINDS] * 2)
    try:
        for _ in range(TURNS):
            before = len(callers.made)
            until(lambda: len(callers.made) >= before + CONNECTIONS, "some more connections")  # noqa: B023
            rotation.turn()
            old = f"{logs}/forkd.log.1"
            until(lambda: closed_by_all(server, old), "the old log is closed by all")  # noqa: B023
            size = Path(old).stat().st_size
            until(lambda: has_once(server, f"{logs}/forkd.log"), "the new log is open once in all")
            before = len(callers.made)
            until(lambda: len(callers.made) >= before + CONNECTIONS, "some more connections")  # noqa: B023
            assert Path(old).stat().st_size == size
    finally:
        callers.end()
    assert server.stop() == 0
    names = sorted(path.name for path in logs.iterdir())
    assert names == ["forkd.log", "forkd.log.1", *(f"forkd.log.{number}.gz" for number in range(2, TURNS + 1))]
    peers: Counter[str] = Counter()
    for path in logs.iterdir():
        *lines, last = read(path).split("\n")
        assert last == ""
        for line in lines:
            found = LINE.fullmatch(line)
            assert found is not None, line
            if found["peer"]:
                peers[found["peer"]] += 1
    assert peers == Counter(callers.made)


def closed_by_all(server: Server, path: str) -> bool:
    return not any(path in open_files(pid) for pid in server.family())


def has_once(server: Server, path: str) -> bool:
    """True if each process has the file open once. For a moment it is open twice: as received, and where the log
    writes."""
    return all(open_files(pid).count(path) == 1 for pid in server.family())


def read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
