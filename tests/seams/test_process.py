"""Processes as the kernel sees them: what a child inherits, and what a wait status means."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import forkd
from forkd.ipc.brief import FORMAT
from forkd.ipc.channel import receive
from forkd.kernel import process, procfs
from tests.server import ROOT


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a forked process. Returns its wait status, which is 0 if `work` returned."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def status_of(work: Callable[[], object]) -> str:
    return process.outcome(in_child(work))


# What a status means.


@pytest.mark.parametrize("code", [0, 1, 78, 255])
def test_an_exit_status_in_words(code: int) -> None:
    assert status_of(lambda: os._exit(code)) == f"exit status {code}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGRTMIN])
def test_a_deadly_signal_in_words(number: signal.Signals) -> None:
    def die() -> None:
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)  # nohup(1), for example, makes us ignore one
        os.kill(os.getpid(), number)

    assert status_of(die) == f"signal {int(number)} ({number.name})"


def test_a_signal_without_a_name() -> None:
    number = signal.SIGRTMIN + 3
    assert status_of(lambda: os.kill(os.getpid(), number)) == f"signal {number} (unnamed)"


def test_every_ended_child_is_reaped_once() -> None:
    def child() -> None:
        pids = [os.posix_spawn("/bin/true", ["true"], {}) for _ in range(3)]
        for pid in pids:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert sorted(process.reap()) == [(pid, 0) for pid in sorted(pids)]
        assert list(process.reap()) == []

    assert in_child(child) == 0


# What a child process has.


@pytest.mark.parametrize(
    ("brief", "master"),
    [
        ({"version": "0.0.1", "nothing": "else"}, "forkd 0.0.1"),
        ({"version": "0.0.1", "format": FORMAT}, "forkd 0.0.1"),
        ({"version": forkd.__version__}, f"forkd {forkd.__version__} of another build"),  # no format: format 1
    ],
)
def test_a_spawned_process_runs_a_main_with_its_descriptor(
    tmp_path: Path, brief: dict[str, object], master: str
) -> None:
    """The fork server is an example. It reports a brief of another version or format."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, (tmp_path / "kept").open("w") as kept, (tmp_path / "other").open("w") as other:
        pid = process.spawn("forkserver", theirs.fileno(), [kept.fileno()])
        try:
            fds = Path(f"/proc/{pid}/fd")
            assert (fds / str(kept.fileno())).readlink() == tmp_path / "kept"
            assert (fds / str(theirs.fileno())).exists()
            assert (fds / "0").readlink() == Path(os.devnull)
            assert not (fds / str(other.fileno())).exists()
            assert not (fds / str(ours.fileno())).exists()
            # Signals are blocked until it has its own inbox.
            blocked = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigBlk" in line)
            assert int(blocked.split()[1], 16) & 1 << (signal.SIGTERM - 1)
            theirs.close()
            ours.send(json.dumps(brief).encode())
            message, _ = receive(ours) or ({}, [])
            assert message["failed"].startswith(f"the master is {master}, but forkd ")
            assert receive(ours) is None
        finally:
            assert process.outcome(os.waitpid(pid, 0)[1]) == "exit status 1"


def test_what_cannot_be_spawned_is_an_oserror() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        process.spawn("forkserver", 9999, [])


def test_signals_stay_blocked_in_a_child_born_in_the_block() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())

    def child() -> None:
        pid = os.getpid()
        with process.signals_blocked():
            if os.fork() == 0:
                os.kill(os.getpid(), signal.SIGTERM)  # held back
        if os.getpid() != pid:
            assert signal.SIGTERM in signal.sigpending()
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
        assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before

    assert in_child(child) == 0


def test_unblocked_signals_come() -> None:
    def child() -> None:
        with process.signals_blocked():
            os.kill(os.getpid(), signal.SIGTERM)
            process.unblock_signals()

    assert status_of(child) == "signal 15 (SIGTERM)"


def test_a_subreaper_inherits_its_orphans() -> None:
    def child() -> None:
        process.become_subreaper()
        told, tell = os.pipe()
        if os.fork() == 0:
            orphan = os.fork()
            if orphan == 0:
                os.read(told, 1)
                os._exit(5)
            os._exit(0)
        os.wait()
        os.write(tell, b"x")
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 5

    assert in_child(child) == 0


def test_the_title_is_what_ps_shows() -> None:
    # In a fresh interpreter: other tests may have moved the environment, behind which the title is found.
    code = """
from forkd.kernel import process
process.find_title()
process.set_title("forkd: a title of its own")
print(open("/proc/self/cmdline").read().rstrip("\\0"))
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown == "forkd: a title of its own\n"


def test_resident_memory() -> None:
    assert 1 << 20 < procfs.resident(os.getpid()) < 1 << 40
    assert procfs.resident(2**22 + 1) == 0


# Whose child it is.


def test_a_pidfd_is_known_for_whose_child_it_is_of() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    ours, stranger = os.pidfd_open(pid), os.pidfd_open(1)
    try:
        assert procfs.is_child_of(ours, pid, {os.getpid()})
        assert not procfs.is_child_of(ours, pid, {1})
        assert not procfs.is_child_of(stranger, pid, {os.getpid()}), "the descriptor is another process's"
        assert not procfs.is_child_of(stranger, 1, {os.getpid()})
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert procfs.is_child_of(ours, pid, {os.getpid()}), "a child that has ended still counts"
    os.close(ours)
    os.close(stranger)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"),
        (3 << 8, "exit status 3"),
        (9, "signal 9 (SIGKILL)"),
        (0x80 | 11, "signal 11 (SIGSEGV)"),
        (50, "signal 50 (unnamed)"),
        (None, "unknown"),
        (0x137F, "unknown"),  # stopped, not ended
        (-1, "unknown"),
        (10**30, "unknown"),
    ],
)
def test_outcome(status: int | None, words: str) -> None:
    assert process.outcome(status) == words


def test_who_descends_from_us() -> None:
    assert not procfs.may_descend(os.getpid())
    assert not procfs.may_descend(os.getppid())
    assert not procfs.may_descend(1)
    shell = subprocess.Popen(["sh", "-c", "sleep 100 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    grandchild = int(shell.stdout.readline())
    try:
        assert procfs.may_descend(shell.pid)
        assert procfs.may_descend(grandchild)
    finally:
        os.kill(grandchild, signal.SIGKILL)
        shell.communicate()
    assert procfs.may_descend(grandchild), "it has ended, so it may have descended from us"


def test_the_package_folder_is_the_whole_package() -> None:
    """Root refuses to run forkd if others could change any of its files, in any wing."""
    assert Path(process.package_folder()) == ROOT / "forkd"
