"""`forkd start`, `stop` and `restart`: a daemon that inherits nothing from its caller, and an accurate report."""

from __future__ import annotations

import ctypes
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forkd.errors import Exit
from forkd.ipc import control_client
from forkd.kernel.pidfile import holder
from tests.conftest import Forkd
from tests.live.test_life import at_gate, call
from tests.server import (
    AS_NOBODY,
    FORKD,
    HANDLERS,
    LIMIT,
    ROOT,
    alive,
    children,
    connect,
    exchange,
    family,
    nobody_missing,
    open_files,
    program,
    title,
    until,
    zombies,
)

pytestmark = pytest.mark.slow

ROOT_USER = 'user = "root"\n' if os.geteuid() == 0 else ""
GATED = (HANDLERS / "gate.py").read_text().replace('Path("gate")', 'Path(__file__).with_name("gate")')
SERVING = re.compile(r"(?m)^serving test on (\S+)$")


def subreaper(on: int) -> None:
    """Makes orphans children of this process, so that a test finds every process it has started (prctl(2))."""
    ctypes.CDLL(None).prctl(36, on, 0, 0, 0)


class Host:
    """A folder with a settings file, and the daemons started from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pidfile = folder / "forkd.pid"
        self.control = folder / "control.sock"
        self.before = set(children(os.getpid()))

    def write(self, app: str = "small:shout", master: str = "", **keys: object) -> Host:
        """Writes the settings of one service."""
        keys = {"app": f'"{app}"', "listen": '"127.0.0.1:0"', "path": f'"{HANDLERS}"', "workers": 1} | keys
        service = "".join(f"{key} = {value}\n" for key, value in keys.items())
        head = f'{ROOT_USER}control = "control.sock"\npidfile = "forkd.pid"\n{master}\n'
        (self.folder / "forkd.toml").write_text(f"[master]\n{head}[service.test]\n{service}")
        return self

    def gated(self, **keys: object) -> Path:
        """Writes the settings of a service whose import waits at a gate. Returns the gate."""
        os.mkfifo(self.folder / "gate")
        (self.folder / "gated.py").write_text(GATED)
        self.write("gated:shout", path='"."', **keys)
        return self.folder / "gate"

    def forkd(
        self, *arguments: str, status: int = 0, before: list[str] | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command, which must exit with this status. It only returns once no process holds its pipes."""
        done = program(*arguments, cwd=self.folder, before=before, **variables)
        assert done.returncode == status, done
        assert "Traceback" not in done.stderr or "handlers" in done.stderr
        return done

    def begin(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """Starts a command without waiting for it."""
        return subprocess.Popen(
            [*FORKD, *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def start(self, *, before: list[str] | None = None, **variables: str) -> str:
        """Starts the daemon. Returns its address."""
        done = self.forkd("start", "forkd.toml", before=before, **variables)
        found = SERVING.findall(done.stderr)
        assert len(found) == 1, done.stderr
        return str(found[0])

    @property
    def pid(self) -> int:
        return int(self.pidfile.read_text())

    def status(self) -> Any:
        return control_client.ask(self.control, {"command": "status"}, LIMIT)

    def daemons(self) -> list[int]:
        """Returns the processes that have become our children, and their descendants."""
        return [pid for child in set(children(os.getpid())) - self.before for pid in family(child)]

    def nothing_is_left(self) -> None:
        assert [pid for pid in self.daemons() if alive(pid) and "forkd" in title(pid)] == []
        assert not self.pidfile.exists()
        assert not self.control.exists()

    def close(self) -> None:
        for pid in self.daemons():
            if alive(pid) and "forkd" in title(pid):
                os.kill(pid, signal.SIGKILL)
        for pid in set(children(os.getpid())) - self.before:
            os.waitpid(pid, 0)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    subreaper(1)
    found = Host(tmp_path)
    try:
        yield found
    finally:
        found.close()
        subreaper(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yields a folder that every user may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


# A start that returns when the daemon serves, and a stop that returns when nothing is left.


def test_it_serves_and_stops_and_leaves_nothing(host: Host) -> None:
    address = host.write().start()
    assert exchange(connect(address), b"hello\n") == b"HELLO\n"
    assert host.pid == host.status()["master"]["pid"] == holder(host.pidfile)
    assert title(host.pid) == "forkd: master"
    with connect(address) as client:
        assert call(client, b"here\n") == b"HERE\n"
        done = host.forkd("stop", "-c", "forkd.toml")
        assert (done.stdout, done.stderr) == ("", "")
        assert client.recv(100) == b""
    host.nothing_is_left()


def test_it_answers_only_when_it_serves(host: Host) -> None:
    gate = host.gated()
    start = host.begin("start", "forkd.toml")
    held = at_gate(gate)
    assert host.status()["master"]["phase"] == "starting"
    assert start.poll() is None
    os.close(held)
    _, said = start.communicate(timeout=LIMIT)
    assert start.returncode == 0
    assert exchange(connect(SERVING.findall(said)[0]), b"hello\n") == b"HELLO\n"


def test_the_commands_find_it(host: Host) -> None:
    host.write().start()
    for command in ("status", "stacks", "reload"):
        host.forkd(command, "-c", "forkd.toml")
    host.forkd("scale", "-c", "forkd.toml", "test", "2")
    assert host.status()["services"]["test"]["generation"] == 2
    assert host.status()["master"]["detached"] is True
    host.forkd("stop", "--control", "control.sock")
    host.nothing_is_left()


def test_an_application_needs_no_file(host: Host) -> None:
    (host.folder / "mine.py").write_text((HANDLERS / "small.py").read_text())
    options = ["mine:shout", "--listen", "127.0.0.1:0", "--workers", "1", "--set", "master.control=control.sock"]
    if ROOT_USER:
        options += ["--set", "master.user=root"]
    done = host.forkd("start", *options)
    (address,) = re.findall(r"(?m)^serving shout on (\S+)$", done.stderr)
    assert exchange(connect(address), b"hello\n") == b"HELLO\n"
    assert f"forkd: to stop it: forkd stop --control {host.control}\n" in done.stderr
    assert (host.folder / "control.pid").exists()
    host.forkd("reload", "--control", "control.sock")
    host.forkd("stop", "--control", "control.sock")
    host.nothing_is_left()
    assert not (host.folder / "control.pid").exists()


def test_a_default_socket_and_pid_file(host: Host) -> None:
    host.write()
    file = host.folder / "forkd.toml"
    file.write_text(file.read_text().replace('control = "control.sock"\npidfile = "forkd.pid"\n', ""))
    run = host.folder / "run"
    run.mkdir(mode=0o700)
    host.forkd("start", "forkd.toml", RUNTIME_DIRECTORY=str(run))
    assert {each.suffix for each in run.iterdir()} == {".pid", ".sock"}
    assert len({each.stem for each in run.iterdir()}) == 1
    host.forkd("status", "-c", "forkd.toml", RUNTIME_DIRECTORY=str(run))
    host.forkd("stop", "-c", "forkd.toml", RUNTIME_DIRECTORY=str(run))
    assert list(run.iterdir()) == []


# Reasons not to start.


def broken_file(host: Host) -> None:
    host.write(workers=0, no_such_key=1)


def broken_import(host: Host) -> None:
    (host.folder / "mine.py").write_text("import forkd\nraise RuntimeError('handlers are broken')\n")
    host.write("mine:shout", path='"."')


def broken_lifespan(host: Host) -> None:
    host.write("lives:fails")


def unknown_user(host: Host) -> None:
    host.write(user='"no-such-user"')


def no_such_folder(host: Host) -> None:
    host.write(master='log.file = "none/forkd.log"')


def plain(text: str) -> str:
    """Returns the output without the times and numbers in log records, which differ between runs."""
    return re.sub(r"(?m)^20[\d-]+ [\d:.]+|(?<=pid=)\d+|(?<=age=)[\d.e-]+", "", text)


@pytest.mark.parametrize("wrong", [broken_file, broken_import, broken_lifespan, unknown_user, no_such_folder])
def test_the_reason_is_that_of_run(host: Host, wrong: Callable[[Host], None]) -> None:
    wrong(host)
    file = str(host.folder / "forkd.toml")
    ran = program("run", file, cwd=host.folder)
    assert ran.returncode in (Exit.FAILED, Exit.CONFIG)
    done = host.forkd("start", file, status=ran.returncode)
    assert (done.stdout, plain(done.stderr)) == ("", plain(ran.stderr))
    assert ("forkd.toml:" in done.stderr) == (ran.returncode == Exit.CONFIG)
    host.nothing_is_left()


def test_an_address_in_use(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        host.write(listen=f'"127.0.0.1:{other.getsockname()[1]}"')
        ran = program("run", "forkd.toml", cwd=host.folder)
        done = host.forkd("start", "forkd.toml", status=ran.returncode)
        assert "another process listens there" in done.stderr
        assert done.stderr == ran.stderr
        host.nothing_is_left()


def test_records_are_shown_until_it_serves_and_a_warning_says_that_the_rest_is_lost(host: Host) -> None:
    done = host.forkd("start", str(host.write("untidy:shout").folder / "forkd.toml"))
    assert re.search(r"(?m) warning after the import the thread 'the clock' runs; ", done.stderr)
    assert done.stderr.splitlines()[-1] == (
        "forkd: nothing is logged from here on: a daemon needs a log file, master.log.file"
    )
    assert set(open_files(host.pid)) & {f"/dev/fd/{n}" for n in range(3)} == set()


def test_a_log_file_has_it_all(host: Host) -> None:
    done = host.forkd("start", str(host.write("untidy:shout", master='log.file = "forkd.log"').folder / "forkd.toml"))
    assert done.stderr.startswith("serving test on ")
    assert done.stderr.count("\n") == 1
    log = host.folder / "forkd.log"
    assert log.stat().st_mode & 0o777 == 0o640
    host.forkd("stop", "-c", "forkd.toml")
    text = log.read_text()
    assert " warning after the import the thread 'the clock' runs; " in text
    assert " info signal: stop " in text


def test_a_daemon_killed_before_it_serves(host: Host) -> None:
    gate = host.gated()
    start = host.begin("start", "forkd.toml")
    at_gate(gate)
    pid = host.pid
    os.kill(pid, signal.SIGKILL)
    _, said = start.communicate(timeout=LIMIT)
    assert (start.returncode, said) == (
        Exit.BROKEN_OFF,
        f"forkd: process {pid} ended before it was ready, without a reason\n",
    )


def test_a_daemon_stopped_before_it_serves(host: Host) -> None:
    gate = host.gated()
    start = host.begin("start", "forkd.toml")
    at_gate(gate)
    host.forkd("stop", "--quick", "-c", "forkd.toml")
    _, said = start.communicate(timeout=LIMIT)
    assert start.returncode == Exit.FAILED
    assert said.splitlines()[-1] == "forkd: it was stopped before it was ready"
    host.nothing_is_left()


def test_an_interrupted_start_leaves_no_server(host: Host) -> None:
    gate = host.gated()
    start = host.begin("start", "forkd.toml")
    at_gate(gate)
    start.send_signal(signal.SIGINT)
    start.communicate(timeout=LIMIT)
    assert start.returncode == 130
    host.nothing_is_left()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_running_as_root_must_be_confirmed(host: Host) -> None:
    host.write()
    file = host.folder / "forkd.toml"
    file.write_text(file.read_text().replace(ROOT_USER, ""))
    done = host.forkd("start", "forkd.toml", status=Exit.CONFIG)
    what = 'test would run as root: name another user, or confirm with user = "root"'
    assert done.stderr == f"{file}:1: master.user: {what}\n"
    host.nothing_is_left()


# One of several daemons.


def test_of_twenty_started_at_once_one_runs(host: Host) -> None:
    host.write()
    starts = [host.begin("start", "forkd.toml") for _ in range(20)]
    ended = [(start.communicate(timeout=2 * LIMIT)[1], start.returncode) for start in starts]
    served = [said for said, status in ended if status == 0]
    assert len(served) == 1, ended
    for said, status in ended:
        if said != served[0]:
            assert status == Exit.FAILED, said
            assert said.startswith(f"forkd: already running as process {host.pid}: "), said
    assert exchange(connect(SERVING.findall(served[0])[0]), b"hello\n") == b"HELLO\n"
    assert [each["pid"] for each in host.status()["workers"]] == [
        pid for pid in host.daemons() if "worker" in title(pid)
    ]
    host.forkd("stop", "-c", "forkd.toml")
    host.nothing_is_left()


def test_a_forkd_in_the_foreground_prevents_a_start(forkd: Forkd, host: Host) -> None:
    server = forkd("small:shout", workers=1, master=ROOT_USER).serving()
    done = host.forkd("start", "forkd.toml", status=Exit.FAILED)
    assert done.stderr.startswith(f"forkd: already running as process {server.pid}: ")
    done = host.forkd("restart", "forkd.toml", status=Exit.FAILED)
    assert done.stderr.startswith(f"forkd: process {server.pid} was not started by forkd start: ")
    assert exchange(server.connect(), b"hello\n") == b"HELLO\n"
    host.forkd("stop", "-c", "forkd.toml")
    assert server.exited() == 0


@pytest.fixture
def stranger() -> Iterator[int]:
    """Starts another program."""
    other = subprocess.Popen(["sleep", "1000"])
    yield other.pid
    other.kill()
    other.wait()


def test_a_pid_of_another_program_is_not_a_server(host: Host, stranger: int) -> None:
    host.write()
    host.pidfile.write_text(f"{stranger}\n")
    host.forkd("stop", "-c", "forkd.toml", status=Exit.UNREACHABLE)
    assert alive(stranger)
    host.start()
    assert host.pid == host.status()["master"]["pid"] != stranger
    host.forkd("stop", "-c", "forkd.toml")
    assert alive(stranger)
    host.nothing_is_left()


def test_a_pid_file_that_a_dead_master_left(host: Host) -> None:
    address = host.write().start()
    old = host.pid
    host.pidfile.rename(host.folder / "kept")  # otherwise its fork server would remove it
    os.kill(old, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in host.daemons()), "the end of every process")
    (host.folder / "kept").rename(host.pidfile)
    assert host.pid == old
    done = host.forkd("stop", "-c", "forkd.toml", status=Exit.UNREACHABLE)
    assert done.stderr == (
        f"forkd: no forkd is running with the control socket {host.control} or the pid file {host.pidfile}\n"
    )
    assert host.start() != address
    assert host.pid != old


def test_a_link_in_its_place_is_not_followed(host: Host) -> None:
    host.write()
    victim = host.folder / "victim"
    victim.write_text("precious\n")
    host.pidfile.symlink_to(victim)
    done = host.forkd("start", "forkd.toml", status=Exit.FAILED)
    assert f"cannot write the PID file {host.pidfile}: it is a symbolic link" in done.stderr
    assert victim.read_text() == "precious\n"
    assert host.pidfile.is_symlink()
    host.pidfile.unlink()
    host.nothing_is_left()


def test_it_is_found_without_its_control_socket_and_without_its_pid_file(host: Host) -> None:
    for missing in (host.control, host.pidfile):
        host.write().start()
        missing.unlink()
        host.forkd("stop", "-c", "forkd.toml")
        host.nothing_is_left()


def test_another_program_that_listens_at_the_control_socket_is_left_alone(host: Host, stranger: int) -> None:
    host.write()
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True)\n"
        "while True: s.accept()[0].close()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(host.control)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        done = host.forkd("stop", "-c", "forkd.toml", status=Exit.BROKEN_OFF)
        assert done.stderr.startswith(f"forkd: the forkd at {host.control} ")
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()


@pytest.mark.skipif(bool(nobody_missing()), reason=str(nobody_missing()))
def test_the_server_of_another_user_is_left_alone(host: Host, open_folder: Path) -> None:
    host.write()
    (host.folder / "forkd.toml").rename(open_folder / "forkd.toml")
    host.folder, host.pidfile, host.control = open_folder, open_folder / "forkd.pid", open_folder / "control.sock"
    host.start()
    done = host.forkd("stop", "-c", "forkd.toml", status=Exit.UNREACHABLE, before=AS_NOBODY)
    assert done.stderr == f"forkd: process {host.pid} is another user's: try as that user or as root\n"
    done = host.forkd("start", "forkd.toml", status=Exit.FAILED, before=AS_NOBODY)
    assert done.stderr.startswith(f"forkd: already running as process {host.pid}: ")
    host.forkd("stop", "-c", "forkd.toml")
    host.nothing_is_left()


# Stops.


def test_a_stop_answers_started_requests(host: Host) -> None:
    address = host.write("small:nap").start()
    with connect(address) as client:
        client.sendall(b"0.5\n")
        until(lambda: host.status()["services"]["test"]["workers"]["busy"], "a busy worker")
        host.forkd("stop", "-c", "forkd.toml")
        assert client.recv(100) == b"slept 0.5\n"
    host.nothing_is_left()


def test_a_stop_that_takes_long(host: Host) -> None:
    address = host.write("small:stubborn", request_timeout=0).start()
    pid = host.pid
    with connect(address) as client:
        client.sendall(b"for ever\n")
        until(lambda: host.status()["services"]["test"]["workers"]["busy"], "a busy worker")
        done = host.forkd("stop", "--timeout", "0.1", "-c", "forkd.toml", status=Exit.TIMED_OUT)
        assert (
            done.stderr == f"forkd: process {pid} is still running after 0.1 s; --quick does not wait for its workers\n"
        )
        # Another command is waiting, too, which is no reason to hurry.
        host.forkd("stop", "--timeout", "0.1", "-c", "forkd.toml", status=Exit.TIMED_OUT)
        assert host.status()["master"]["phase"] == "stopping"
        host.forkd("stop", "--quick", "-c", "forkd.toml")
    host.nothing_is_left()


# Restarts.


def test_a_restart_starts_another(host: Host) -> None:
    host.write().start()
    old = host.pid
    done = host.forkd("restart", "forkd.toml")
    assert exchange(connect(SERVING.findall(done.stderr)[0]), b"hello\n") == b"HELLO\n"
    assert host.pid == host.status()["master"]["pid"] != old
    assert not alive(old)


def test_a_restart_of_nothing_is_a_start(host: Host) -> None:
    done = host.write().forkd("restart", "forkd.toml")
    assert exchange(connect(SERVING.findall(done.stderr)[0]), b"hello\n") == b"HELLO\n"


@pytest.mark.parametrize("wrong", [broken_file, broken_import, unknown_user])
def test_a_restart_with_broken_settings_changes_nothing(host: Host, wrong: Callable[[Host], None]) -> None:
    address = host.write().start()
    old = host.pid
    wrong(host)
    done = host.forkd("restart", "forkd.toml", status=Exit.CONFIG)
    assert f"{host.folder}/forkd.toml:" in done.stderr
    assert host.pid == host.status()["master"]["pid"] == old
    assert exchange(connect(address), b"hello\n") == b"HELLO\n"


def test_an_upgrade_keeps_its_place(host: Host) -> None:
    address = host.write().start()
    old = host.pid
    host.forkd("upgrade", "-c", "forkd.toml")
    assert host.pid == holder(host.pidfile) == host.status()["master"]["pid"] == old
    assert host.status()["master"]["detached"] is True
    done = host.forkd("start", "forkd.toml", status=Exit.FAILED)
    assert done.stderr.startswith(f"forkd: already running as process {old}: ")
    assert exchange(connect(address), b"hello\n") == b"HELLO\n"
    host.forkd("stop", "-c", "forkd.toml")
    host.nothing_is_left()


# A daemon inherits nothing from its caller.


def field(pid: int, name: str) -> str:
    (found,) = re.findall(rf"(?m)^{name}:\s*(.*)$", Path(f"/proc/{pid}/status").read_text())
    return str(found)


def stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat from the state on (proc(5)): state, parent, group, session, terminal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def everybody(host: Host) -> list[int]:
    found = family(host.pid)
    assert len(found) == 3
    return found


def test_folder_umask_and_streams(host: Host) -> None:
    host.write()
    host.start(before=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    for pid in everybody(host):
        assert str(Path(f"/proc/{pid}/cwd").readlink()) == "/"
        assert field(pid, "Umask") == "0022"
        assert [str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in range(3)] == [os.devnull] * 3


def test_a_unix_socket_has_its_rights(host: Host) -> None:
    one, other = host.folder / "one.sock", host.folder / "other.sock"
    host.write(listen=f'["unix:{one}", {{ address = "unix:{other}", mode = "0606" }}]')
    host.forkd("start", "forkd.toml", before=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    assert (one.stat().st_mode & 0o777, other.stat().st_mode & 0o777) == (0o755, 0o606)
    assert host.control.stat().st_mode & 0o777 == 0o600


def test_no_descriptor_is_inherited(host: Host) -> None:
    host.write()
    kept = host.folder / "kept"
    with kept.open("w") as file:
        start = host.begin("start", "forkd.toml", pass_fds=[file.fileno()])
        start.communicate(timeout=LIMIT)
    assert start.returncode == 0
    for pid in everybody(host):
        assert str(kept) not in open_files(pid)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_it_does_without_standard_streams(host: Host, closed: str) -> None:
    host.write()
    host.forkd("start", "forkd.toml", before=["sh", "-c", f'exec "$@" {closed}', "sh"])
    assert [str(Path(f"/proc/{host.pid}/fd/{fd}").readlink()) for fd in range(3)] == [os.devnull] * 3
    assert host.status()["master"]["phase"] == "serving"


def test_signals_that_were_ignored_or_blocked_are_obeyed(host: Host) -> None:
    host.write()
    ignoring = "import os, signal, sys\nfor each in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:\n"
    ignoring += "    signal.signal(each, signal.SIG_IGN)\nsignal.pthread_sigmask(0, signal.valid_signals())\n"
    ignoring += "os.execvp(sys.argv[1], sys.argv[1:])\n"
    host.start(before=[sys.executable, "-c", ignoring])
    python_ignores = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
    master, server, worker = everybody(host)
    ours = sum(1 << number - 1 for number in signal.valid_signals())  # the C library keeps 32 and 33 for itself
    assert int(field(master, "SigIgn"), 16) & ours == python_ignores
    for pid in (server, worker):  # they ignore only the signals meant for the master
        assert not int(field(pid, "SigIgn"), 16) & (1 << signal.SIGALRM - 1 | 1 << signal.SIGCHLD - 1)
    assert [int(field(pid, "SigBlk"), 16) for pid in (master, server, worker)] == [0, 0, 0]
    os.kill(master, signal.SIGHUP)
    until(lambda: host.status()["services"]["test"]["generation"] == 2, "the reload")
    os.kill(master, signal.SIGTERM)
    until(lambda: not alive(master), "its end")


def test_it_has_no_terminal_and_outlives_the_one_of_its_start(host: Host) -> None:
    host.write()
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(host.folder)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [*FORKD, "start", "forkd.toml"])
    said = b""
    while b"nothing is logged" not in said:
        said += os.read(terminal, 4096)
    assert os.waitpid(child, 0)[1] == 0
    for pid in everybody(host):
        _, _, group, session, tty = stat(pid)[:5]
        assert tty == "0"
        assert int(session) not in (child, pid)  # a session leader could acquire a terminal again
        assert int(group) == int(session)
    os.close(terminal)  # its owner receives SIGHUP
    assert exchange(connect(SERVING.findall(said.decode().replace("\r", ""))[0]), b"hello\n") == b"HELLO\n"
    assert host.status()["services"]["test"]["generation"] == 1


def test_relative_paths_hold_in_another_folder(host: Host) -> None:
    (host.folder / "lib").mkdir()
    (host.folder / "lib" / "wares.py").write_text("WARES = b'wares'\n")
    (host.folder / "apps").mkdir()
    (host.folder / "apps" / "shop.py").write_text(
        "import forkd, wares\n@forkd.service(forkd.Lines())\ndef shop(request):\n    return wares.WARES\n"
    )
    host.write("shop:shop", path='"apps"', master='log.file = "forkd.log"')
    first = ["env", "-i", f"PYTHONPATH={ROOT}:lib", f"PATH={os.environ['PATH']}"]
    address = host.start(before=first)
    assert exchange(connect(address), b"?\n") == b"wares\n"
    assert host.status()["master"]["config"] == str(host.folder / "forkd.toml")
    # A title overwrites the environment, which is located by its first entry.
    assert Path(f"/proc/{host.pid}/cmdline").read_bytes().startswith(b"forkd: master\0")
    host.forkd("reload", "-c", "forkd.toml")
    assert (host.folder / "forkd.log").exists()
    host.forkd("stop", "-c", "forkd.toml")
    host.nothing_is_left()


# Signals that the caller had blocked, and PID 1.


def test_a_forkd_in_the_foreground_obeys_signals_that_were_blocked(host: Host) -> None:
    host.write()
    holding = "import os, signal, sys\nsignal.pthread_sigmask(0, signal.valid_signals())\n"
    holding += "os.execvp(sys.argv[1], sys.argv[1:])\n"
    server = subprocess.Popen(
        [sys.executable, "-c", holding, *FORKD, "run", "forkd.toml"],
        cwd=host.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    until(lambda: "serving" in server.stderr.readline(), "that it serves")
    server.terminate()
    server.communicate(timeout=LIMIT)
    assert server.returncode == 0


ORPHANS = """
import os
import forkd

@forkd.service(forkd.Lines())
def leave(request):
    if os.fork() == 0:
        if os.fork() == 0:
            os.read(int(request), 1)
        os._exit(0)
    os.wait()
    return b"left"
"""


def pid_namespace_missing() -> str:
    trial = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "needs the program unshare"
    return done.stderr.strip()


@pytest.fixture
def first(host: Host) -> Iterator[subprocess.Popen[str]]:
    """Runs `forkd run` as PID 1 of a PID namespace. Its parent, unshare(1), exits with its status."""
    if reason := pid_namespace_missing():
        pytest.skip(f"PID 1 of a PID namespace: {reason}")
    (host.folder / "orphans.py").write_text(ORPHANS)
    gate = host.folder / "gate"
    os.mkfifo(gate)
    host.write("orphans:leave", path='"."')
    started = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", *FORKD, "run", "forkd.toml"],
        cwd=host.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    yield started
    for pid in family(started.pid)[1:]:
        os.kill(pid, signal.SIGKILL)
    started.communicate(timeout=LIMIT)


def test_as_process_1_it_reaps_and_stops(host: Host, first: subprocess.Popen[str]) -> None:
    assert first.stderr is not None
    found = until(lambda: SERVING.match(first.stderr.readline()), "that it serves")
    (master,) = children(first.pid)
    assert field(master, "NSpid").split()[1] == "1"
    with connect(found[1]) as client:
        for _ in range(3):
            assert call(client, b"0\n") == b"left\n"  # the orphan's standard input has ended
        until(lambda: len(family(master)) == 3 and not zombies(master), "no zombie and no other process")
        os.kill(master, signal.SIGTERM)
        assert client.recv(100) == b""
    assert first.wait(LIMIT) == 0
    host.nothing_is_left()


def test_as_process_1_it_loses_no_early_signal(host: Host) -> None:
    if reason := pid_namespace_missing():
        pytest.skip(f"PID 1 of a PID namespace: {reason}")
    settings = (host.write().folder / "forkd.toml").read_bytes()
    file = host.folder / "late.toml"
    os.mkfifo(file)
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    started = subprocess.Popen(
        [*unshare, *FORKD, "run", "late.toml"],
        cwd=host.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    gate = at_gate(file)  # it has begun to read
    (master,) = children(started.pid)
    os.kill(master, signal.SIGTERM)
    os.write(gate, settings)
    os.close(gate)
    _, said = started.communicate(timeout=LIMIT)
    assert started.returncode == 0
    assert " info signal: stop " in said
    host.nothing_is_left()


def test_a_container_is_not_ended_by_a_start(host: Host) -> None:
    if reason := pid_namespace_missing():
        pytest.skip(f"PID 1 of a PID namespace: {reason}")
    host.write()
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    done = host.forkd("start", "forkd.toml", before=unshare, status=Exit.USAGE)
    assert done.stderr == "forkd: this is process 1 of a container, which ends with it: use forkd run\n"
