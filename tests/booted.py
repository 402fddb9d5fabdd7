"""A throw-away machine for tests, with systemd as its first process. It boots in about a second.

It is made of namespaces (unshare(1)): this machine's files under an overlay that keeps changes in memory, its own
processes, a cgroup, and a network with only loopback. None of it is visible outside, and it ends with its cgroup or
with the test process. forkd is installed there from its wheel, in a virtual environment in /opt/forkd.
Call `missing()` first, and skip with the reason it returns.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from tests import wheel
from tests.server import HANDLERS, LIMIT, ROOT, children, connect, until

SHARE = Path("/srv/share")
"""A folder that both machines see; on this one it is `Machine.share`."""

_DIES_WITH_US = ("setpriv", "--pdeathsig=KILL", "--")
_TOOLS = ("setpriv", "unshare", "nsenter", "mount", "pivot_root", "systemctl", "systemd-analyze")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEWNET = 0x40000000  # setns(2)


@functools.cache
def missing() -> str | None:
    """Returns why no machine can be booted here, as a skip reason; None if one can."""
    if os.geteuid() != 0:
        return "a systemd of the test's own needs root"
    found = f"{os.environ.get('PATH', '')}:{_PATH}"
    if lacking := [each for each in _TOOLS if not shutil.which(each, path=found)]:
        return f"a systemd of the test's own needs {', '.join(lacking)}"
    if _cgroup2() is None:
        return "a systemd of the test's own needs a mounted cgroup2"
    if reason := wheel.builder_missing():
        return reason
    overlay = (
        "mkdir /mnt/u /mnt/w /mnt/m && mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w overlay /mnt/m"
    )
    make = f"mount -t tmpfs tmpfs /mnt && {overlay} && mknod /mnt/null c 1 3 && mount -t proc proc /proc"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--net", "--ipc", "--uts", "sh", "-c", make],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"no machine can be made here: {done.stderr.strip()}"


def _cgroup2() -> Path | None:
    """Returns where cgroup2 is mounted (proc(5), mountinfo)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] == "cgroup2":
            return Path(left.split()[4])
    return None


class Machine:
    """A booted machine. `root` is its root folder and `share` its SHARE, both as this machine sees them."""

    def __init__(self, folder: Path) -> None:
        cgroups = _cgroup2()
        assert cgroups is not None
        self.share = folder / "share"
        self._cgroup = cgroups / f"forkd-test-{os.getpid()}-{folder.name}"
        self._cgroup.mkdir()
        self._console, terminal = pty.openpty()
        join = 'echo 0 >"$0/cgroup.procs" && exec unshare --mount --propagation=private --uts --ipc --net --cgroup "$@"'
        boot = ["sh", str(ROOT / "tests/boot.sh"), str(folder), os.ttyname(terminal), _setup()]
        apart = [*_DIES_WITH_US, "unshare", "--pid", "--fork", "--kill-child=KILL"]
        self._process = subprocess.Popen(
            [*apart, "sh", "-c", join, str(self._cgroup), *boot],
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        os.set_blocking(self._console, False)
        self._told = b""
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> None:
        until(lambda: children(self._process.pid) or self._ended(), "the first process of a machine")
        self.pid = children(self._process.pid)[0]
        self.root = Path(f"/proc/{self.pid}/root")
        until(lambda: self._ended() or self._is_up(), "systemd up", 60)
        state = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
        assert state == "running", f"{state}\n{self.run('systemctl', '--failed').stdout}\n{self._shown()}"

    def _ended(self) -> bool:
        self._shown()
        if self._process.poll() is not None:
            raise AssertionError(f"the machine did not boot:\n{self._shown()}")
        return False

    def _is_up(self) -> bool:
        comm = Path(f"/proc/{self.pid}/comm").read_text()
        return comm == "systemd\n" and (self.root / "run/systemd/private").exists()

    def _shown(self) -> str:
        """Returns everything the console has shown so far."""
        with suppress(OSError):
            while data := os.read(self._console, 65536):
                self._told += data
        return self._told.decode(errors="replace")

    def command(self, *argv: str) -> list[str]:
        """Returns the command line that runs `argv` inside, as root."""
        enter = [f"--{each}=/proc/{self.pid}/ns/{each}" for each in ("uts", "ipc", "net", "pid", "cgroup")]
        mount = f"--mount=/proc/{self.pid}/ns/mnt"
        return ["nsenter", *enter, mount, "--wd=/", "env", "-i", f"PATH={_PATH}", "LC_ALL=C.UTF-8", *argv]

    def in_network(self) -> list[str]:
        """Returns a prefix for a command line that runs a program of this machine in the other one's network."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def run(self, *argv: str, check: bool = True, limit: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs `argv` inside to its end; raises AssertionError with its output if it fails."""
        done = subprocess.run(
            self.command(*argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.journal()[-3000:]}"
            )
        return done

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Like `run`, but does not wait."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*argv), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def show(self, unit: str, key: str) -> str:
        """Returns a property of a unit, as systemctl(1) shows it."""
        return self.run("systemctl", "show", "--value", f"--property={key}", unit).stdout.strip()

    def main(self, unit: str = "forkd.service") -> int:
        """Returns the PID, on this machine, of the unit's main process; 0 if there is none."""
        inside = self.show(unit, "MainPID")
        return next((pid for pid in self.processes(unit) if _inner(pid) == inside), 0)

    def processes(self, unit: str = "forkd.service") -> list[int]:
        """Returns the PIDs, on this machine, of all processes in the unit's cgroup."""
        cgroup = self.show(unit, "ControlGroup")
        found: list[int] = []
        if cgroup:
            for file in (self._cgroup / cgroup.lstrip("/")).rglob("cgroup.procs"):
                with suppress(OSError):
                    found += [int(line) for line in file.read_text().split()]
        return found

    def journal(self, *match: str) -> str:
        argv = ["journalctl", "--no-pager", "--quiet", "--output=cat", *match]
        return subprocess.run(self.command(*argv), capture_output=True, text=True, timeout=LIMIT, check=False).stdout

    def connect(self, address: str, *, timeout: float = 10.0) -> socket.socket:
        """Connects a client from inside: a socket stays in the network in which it was made."""
        if address.startswith("unix:/"):
            return connect(f"unix:{self.root}{address.removeprefix('unix:')}", timeout=timeout)
        with self._network():
            return connect(address, timeout=timeout)

    @contextmanager
    def _network(self) -> Iterator[None]:
        """Moves this thread into the machine's network for the length of the block."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as ours, Path(f"/proc/{self.pid}/ns/net").open() as theirs:
            assert libc.setns(theirs.fileno(), _NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(ours.fileno(), _NEWNET) == 0, os.strerror(ctypes.get_errno())

    def close(self) -> None:
        """Kills all processes of the machine at once; its namespaces end with them."""
        with suppress(OSError):
            (self._cgroup / "cgroup.kill").write_text("1")
        self._process.kill()
        self._process.wait(LIMIT)
        os.close(self._console)
        until(self._is_removed, f"no process in {self._cgroup}")

    def _is_removed(self) -> bool:
        """Removes the cgroups that are empty, leaves first; returns whether all are removed."""
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
        return not self._cgroup.exists()


@contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """Runs a machine for the length of the block, with the services of tests/handlers in SHARE."""
    share = folder / "share"
    (folder / "layers").mkdir()
    share.mkdir(mode=0o755)
    share.chmod(0o755)
    wheel.build(share)
    shutil.copytree(HANDLERS, share / "handlers", ignore=shutil.ignore_patterns("__pycache__"))
    _copy_distributions(share / "site")
    if Path(sys.base_prefix) != Path("/usr"):
        (folder / "python").symlink_to(sys.base_prefix)
    machine = Machine(folder)
    try:
        yield machine
    finally:
        machine.close()


def _setup() -> str:
    """Returns a script that installs forkd as a newcomer would, but with dependencies from the tests' environment."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    base = "/usr/bin" if Path(sys.base_prefix) == Path("/usr") else "/opt/python/bin"
    return f"""
        if ls /opt/python/lib/libpython*.so.* 2>/dev/null; then  # else it is looked for only where it was built
            echo /opt/python/lib >/etc/ld.so.conf.d/forkd-test.conf
            ldconfig
        fi
        {base}/{version} -m venv --without-pip /opt/forkd
        cp -R {SHARE}/site/. /opt/forkd/lib/{version}/site-packages/
        /opt/forkd/bin/python -m pip --isolated --disable-pip-version-check install --quiet \\
            --no-index --root-user-action=ignore {SHARE}/*.whl
    """


def _copy_distributions(folder: Path) -> None:
    """Copies forkd's dependencies, and pip, from the tests' environment."""
    found = {"pip": metadata.distribution("pip")}
    wanted = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    while wanted:
        name, _, condition = wanted.pop().partition(";")
        name = re.split(r"[^\w.-]", name.strip())[0]
        if "extra" in condition or name.lower() in found:
            continue
        with suppress(metadata.PackageNotFoundError):  # needed only on another platform or Python
            found[name.lower()] = each = metadata.distribution(name)
            wanted += each.requires or []
    for each in found.values():
        for file in each.files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target)


def _inner(pid: int) -> str:
    """Returns a process's PID in its own namespace (proc(5), NSpid); "" if it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1]
    return ""
