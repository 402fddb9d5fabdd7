"""What becomes of a process's powers: the master keeps a few, an application none. Children ask the kernel."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkd.errors import ForkdError
from forkd.kernel.accounts import Identity, identity
from forkd.security import privileges
from forkd.security.privileges import KEPT, become, shed
from tests.seams.test_process import in_child
from tests.server import POWERLESS, ROOT, powers, setpriv_missing

NOBODY = pwd.getpwnam("nobody")
WHO = Identity(NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,))
MASTERS = sum(1 << number for number in KEPT.values())
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yields a folder that others may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


# Who a process runs as.


def test_nobody_is_asked_for() -> None:
    assert identity(None, None) is None


def test_a_user_brings_its_own_groups() -> None:
    assert identity("nobody", None) == Identity(
        NOBODY.pw_uid, NOBODY.pw_gid, tuple(os.getgrouplist("nobody", NOBODY.pw_gid))
    )


def test_a_group_of_ones_choice() -> None:
    daemon = grp.getgrnam("daemon").gr_gid
    found = identity("nobody", "daemon")
    assert found is not None
    assert (found.uid, found.gid) == (NOBODY.pw_uid, daemon)
    assert daemon in found.groups
    assert identity(None, "daemon") == Identity(os.getuid(), daemon, (daemon,))


def test_numbers_are_as_good_as_names() -> None:
    assert identity(str(NOBODY.pw_uid), str(NOBODY.pw_gid)) == identity("nobody", None)


@pytest.mark.parametrize(("user", "group", "what"), [("nemo", None, "user 'nemo'"), (None, "nemo", "group 'nemo'")])
def test_an_unknown_name_is_told(user: str | None, group: str | None, what: str) -> None:
    with pytest.raises(ForkdError, match=f"there is no {what} on this machine"):
        identity(user, group)


@root_only
def test_privileges_are_dropped_for_good() -> None:
    who = identity("nobody", "daemon")
    assert who is not None

    def child() -> None:
        become(who)
        assert os.getresuid() == (who.uid,) * 3
        assert os.getresgid() == (who.gid,) * 3
        assert set(os.getgroups()) == set(who.groups)
        for regain in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.seteuid(0)):
            with pytest.raises(PermissionError):
                regain()

    assert in_child(child) == 0


@root_only
def test_root_may_stay_root_with_fewer_groups() -> None:
    def child() -> None:
        become(Identity(0, 0, (0,)))
        assert os.getresuid() == (0, 0, 0)
        assert os.getgroups() == [0]

    assert in_child(child) == 0


@root_only
def test_whoever_is_not_root_cannot_become_anybody() -> None:
    def child() -> None:
        become(Identity(NOBODY.pw_uid, NOBODY.pw_gid, ()))
        with pytest.raises(ForkdError, match="cannot become uid 1, gid 1: Operation not permitted"):
            become(Identity(1, 1, ()))

    assert in_child(child) == 0


# What is left of root's powers.


@root_only
def test_a_master_keeps_what_it_needs_and_so_does_all_that_it_starts() -> None:
    def child() -> None:
        before = powers(os.getpid())
        failures = shed(for_all=True)
        kept = {name: before[name] & MASTERS for name in SETS}
        if not before["CapEff"] >> KEPT["setpcap"] & 1:
            assert failures == ["the capability bounding set stays unchanged: Operation not permitted"]
            kept["CapBnd"] = before["CapBnd"]
        else:
            assert failures == []
        after = powers(os.getpid())
        assert {name: after[name] for name in SETS} == kept
        assert after["NoNewPrivs"] == before["NoNewPrivs"], "otherwise its fork servers could not regain theirs"
        started = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
        assert f"CapPrm:\t{kept['CapBnd']:016x}\n" in started

    assert in_child(child) == 0


def test_the_page_tells_what_is_kept() -> None:
    page = (ROOT / "docs" / "explanation" / "security.md").read_text()
    table = page.partition("| capability | for |")[2].partition("\n\n")[0]
    assert {name.lower() for name in re.findall(r"CAP_(\w+)", table)} == KEPT.keys()


@root_only
def test_an_application_that_is_to_run_as_root_has_all_of_roots_powers() -> None:
    def child() -> None:
        before = powers(os.getpid())
        assert shed(for_all=False) == []
        assert powers(os.getpid())["CapPrm"] == before["CapPrm"] & MASTERS
        assert powers(os.getpid())["CapBnd"] == before["CapBnd"]
        started = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
        if not before["NoNewPrivs"]:
            assert f"CapPrm:\t{before['CapBnd']:016x}\n" in started

    assert in_child(child) == 0


@root_only
def test_an_application_has_no_power_left() -> None:
    def child() -> None:
        shed(for_all=True)
        become(WHO)
        left = powers(os.getpid())
        assert {name: left[name] for name in SETS} == dict.fromkeys(SETS, 0)
        assert left["NoNewPrivs"] == 1

    assert in_child(child) == 0


@root_only
def test_a_capability_that_a_user_was_given_is_lost_as_well() -> None:
    """A unit's AmbientCapabilities= grants it. The master keeps it, its fork servers do not."""
    bind = KEPT["net_bind_service"]

    def child() -> None:
        libc = ctypes.CDLL(None)
        libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
        os.setresuid(*(NOBODY.pw_uid,) * 3)
        privileges._set_capabilities(*(1 << bind,) * 3)
        assert libc.prctl(47, 2, bind, 0, 0) == 0  # PR_CAP_AMBIENT_RAISE
        shed(for_all=True)
        kept = powers(os.getpid())
        assert [kept[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [1 << bind] * 4
        assert become(None)[0].startswith("the capability bounding set stays unchanged")
        left = powers(os.getpid())
        assert [left[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0] * 4
        assert left["NoNewPrivs"] == 1

    assert in_child(child) == 0


def test_whoever_is_root_without_capabilities_is_told_that_it_cannot_become_others() -> None:
    if reason := setpriv_missing():
        pytest.skip(reason)
    script = """
from forkd.kernel.accounts import Identity
from forkd.security.privileges import become, shed
print(shed(for_all=True))
become(Identity(65534, 65534, ()))
"""
    command = [*POWERLESS, sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20)
    assert done.stdout == "[]\n", "there must be nothing left to drop"
    assert "cannot become uid 65534, gid 65534: Operation not permitted; root needs CAP_SETUID" in done.stderr


@root_only
def test_a_setuid_program_gives_nothing(folder: Path) -> None:
    program = folder / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)

    def who() -> str:
        return subprocess.run([program, "-u"], capture_output=True, text=True, check=True).stdout.strip()

    def control() -> None:
        os.setresuid(*(NOBODY.pw_uid,) * 3)
        assert who() == "0"

    def child() -> None:
        become(WHO)
        assert who() == str(NOBODY.pw_uid)

    if in_child(control) != 0:
        pytest.skip("setuid programs have no effect here (nosuid, no_new_privs)")
    assert in_child(child) == 0


# Which processes it can signal.


def test_signals_stay_inside(folder: Path) -> None:
    """It can reach its own service's processes but no others, even of the same user. Files are not restricted here."""

    def confined(outside: int) -> None:
        os.kill(outside, 0)
        failures = become(None)
        if not any("landlock" in each for each in failures):
            with pytest.raises(PermissionError):
                os.kill(outside, 0)
            with pytest.raises(PermissionError):
                signal.pidfd_send_signal(os.pidfd_open(outside), 0)
        ended, own = os.pipe()
        inside = os.fork()
        if inside == 0:
            os.close(own)
            os.read(ended, 1)  # until its parent ends
            os._exit(0)
        os.kill(inside, signal.SIGKILL)
        assert os.waitpid(inside, 0)[1] == signal.SIGKILL
        os.kill(os.getpid(), 0)
        (folder / "one").mkdir()
        (folder / "other").mkdir()
        (folder / "one" / "file").write_text("")
        (folder / "one" / "file").rename(folder / "other" / "file")

    def child() -> None:
        if os.geteuid() == 0:
            os.setresuid(*(NOBODY.pw_uid,) * 3)
        outside = os.getpid()
        assert in_child(lambda: confined(outside)) == 0

    folder.chmod(0o777)
    assert in_child(child) == 0


@pytest.mark.parametrize(("action", "why"), [(0x80000000, "would kill this process"), (0x50001, "not permitted")])
def test_a_system_call_filter_that_does_not_know_of_landlock(action: int, why: str) -> None:
    """The filter may kill the caller (seccomp(2)) or refuse the call. Both are survived and reported."""
    if os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("system calls have different numbers here")

    def child() -> None:
        if os.geteuid() == 0:
            os.setresuid(*(NOBODY.pw_uid,) * 3)
        privileges._prctl(38, 1)
        # Load the call's number. If it is landlock_create_ruleset, take the action; otherwise allow the call.
        program = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (6, 0, 0, action), (6, 0, 0, 0x7FFF0000)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
        filter_ = struct.pack("@HP", len(program), ctypes.addressof(code))
        assert ctypes.CDLL(None).prctl(22, 2, filter_, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        told = [each for each in become(None) if "landlock" in each]
        assert len(told) == 1
        assert why in told[0]
        os.kill(os.getppid(), 0)

    def outside() -> None:
        if os.geteuid() == 0:
            os.setresuid(*(NOBODY.pw_uid,) * 3)
        assert in_child(child) == 0

    assert in_child(outside) == 0
