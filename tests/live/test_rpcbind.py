"""A real forkd and Debian's own rpcbind(8), on a simulated machine: a network and a /run that no other process sees."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.server import AS_NOBODY, FORKD, LIMIT, NOBODY, ROOT, Server, nobody_missing, running, until

PROGRAM = 0x20049001
RPCBIND = shutil.which("rpcbind", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""
SERVICE = """
[service.test]
app = "forkd.services:echo"
workers = 1
"""

pytestmark = pytest.mark.slow


class Machine:
    """Network and mount namespaces, kept alive by a process, and the programs that run inside."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        make = "ip link set lo up && mount -t tmpfs tmpfs /run && mkdir /run/rpcbind && chown _rpc /run/rpcbind"
        self._holder = self._start("unshare", "--net", "--mount", "sh", "-c", f"{make} && echo made && exec cat")
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "made\n":
            raise OSError(self._holder.stderr.read() if self._holder.stderr else "")

    def _start(self, *argv: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

        def end() -> None:
            process.kill()
            process.communicate(timeout=LIMIT)

        self._stack.callback(end)
        return process

    def command(self, *argv: str) -> list[str]:
        """Returns the command line that runs `argv` inside, in the test's folder. The PID is the program's own."""
        return ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", f"--wdns={self._folder}", *argv]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
        )

    def rpcbind(self) -> subprocess.Popen[str]:
        """Starts a port mapper and waits until it answers."""
        process = self._start(*self.command(RPCBIND, "-f"))
        until(lambda: self.run("rpcinfo", "-p", "127.0.0.1").returncode == 0, "an rpcbind that answers")
        return process

    def mapped(self, version: int = 1) -> int:
        """Returns the port that the port mapper lists for the program, 0 if none."""
        for line in self.run("rpcinfo", "-p", "127.0.0.1").stdout.splitlines():
            match line.split():
                case [program, found, "tcp", port, *_] if (program, found) == (str(PROGRAM), str(version)):
                    return int(port)
        return 0

    def forkd(self, keys: str = f"rpcbind = {{ program = {PROGRAM:#x} }}", listen: str = '"127.0.0.1:0"') -> Server:
        """Starts a server with these keys in its service, and waits until it serves."""
        self.write(keys, listen)
        program = self.command(*FORKD)
        return self._stack.enter_context(running(["forkd.toml"], self._folder, program=program)).serving()

    def write(self, keys: str, listen: str = '"127.0.0.1:0"') -> None:
        master = f'[master]\ncontrol = "{self._folder}/control.sock"\nuser = "root"\n'
        (self._folder / "forkd.toml").write_text(f"{master}{SERVICE}listen = {listen}\n{keys}\n")

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = ["env", f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1"]
        return self.run(*environment, sys.executable, "-m", "forkd", "call", *arguments)


@functools.cache
def missing() -> str | None:
    """Returns why there can be no such machine here, as a reason to skip; None if there can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    if not RPCBIND:
        return "this needs rpcbind"
    for tool in ("ip", "nsenter", "rpcinfo", "unshare"):
        if not shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
            return f"this needs the program {tool}"
    try:
        with ExitStack() as stack:
            done = Machine(Path("/"), stack).run("true")
    except OSError as error:
        return f"namespaces do not work here: {error}"
    return None if done.returncode == 0 else f"namespaces cannot be entered here: {done.stderr.strip()}"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if reason := missing():
        pytest.skip(reason)
    with ExitStack() as stack:
        yield Machine(tmp_path, stack)


def port_of(server: Server) -> int:
    """Returns the port that the kernel chose for the last listener."""
    return int(server.addresses[-1][1].rpartition(":")[2])


def test_a_service_is_listed_while_it_runs_and_not_after(machine: Machine) -> None:
    machine.rpcbind()
    server = machine.forkd()
    server.said("registered with port")
    assert machine.mapped() == port_of(server)
    mapping = {"program": PROGRAM, "version": 1, "port": port_of(server)}
    assert server.status("test")["rpcbind"] == mapping | {"registered": True, "wrong": None}
    for program in (f"{PROGRAM:#x}", f"{PROGRAM}:1"):
        for host in ("127.0.0.1", "localhost"):
            done = machine.call("--rpc", program, host, "hello")
            assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert server.stop() == 0
    assert machine.mapped() == 0
    done = machine.call("--rpc", f"{PROGRAM:#x}", "127.0.0.1", "hello")
    assert done.returncode == 69
    assert "program 0x20049001 version 1 is not registered" in done.stderr


def test_a_port_mapper_that_was_started_again_is_told_again(machine: Machine) -> None:
    mapper = machine.rpcbind()
    server = machine.forkd()
    server.said("registered with port")
    mapper.kill()
    mapper.wait(LIMIT)
    machine.rpcbind()
    until(lambda: machine.mapped() == port_of(server), "registered again")


def test_without_a_port_mapper_the_service_runs_and_is_registered_when_one_comes(machine: Machine) -> None:
    server = machine.forkd(listen='["[::1]:0", "127.0.0.1:0"]').serving(2)
    server.said("warning rpcbind: the port mapper cannot be used: Connection refused; test")
    told = server.status("test")["rpcbind"]
    assert (told["registered"], told["wrong"]) == (False, "Connection refused")
    done = machine.call("--rpc", f"{PROGRAM:#x}", "127.0.0.1", "hello")
    assert done.returncode == 69
    assert "no answer from the port mapper of 127.0.0.1" in done.stderr
    assert "ECONNREFUSED" in done.stderr
    machine.rpcbind()
    server.said("registered with port")
    assert machine.mapped() == port_of(server)
    assert len(server.said("the port mapper cannot be used")) == 1


def test_a_reload_withdraws_what_is_gone_and_registers_what_is_new(machine: Machine) -> None:
    machine.rpcbind()
    server = machine.forkd()
    server.said("registered with port")
    machine.write(f"rpcbind = {{ program = {PROGRAM:#x}, version = 2 }}")
    server.ask(command="reload")
    server.said("version 2: registered with port")
    assert (machine.mapped(1), machine.mapped(2)) == (0, port_of(server))
    machine.write("")
    server.ask(command="reload")
    until(lambda: not machine.mapped(2), "withdrawn")
    machine.write(f"rpcbind = {{ program = {PROGRAM:#x} }}")
    server.ask(command="reload")
    server.said("version 1: registered with port", 2)
    assert machine.mapped() == port_of(server)


def test_without_its_unix_socket_a_port_mapper_is_reached_by_tcp(machine: Machine) -> None:
    machine.rpcbind()
    machine.run("rm", "/run/rpcbind.sock")
    server = machine.forkd()
    server.said("registered with port")
    assert machine.mapped() == port_of(server)
    assert server.stop() == 0
    assert machine.mapped() == 0


def test_nobodys_service_is_nobodys_registration(machine: Machine, tmp_path: Path) -> None:
    """Over its unix socket, rpcbind knows which user calls, so root is not needed."""
    if reason := nobody_missing():
        pytest.skip(reason)
    machine.rpcbind()
    keys = ["--set", f"rpcbind={{ program = {PROGRAM:#x} }}"]
    arguments = ["forkd.services:echo", "--listen", "127.0.0.1:0", "--workers", "1", *keys]
    program = ["env", "-u", "XDG_RUNTIME_DIR", f"RUNTIME_DIRECTORY={tmp_path}/none", *AS_NOBODY, *FORKD]
    with running(arguments, tmp_path, program=machine.command(*program)) as server:
        server.said("registered with port")
        row = next(each for each in machine.run("rpcinfo", "127.0.0.1").stdout.splitlines() if str(PROGRAM) in each)
        assert row.split()[-1] == str(NOBODY.pw_uid)
        assert server.stop() == 0
    assert machine.mapped() == 0


def test_an_upgrade_keeps_the_registration(machine: Machine) -> None:
    machine.rpcbind()
    server = machine.forkd()
    server.said("registered with port")
    server.ask(command="upgrade")
    assert machine.mapped() == port_of(server)
    server.said("registered with port", 2)
    assert server.stop() == 0
    assert machine.mapped() == 0


def test_a_dead_predecessors_registration_is_replaced(machine: Machine) -> None:
    machine.rpcbind()
    dead = machine.forkd()
    dead.said("registered with port")
    dead.stop(signal.SIGKILL)
    dead.gone()
    assert machine.mapped() == port_of(dead)
    server = machine.forkd()
    server.said("registered with port")
    assert machine.mapped() == port_of(server) != port_of(dead)


def test_a_living_strangers_registration_stays(machine: Machine, tmp_path: Path) -> None:
    machine.rpcbind()
    first = machine.forkd()
    first.said("registered with port")
    (tmp_path / "control.sock").rename(tmp_path / "first.sock")
    second = machine.forkd()
    second.said(f"warning rpcbind: 0x20049001 version 1: another server is registered, on port {port_of(first)}")
    assert second.stop() == 0
    assert machine.mapped() == port_of(first)


def test_a_port_mapper_that_hangs_holds_nobody_up(machine: Machine) -> None:
    mapper = machine.rpcbind()
    os.kill(mapper.pid, signal.SIGSTOP)
    server = machine.forkd()
    server.said("the port mapper cannot be used: no answer within 2 s")
    assert server.ask(command="reload")["generations"] == {"test": 2}
    done = machine.call("--connect-timeout", "0.2", "--rpc", f"{PROGRAM:#x}", "127.0.0.1", "hello")
    assert done.returncode == 75, done.stderr
    assert "no answer from the port mapper of 127.0.0.1" in done.stderr
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < LIMIT / 2
