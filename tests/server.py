"""Runs a real forkd for the tests: starts it as a program, waits for what it logs, ends it by PID."""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from forkd.ipc import control_client

HANDLERS = Path(__file__).parent / "handlers"
ROOT = Path(__file__).parent.parent
LIMIT = 20.0
FORKD = [sys.executable, "-m", "forkd"]
NOBODY = pwd.getpwnam("nobody")
# `env` is there for its second exec: until that, the process keeps what a drop of privileges takes away.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups", "env"]
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]

# Root may be testing a checkout that another user owns: forkd trusts files of the user who called sudo.
if os.geteuid() == 0 and ROOT.stat().st_uid != 0:
    os.environ.setdefault("SUDO_UID", str(ROOT.stat().st_uid))

_SERVING = re.compile(r"serving (?P<service>\S+) on (?P<address>\S+)")


def until(condition: Callable[[], Any], what: str = "", limit: float = LIMIT) -> Any:
    """Waits until `condition()` is true and returns its value; fails after `limit` seconds."""
    pause = threading.Event()
    deadline = time.monotonic() + limit
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit:g} s: {what or condition}")
        pause.wait(0.005)
    return found


def alive(pid: int) -> bool:
    """Whether the process runs. A zombie does not count, although kill(pid, 0) still succeeds for one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def family(pid: int) -> list[int]:
    """Returns the PIDs of the process and all its descendants."""
    return [pid, *(each for child in children(pid) for each in family(child))]


def zombies(pid: int) -> list[int]:
    """Returns the PIDs, among the process and its descendants, that have ended but are not yet reaped."""
    return [each for each in family(pid) if not alive(each)]


def open_files(pid: int) -> list[str]:
    """Returns what the descriptors of a process refer to, in the kernel's notation."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return found


def title(pid: int) -> str:
    """Returns the process title, as ps(1) shows it; "" if the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def powers(pid: int) -> dict[str, int]:
    """Returns the capability sets of a process as bit masks, and its NoNewPrivs flag (proc(5), status)."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return {name: int(lines[name], 16) for name in (*(each for each in lines if each.startswith("Cap")), "NoNewPrivs")}


class Server:
    """One `forkd run`: its log, line by line, and all the processes it has had.

    `lines` is its standard error so far; `addresses` lists where its services listen.
    """

    def __init__(
        self, arguments: list[str], cwd: Path, *, program: list[str] | None = None, fds: Sequence[int] = ()
    ) -> None:
        self.control_path = cwd / "control.sock"
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._process = subprocess.Popen(
            [*(program or FORKD), "run", *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
            pass_fds=fds,
        )
        self.pid = self._process.pid
        self._known = {self.pid}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._said:
                self.lines.append(line.decode().rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self.lines.append("(end of standard error)")
            self._said.notify_all()

    def said(self, pattern: str, count: int = 1, limit: float = LIMIT) -> list[re.Match[str]]:
        """Waits until `count` lines match, and returns all matches so far."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self._said:
            if not self._said.wait_for(lambda: len(found()) >= count or self._ended(), limit) or len(found()) < count:
                raise AssertionError(f"forkd did not say {pattern!r} {count} times:\n" + "\n".join(self.lines))
            return found()

    def _ended(self) -> bool:
        return bool(self.lines) and self.lines[-1] == "(end of standard error)"

    def serving(self, listeners: int = 1) -> Server:
        """Waits until `listeners` listeners are announced."""
        self.said(_SERVING.pattern, listeners)
        self.family()
        return self

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """The service and address of each announced listener."""
        return [(found["service"], found["address"]) for line in self.lines if (found := _SERVING.fullmatch(line))]

    def connect(self, service: str = "", *, timeout: float = 10.0) -> socket.socket:
        """Connects a client to the first listener of a service (of any service if `service` is empty)."""
        address = next(address for name, address in self.addresses if service in ("", name))
        return connect(address, timeout=timeout)

    def ask(self, **command: Any) -> Any:
        """Sends a command over the control socket and returns the answer."""
        return control_client.ask(self.control_path, command, timeout=LIMIT)

    def status(self, service: str = "") -> Any:
        """Returns the status document, or one service's part of it."""
        document = self.ask(command="status")
        return document["services"][service] if service else document

    def family(self) -> list[int]:
        """Returns the PIDs of the master and its descendants, and remembers them for `gone`."""
        found = family(self.pid)
        self._known.update(found)
        return found

    def titled(self, pattern: str) -> list[int]:
        """Returns the PIDs of this server's processes whose whole title matches."""
        return [pid for pid in self.family() if re.fullmatch(pattern, title(pid))]

    def workers(self, service: str = "") -> list[int]:
        return [each["pid"] for each in self.status()["workers"] if service in ("", each["service"])]

    def fork_servers(self) -> list[int]:
        return self.titled(r"forkd: \S+: fork server, generation \d+")

    def kill(self, number: signal.Signals) -> None:
        self.family()
        os.kill(self.pid, number)

    def exited(self, limit: float = LIMIT) -> int:
        """Waits for the master to end and returns its exit status (negative: the signal that ended it)."""
        status = self._process.wait(limit)
        self._reader.join(limit)
        return status

    def exited_already(self) -> int | None:
        """Returns the master's exit status, None while it runs."""
        return self._process.poll()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the master a signal that ends it, and returns its exit status."""
        self.kill(number)
        return self.exited()

    def gone(self, limit: float = LIMIT) -> None:
        """Waits until every process that this server has had is gone."""
        until(lambda: not any(alive(pid) for pid in self._known), f"all of {self._known} gone", limit)

    def close(self) -> None:
        """Kills the processes that are left, by PID."""
        known = set(self.family()) | self._known
        for pid in known:
            if pid == self.pid or "forkd" in title(pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self._process.wait(LIMIT)
        self._reader.join(LIMIT)
        assert self._process.stderr is not None
        self._process.stderr.close()


def connect(address: str, *, timeout: float = 10.0, source: str = "") -> socket.socket:
    """Connects a plain client to an address written the way forkd writes it."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        path = address.removeprefix("unix:")
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        return sock
    host, _, port = address.rpartition(":")
    host = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))
    return socket.create_connection((host, int(port)), timeout, (source, 0) if source else None)


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Sends `data`, ends our side, reads until the peer ends its side, closes the socket; returns what was read."""
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = bytearray()
        while piece := sock.recv(65536):
            received += piece
        return bytes(received)


@functools.cache
def setpriv_missing() -> str | None:
    """Returns why nothing can be run POWERLESS (as root without capabilities), as a skip reason; None if it can."""
    if os.geteuid() != 0:
        return "dropping a program's capabilities needs root"
    return None if shutil.which("setpriv") else "dropping a program's capabilities needs the program setpriv"


@functools.cache
def nobody_missing() -> str | None:
    """Returns why nothing can be run AS_NOBODY, as a skip reason; None if it can."""
    if reason := setpriv_missing():
        return reason
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        readable = program("--version", cwd=Path(folder), before=AS_NOBODY).returncode == 0
    return None if readable else "the user nobody cannot read this Python or this forkd"


def program(
    *arguments: str, cwd: Path, text: str = "", before: list[str] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs `forkd` to its end with `text` on standard input; `before` is a command that execs it."""
    return subprocess.run(
        [*(before or []), *FORKD, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | variables,
        input=text,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@contextmanager
def open_python() -> Iterator[str | None]:
    """Yields a Python with which every user can run forkd; None if there is none.

    It is this interpreter, or the system's Python of the same version in a temporary virtual environment that has
    this one's packages.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = Path(folder) / "bin" / "python"
        for python in (Path(sys.executable), made):
            if python is made:
                version = f"python{sys.version_info.major}.{sys.version_info.minor}"
                command = [f"/usr/bin/{version}", "-m", "venv", "--without-pip", folder]
                with suppress(OSError):
                    subprocess.run(command, capture_output=True, check=False, timeout=LIMIT)
                for packages in Path(folder).glob("lib/python3*/site-packages"):
                    (packages / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
            with suppress(OSError):
                env = os.environ | {"PYTHONPATH": str(ROOT)}
                command = [*AS_NOBODY, str(python), "-m", "forkd", "--version"]
                if subprocess.run(command, cwd="/", env=env, capture_output=True, check=False).returncode == 0:
                    yield str(python)
                    return
        yield None


@functools.cache
def strace_missing() -> str | None:
    """Returns why system calls cannot be made to fail on purpose, as a skip reason; None if they can."""
    if not shutil.which("strace"):
        return "making system calls fail on purpose needs the program strace"
    trial = ["strace", "-e", "inject=getppid:error=EPERM", "-o", os.devnull, "true"]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"strace does not work here: {done.stderr.strip()}"


@contextmanager
def failing(pid: int, calls: str, error: str) -> Iterator[None]:
    """Makes system calls of a process fail inside the block (strace(1), --inject)."""
    tracer = subprocess.Popen(
        ["strace", "-p", str(pid), "-o", os.devnull, "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    try:
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=LIMIT)


@contextmanager
def running(
    arguments: list[str], cwd: Path, *, program: list[str] | None = None, fds: Sequence[int] = ()
) -> Iterator[Server]:
    """Runs a server for the length of the block; `program` inherits the descriptors `fds`."""
    server = Server(arguments, cwd, program=program, fds=fds)
    try:
        yield server
    finally:
        server.close()
