"""What a forkd started by root gives up, what an application cannot do, and what root refuses to serve."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forkd.ipc import control_client
from forkd.security.privileges import KEPT
from tests.server import (
    AS_NOBODY,
    HANDLERS,
    LIMIT,
    NOBODY,
    ROOT,
    Server,
    connect,
    exchange,
    open_python,
    powers,
    running,
    setpriv_missing,
    until,
)

pytestmark = pytest.mark.slow

MASTERS = sum(1 << number for number in KEPT.values())
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
BIND = "net_bind_service"
SIGNALS = ("signal the master", "signal the master by pidfd")
LOOPBACK = "127.77.0.1"  # no other server uses the ports below 1024 here
DAEMON = pwd.getpwnam("daemon")


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    """Yields a Python that other users may read, too."""
    if reason := setpriv_missing():
        pytest.skip(reason)
    with open_python() as found:
        if found is None:
            pytest.skip("the user nobody may not read this Python or forkd, and no other Python has this version")
        yield found


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yields a folder that belongs to root but that others may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def write(folder: Path, *services: str, master: str = 'user = "nobody"') -> Path:
    """Writes a settings file. Each service is the lines of its table, which is named after its number."""
    path = folder / "forkd.toml"
    head = f'[master]\ncontrol = "{folder}/control.sock"\n{master}\n'
    tables = [f'[service.s{number}]\npath = "{HANDLERS}"\n{service}\n' for number, service in enumerate(services)]
    path.write_text(head + "".join(tables))
    path.chmod(0o644)
    return path


def attacker(*listen: str, rest: str = "workers = 1") -> str:
    return f'app = "attacker:attack"\nlisten = {json.dumps(list(listen))}\n{rest}'


@contextmanager
def started(
    python: str, folder: Path, *, before: list[str] | None = None, options: tuple[str, ...] = ()
) -> Iterator[Server]:
    with running(
        [str(folder / "forkd.toml"), *options], folder, program=[*(before or []), python, "-m", "forkd"]
    ) as made:
        yield made


def run(python: str, *arguments: str, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*(before or []), python, "-m", "forkd", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT, check=False, cwd="/")


def attempts(address: str) -> dict[str, str]:
    """Returns what the application has tried during its import and now, with the results."""
    answers = exchange(connect(address), b"import\nnow\n").splitlines()
    found = {}
    for when, answer in zip(("at the import", "now"), answers, strict=True):
        found |= {f"{what}, {when}": how for what, how in json.loads(answer).items()}
    assert len(found) == 32
    return found


def succeeded(address: str) -> dict[str, str]:
    return {what: how for what, how in attempts(address).items() if not how.startswith("refused")}


def check_powerless(server: Server, uid: int = NOBODY.pw_uid, gid: int = NOBODY.pw_gid) -> None:
    """Checks that every process below the master runs as another user and has no means to change that."""
    below = [pid for pid in server.family() if pid != server.pid]
    assert len(below) >= 2
    for pid in below:
        found = powers(pid)
        assert {name: found[name] for name in SETS} == dict.fromkeys(SETS, 0)
        assert found["NoNewPrivs"] == 1
        assert ids(pid, "Uid") == {uid}
        assert ids(pid, "Gid") == {gid}


def ids(pid: int, name: str) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {int(each) for line in lines if line.startswith(f"{name}:") for each in line.split()[1:]}


def test_an_application_gets_at_nothing_and_the_master_goes_on_with_little(python: str, folder: Path) -> None:
    """Having dropped all other powers, the master can still change ports below 1024, users, logs and programs."""
    log = folder / "log"
    master = f'user = "nobody"\npidfile = "{folder}/pid"\nlog.file = "{log}"'
    write(folder, attacker("127.0.0.1:0", f"{LOOPBACK}:13"), master=master)
    ours = powers(os.getpid())
    with started(python, folder) as server:
        server.serving(2)
        expected = {name: ours[name] & MASTERS for name in SETS}
        assert {name: powers(server.pid)[name] for name in SETS} == expected
        assert succeeded(server.addresses[0][1]) == {}
        check_powerless(server)
        assert all(worker["memory"] > 1 << 20 for worker in server.status()["workers"])

        door = f"unix:{folder}/door.sock"
        listen = f'[{{address = "{door}", user = "daemon", group = "daemon", mode = "0600"}}, "{LOOPBACK}:14"]'
        other = f'app = "small:shout"\nlisten = {listen}\nuser = "daemon"\nworkers = 1'
        write(folder, attacker("127.0.0.1:0", f"{LOOPBACK}:13"), other, master=master)
        assert run(python, "reload", "-c", str(folder / "forkd.toml")).returncode == 0
        assert exchange(connect(f"{LOOPBACK}:14"), b"hello\n") == b"HELLO\n"
        assert exchange(connect(door), b"hello\n") == b"HELLO\n"
        assert (folder / "door.sock").stat().st_uid == DAEMON.pw_uid
        assert ids(server.workers("s1")[0], "Uid") == {DAEMON.pw_uid}

        log.rename(folder / "log.1")
        server.kill(signal.SIGUSR1)
        until(log.exists, "the log opened again")
        assert log.stat().st_uid == 0

        result = run(python, "upgrade", "-c", str(folder / "forkd.toml"))
        assert result.returncode == 0, result.stderr
        assert {name: powers(server.pid)[name] for name in SETS} == expected
        write(folder, attacker("127.0.0.1:0", f"{LOOPBACK}:13", f"{LOOPBACK}:15"), master=master)
        assert run(python, "reload", "-c", str(folder / "forkd.toml")).returncode == 0
        assert succeeded(f"{LOOPBACK}:15") == {}
        until(lambda: not server.titled("forkd: s1: .*"), "the other service gone")
        check_powerless(server)
        assert server.stop() == 0
        server.gone()
    assert sorted(each.name for each in folder.iterdir()) == ["forkd.toml", "log", "log.1"]
    assert "Traceback" not in (folder / "log").read_text() + (folder / "log.1").read_text()


def test_a_daemon_lets_go_of_the_same(python: str, folder: Path) -> None:
    path = write(folder, attacker(f"{LOOPBACK}:13"), master=f'user = "nobody"\nlog.file = "{folder}/log"')
    result = run(python, "start", str(path))
    try:
        assert result.returncode == 0, result.stderr
        assert succeeded(f"{LOOPBACK}:13") == {}
        master = control_client.ask(folder / "control.sock", {"command": "status"}, LIMIT)["master"]["pid"]
        assert powers(master)["CapPrm"] == powers(os.getpid())["CapPrm"] & MASTERS
    finally:
        assert run(python, "stop", "-c", str(path)).returncode == 0


def test_a_daemon_of_roots_applications_has_to_be_asked_for(python: str, folder: Path) -> None:
    path = write(folder, 'app = "small:shout"\nlisten = "127.0.0.1:0"', master="")
    refused(run(python, "start", str(path)), "master.user", "s0 would run as root", 'confirm with user = "root"')


def test_a_worker_of_another_user_that_hangs_is_ended(python: str, folder: Path) -> None:
    write(folder, 'app = "small:nap"\nlisten = "127.0.0.1:0"\nworkers = 1\nrequest_timeout = 0.1')
    with started(python, folder) as server:
        assert exchange(server.serving().connect(), b"60\n") == b""
        server.said("error worker crashed .* SIGABRT|error worker .*timed out|ending a worker")
        assert exchange(server.connect(), b"0\n") == b"slept 0\n"
        assert server.stop() == 0


def test_a_master_of_the_applications_own_user_is_out_of_reach_too(python: str, folder: Path) -> None:
    """Started as by a unit, without root but with one capability, which the master keeps and no application has."""
    before = [*AS_NOBODY[:-1], f"--inh-caps=+{BIND}", f"--ambient-caps=+{BIND}", f"--bounding-set=-all,+{BIND}", "env"]
    write(folder, attacker("127.0.0.1:0", f"{LOOPBACK}:13"), master='log.level = "debug"')
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    with started(python, folder, before=before) as server:
        server.serving(2)
        unconfined = [line for line in server.lines if "landlock" in line]
        spared = {f"{how}, {when}" for how in SIGNALS for when in ("at the import", "now")} if unconfined else set()
        kept = dict.fromkeys(SETS, 1 << KEPT[BIND])
        for listen in ((f"{LOOPBACK}:14",), (f"{LOOPBACK}:15",)):
            assert {name: powers(server.pid)[name] for name in SETS} == kept
            assert succeeded(server.addresses[0][1]).keys() == spared
            for pid in server.family()[1:]:
                found = powers(pid)
                assert [found[name] for name in SETS] == [0, 0, 0, 1 << KEPT[BIND], 0]
                assert found["NoNewPrivs"] == 1, "without it, the bounding set would matter"
            write(folder, attacker("127.0.0.1:0", f"{LOOPBACK}:13", *listen), master='log.level = "debug"')
            result = run(python, "upgrade", "-c", str(folder / "forkd.toml"))
            assert result.returncode == 0, result.stderr
            assert succeeded(listen[0]).keys() == spared
        assert server.stop() == 0


def test_an_application_that_insists_on_root_has_all_of_root(python: str, folder: Path) -> None:
    insists = 'app = "small:shout"\nlisten = "127.0.0.1:0"\nuser = "root"\nworkers = 1'
    write(folder, attacker("127.0.0.1:0"), insists)
    ours = powers(os.getpid())
    with started(python, folder) as server:
        server.serving(2)
        worker = powers(server.workers("s1")[0])
        assert [worker[name] for name in ("CapPrm", "CapEff", "CapBnd")] == [ours["CapBnd"]] * 3
        assert worker["NoNewPrivs"] == 1
        assert powers(server.pid)["CapPrm"] == ours["CapPrm"] & MASTERS
        assert succeeded(server.addresses[0][1]) == {}
        # Without that service, no process started later needs so many capabilities.
        write(folder, attacker("127.0.0.1:0"))
        server.ask(command="reload")
        assert powers(server.pid)["CapBnd"] == ours["CapBnd"] & MASTERS
        write(folder, attacker("127.0.0.1:0"), insists)
        server.ask(command="reload")
        server.said("reload: s1 runs as root, but with no more capabilities than the master has kept: a restart")
        assert powers(server.workers("s1")[0])["CapPrm"] == ours["CapBnd"] & MASTERS
        assert server.stop() == 0


def test_each_service_is_its_own_users(python: str, folder: Path) -> None:
    theirs = attacker("127.0.0.1:0", rest='user = "daemon"\ngroup = "nogroup"\nworkers = 1')
    write(folder, attacker("127.0.0.1:0"), theirs)
    with started(python, folder) as server:
        server.serving(2)
        for name, uid, gid in (
            ("s0", NOBODY.pw_uid, NOBODY.pw_gid),
            ("s1", DAEMON.pw_uid, grp.getgrnam("nogroup").gr_gid),
        ):
            for pid in server.titled(f"forkd: {name}: .*"):
                assert (ids(pid, "Uid"), ids(pid, "Gid")) == ({uid}, {gid})
                assert 0 not in ids(pid, "Groups")
        assert [succeeded(address) for _, address in server.addresses] == [{}, {}]
        assert server.stop() == 0


def test_the_environment_is_the_users(python: str, folder: Path) -> None:
    handler = "def value(request):\n    return os.environ[request.decode()].encode()\n"
    (folder / "application.py").write_text(f"import os, forkd\n\n@forkd.service(forkd.Lines())\n{handler}")
    path = write(folder)
    path.write_text(path.read_text() + '[service.a]\napp = "application:value"\nlisten = "127.0.0.1:0"\nworkers = 1\n')
    with started(python, folder) as server:
        answers = exchange(server.serving().connect(), b"HOME\nUSER\nLOGNAME\n").decode().split()
        assert answers == [NOBODY.pw_dir, NOBODY.pw_name, NOBODY.pw_name]


def test_a_user_that_only_root_could_become_is_passed_over_and_told(python: str, folder: Path) -> None:
    write(folder, attacker("127.0.0.1:0"), master='user = "daemon"')
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    with started(python, folder, before=AS_NOBODY) as server:
        server.serving().said("^forkd: warning: service s0 runs as nobody: only root can run it as another user$")
        assert ids(server.workers()[0], "Uid") == {NOBODY.pw_uid}
        assert server.stop() == 0


# What others could change.


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 78, result.stderr
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr


def test_settings_that_others_may_write_are_not_served(python: str, folder: Path) -> None:
    path = write(folder, attacker("127.0.0.1:0"))
    path.chmod(0o666)
    for command in ("run", "check"):
        what = (
            f"{path}: root obeys this file, but other users can write to the file {path} (mode 0666): chmod o-w {path}"
        )
        refused(run(python, command, str(path)), f"{what} (--insecure starts anyway)")
    result = run(python, "check", "--insecure", str(path))
    assert result.returncode == 0
    assert f"warning: {path}: root obeys this file" in result.stderr
    with started(python, folder, options=("--insecure",)) as server:
        server.serving().said("^forkd: warning: .*: root obeys this file, but other users can write")
        server.ask(command="reload")
        server.said(" warning .*: root obeys this file, but other users can write")
        assert server.stop() == 0


def test_a_python_that_others_may_write_is_warned_of(python: str, folder: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(python)
    (folder / "bin").chmod(0o777)
    path = write(folder, attacker("127.0.0.1:0"))
    packages = f"PYTHONPATH={ROOT}{os.pathsep}{sysconfig.get_path('purelib')}"
    result = run(f"{folder}/bin/python", "check", str(path), before=["env", packages])
    assert result.returncode == 0, result.stderr
    what = f"root runs what is in {folder}/bin/python, but other users can write to the folder {folder}/bin (mode 0777)"
    assert f"warning: {what}: chmod o-w {folder}/bin" in result.stderr


def test_a_reload_refuses_what_others_could_change_by_now(python: str, folder: Path) -> None:
    (folder / "application.py").write_text((HANDLERS / "small.py").read_text())
    path = write(folder, 'app = "small:shout"\nlisten = "127.0.0.1:0"\nworkers = 1')
    theirs = '[service.b]\napp = "application:shout"\nlisten = "127.0.0.1:0"\nworkers = 1\n'
    path.write_text(path.read_text() + theirs)
    with started(python, folder) as server:
        server.serving(2)
        (folder / "application.py").chmod(0o646)
        result = run(python, "reload", "-c", str(path))
        assert result.returncode == 1
        assert f"service.b.app: other users can write to the file {folder}/application.py (mode 0646)" in result.stderr
        assert f"chmod o-w {folder}/application.py" in result.stderr
        assert [server.status(name)["generation"] for name in ("s0", "b")] == [1, 1]
        (folder / "application.py").chmod(0o644)
        assert run(python, "reload", "-c", str(path)).returncode == 0
        assert server.stop() == 0


# What a user cannot read.


def test_a_folder_that_is_closed_to_the_user_is_told_before_anything_is_opened(python: str, folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    (closed / "application.py").write_text((HANDLERS / "small.py").read_text())
    service = f'[service.closed]\napp = "application:shout"\npath = "{closed}"\nlisten = "unix:{folder}/door.sock"\n'
    path = write(folder, attacker(f"unix:{folder}/attack.sock"))
    open_text = path.read_text()
    path.write_text(open_text + service)
    where = f"it may not enter the folder {closed} (mode 0700, owner root); chmod o+x would open it; move it to where"
    what = f"nobody cannot read the application's folder {closed}: {where}"
    for command in ("run", "check"):
        refused(run(python, command, str(path)), f"{path}:3: master.user: {what}")
    assert sorted(each.name for each in folder.iterdir()) == ["closed", "forkd.toml"], "nothing may be opened"
    path.write_text(open_text)
    with started(python, folder) as server:
        server.serving()
        path.write_text(open_text + service)
        result = run(python, "reload", "-c", str(path))
        assert result.returncode == 1
        assert f"service.closed.app: {what}" in result.stderr
        assert "Traceback" not in result.stderr
        assert server.status("s0")["generation"] == 1
        assert server.stop() == 0


def test_a_python_that_is_closed_to_the_user_is_told_too(folder: Path) -> None:
    """A virtual environment in root's own folder is such a case."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    (closed / "python").symlink_to(Path(sys.executable).resolve())
    path = write(folder, 'app = "forkd.services:echo"\nlisten = "127.0.0.1:0"')
    packages = f"PYTHONPATH={ROOT}{os.pathsep}{sysconfig.get_path('purelib')}"
    result = run(str(closed / "python"), "run", str(path), before=["env", packages])
    refused(result, f"master.user: nobody cannot read the Python interpreter {closed}/python: ", str(closed), "0700")
