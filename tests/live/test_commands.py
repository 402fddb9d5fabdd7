"""The command line against a running server: requests, output and exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import forkd
from forkd.cli import main
from forkd.errors import Exit
from tests.conftest import Forkd
from tests.server import FORKD, HANDLERS, LIMIT, ROOT, Server, connect, exchange, program, running, title, until

VERSION = forkd.__version__
COMMANDS = (
    "run",
    "start",
    "stop",
    "restart",
    "reload",
    "upgrade",
    "status",
    "stacks",
    "scale",
    "check",
    "call",
    "load",
)

pytestmark = pytest.mark.slow


def command(server: Server, *arguments: str, status: int = 0) -> str:
    """Returns the output of a command about a server, which is found by its control socket."""
    name, *rest = arguments
    result = program(name, "--control", str(server.control_path), *rest, cwd=server.control_path.parent)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr or status == Exit.FAILED
    return result.stdout if status == 0 else result.stderr


# `forkd run` with options.


def test_an_application_runs_from_its_folder_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text((HANDLERS / "small.py").read_text())
    options = ["mine:shout", "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--workers", "2", "--worker", "sync"]
    options += ["--name", "x", "--set", "idle_timeout=0.2", "--set", f"master.control={tmp_path}/control.sock"]
    with running(options, tmp_path) as server:
        server.serving(2)
        assert [name for name, _ in server.addresses] == ["x", "x"]
        assert exchange(server.connect("x"), b"hello\n") == b"HELLO\n"
        with server.connect("x") as idle:
            assert idle.recv(1) == b""  # only 0.2 s of silence are allowed
        found = server.status("x")
        assert (found["app"], found["workers"]["total"]) == ("mine:shout", 2)
        assert server.status()["master"]["config"] == "command line"
        assert server.stop() == 0


def test_options_do_not_go_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "forkd.toml"
    for option in ("--listen", "*:0"), ("--workers", "0"), ("--worker", ""), ("--name", ""), ("--set", "a=b"):
        with pytest.raises(SystemExit) as ended:
            main.main(["run", str(file), *option])
        assert ended.value.code == 2
        assert "options need an application" in capsys.readouterr().err


# Help and usage errors.


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    found = capsys.readouterr()
    return ended.value.code, found.out, found.err


def test_the_version_by_both_names() -> None:
    installed = Path(sys.executable).parent / "forkd"
    names = [FORKD, [str(installed)]] if installed.exists() else [FORKD]
    for name in names:
        told = subprocess.run([*name, "--version"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=True)
        assert told.stdout == f"forkd {VERSION}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "-h"):
        code, out, _ = said([option], capsys)
        assert code == 0
        for name in COMMANDS:
            assert re.search(rf"(?m)^  {name} +\S", out), name
        assert "--version" in out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run", ["[TARGET]", "--listen", "--workers", "--worker", "--name", "--set", "/etc/forkd.toml", "module:"]),
        ("start", ["[TARGET]", "--listen", "--workers", "--worker", "--name", "--set"]),
        ("stop", ["--config", "--control", "--quick", "--timeout", "/etc/forkd.toml"]),
        ("restart", ["[TARGET]", "--listen", "--workers", "--worker", "--name", "--set", "--quick"]),
        ("reload", ["--config", "--control", "/etc/forkd.toml"]),
        ("status", ["--config", "--control", "--json"]),
        ("stacks", ["--config", "--control", "[SERVICE]"]),
        ("scale", ["--config", "--control", "SERVICE", "N"]),
        ("check", ["--config", "[TARGET]"]),
        ("call", ["ADDRESS", "[REQUEST]...", "--connect-timeout", "--timeout", "--source", "5.0"]),
        ("load", ["ADDRESS", "--connections", "--duration", "--requests", "--rate", "--pipeline", "--per-connection"]),
        ("load", ["--framing", "--request ", "--requests-from", "--expect", "--connect-timeout", "--timeout"]),
        ("load", ["--warmup", "--workers", "--json", "--plot", "--max-errors", "--max-p99", "delimited:MARK"]),
    ],
)
def test_help_names_every_option(name: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said([name, "--help"], capsys)
    assert code == 0
    for word in words:
        assert word in out, word


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["--no-such-option"],
        ["run", "a", "b"],
        ["run", "a:b", "--workers", "many"],
        ["scale"],
        ["scale", "echo"],
        ["scale", "echo", "0"],
        ["scale", "echo", "1025"],
        ["scale", "echo", "some"],
        ["status", "--xml"],
        ["stacks", "a", "b"],
        ["check", "a", "b"],
        ["call"],
        ["load"],
        ["load", "a:1", "--connections", "many"],
        ["load", "a:1", "--max-errors", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(arguments, capsys)
    assert code == 2
    assert out == ""
    assert "Usage: forkd" in err


def test_the_shell_can_complete() -> None:
    script = program(cwd=Path("/"), _FORKD_COMPLETE="bash_source")
    assert script.returncode == 0
    assert "_forkd_completion" in script.stdout
    words = program(cwd=Path("/"), _FORKD_COMPLETE="bash_complete", COMP_WORDS="forkd st", COMP_CWORD="1")
    assert {"plain,status", "plain,stacks"} <= set(words.stdout.splitlines())


# Commands to a running server.


@contextmanager
def found_by_its_file(tmp_path: Path, name: str = "forkd.toml") -> Iterator[tuple[Server, str]]:
    """Yields a server whose settings file names no control socket, and the RUNTIME_DIRECTORY that holds the socket."""
    (tmp_path / name).write_text(
        f'[service.test]\napp = "small:shout"\npath = "{HANDLERS}"\nworkers = 2\nlisten = "127.0.0.1:0"\n'
    )
    folder = str(tmp_path / "run")
    with running([name], tmp_path, program=["env", f"RUNTIME_DIRECTORY={folder}", *FORKD]) as server:
        [found] = until(lambda: list((tmp_path / "run").glob("*.sock")), "the control socket")
        server.control_path = found
        yield server.serving(), folder


def test_commands_find_the_server_by_its_file(tmp_path: Path) -> None:
    with found_by_its_file(tmp_path) as (server, folder):

        def run(*arguments: str, cwd: Path = tmp_path) -> str:
            result = program(*arguments, cwd=cwd, RUNTIME_DIRECTORY=folder)
            assert result.returncode == 0, result.stderr
            return result.stdout

        assert server.addresses[0][1] in run("status", "-c", "forkd.toml")
        assert str(server.pid) in run("status", "--config", str(tmp_path / "forkd.toml"), cwd=Path("/"))
        assert run("reload", "-c", f"run/../{Path('forkd.toml')}") == "test: generation 2 serves\n"
        assert run("scale", "-c", "forkd.toml", "test", "3") == ""
        assert run("stacks", "-c", "./forkd.toml").count("worker=") >= 2
        assert oct((tmp_path / "run").stat().st_mode) == "0o40700"
        assert server.control_path.stat().st_mode & 0o777 == 0o600


def test_the_file_of_another_server_does_not_find_this_one(tmp_path: Path) -> None:
    with found_by_its_file(tmp_path) as (_, folder):
        (tmp_path / "other").mkdir()
        (tmp_path / "other/forkd.toml").write_text((tmp_path / "forkd.toml").read_text())
        result = program("status", "-c", "other/forkd.toml", cwd=tmp_path, RUNTIME_DIRECTORY=folder)
        assert result.returncode == 69


def test_a_long_name_of_a_file_leaves_room_for_the_socket(tmp_path: Path) -> None:
    name = "f" * 200 + ".toml"
    with found_by_its_file(tmp_path, name) as (server, folder):
        assert server.control_path.exists()
        assert program("status", "-c", name, cwd=tmp_path, RUNTIME_DIRECTORY=folder).returncode == 0


@pytest.mark.parametrize("mistake", ["wrokers = 3\n", "no = [\n", None], ids=["a key", "no TOML", "no file"])
def test_a_forkd_is_found_whatever_its_file_has_become(tmp_path: Path, mistake: str | None) -> None:
    with found_by_its_file(tmp_path, "forkd.toml") as (server, folder):
        file = tmp_path / "forkd.toml"
        if mistake is None:
            file.unlink()
        else:
            file.write_text(file.read_text() + mistake)
        for command in ("status", "stop"):
            done = program(command, "-c", "forkd.toml", cwd=tmp_path, RUNTIME_DIRECTORY=folder)
            assert done.returncode == 0, done
        assert server.exited() == 0
    done = program("status", "-c", "forkd.toml", cwd=tmp_path, RUNTIME_DIRECTORY=folder)
    assert done.returncode == 78
    assert ("or its control socket with --control" in done.stderr) == (mistake is None)


@pytest.mark.parametrize("target", ["small", "small.py", "package.small"])
def test_a_bare_module_name_gets_a_hint(tmp_path: Path, target: str) -> None:
    for options in ([], ["--listen", "127.0.0.1:0"]):
        done = program("run", target, *options, cwd=tmp_path)
        module = target.removesuffix(".py")
        assert (done.returncode, done.stderr) == (
            2,
            f"forkd: {target}: name an application as module:name, such as {module}:NAME\n",
        )


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    options = ["forkd.services:echo", "--listen", "127.0.0.1:0"]
    with running(options, tmp_path, program=["env", f"RUNTIME_DIRECTORY={folder}", *FORKD]) as server:
        assert server.exited() == 1
        assert server.said(f"forkd: {folder} is not a private folder of this user")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["stacks"], ["scale", "a", "1"], ["reload"]])
def test_no_server_is_running(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = arguments
    path = tmp_path / "none.sock"
    code, out, err = said([name, "--control", str(path), *rest], capsys)
    assert (code, out) == (69, "")
    assert err == f"forkd: no forkd is running with the control socket {path}\n"


def test_no_server_is_running_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "forkd.toml").write_text('[service.a]\napp = "a:b"\nlisten = "127.0.0.1:0"\n')
    result = program("status", "-c", "forkd.toml", cwd=tmp_path, RUNTIME_DIRECTORY=str(tmp_path / "run"))
    assert result.returncode == 69
    assert not (tmp_path / "run").exists()


def test_status_as_tables(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2).serving()
    exchange(server.connect(), b"hello\n")
    out = command(server, "status")
    assert f"pid {server.pid}" in out
    assert f"test on {server.addresses[0][1]}" in out
    for pid in server.workers():
        assert re.search(rf"(?m)^ *test +\d +{pid} +1 +idle ", out)
    assert "\x1b" not in out
    assert "…" not in out


PID = COUNT = int
MAYBE_SECONDS = (float, int, type(None))
SHAPE = {
    "master": {"pid": PID, "version": str, "phase": str, "uptime": float, "config": str},
    "service": {
        "app": str,
        "generation": COUNT,
        "listen": list,
        "workers": {"total": COUNT, "idle": COUNT, "busy": COUNT},
        "connections": {"open": COUNT, "accepted": COUNT},
        "requests": COUNT,
        "errors": COUNT,
        "bytes": {"in": COUNT, "out": COUNT},
        "exits": {"recycled": COUNT, "crashed": COUNT, "timed_out": COUNT},
        "latency": dict.fromkeys(("p50", "p90", "p99", "max"), MAYBE_SECONDS),
    },
    "worker": {
        "service": str,
        "slot": COUNT,
        "pid": PID,
        "generation": COUNT,
        "state": str,
        "age": float,
        "connections": COUNT,
        "requests": COUNT,
        "memory": COUNT,
    },
}


def check_shape(found: dict[str, object], shape: dict[str, object]) -> None:
    for key, kind in shape.items():
        if isinstance(kind, dict):
            part = found[key]
            assert isinstance(part, dict), key
            check_shape(part, kind)
        else:
            assert isinstance(found[key], kind), key  # type: ignore[arg-type]
            assert not isinstance(found[key], bool), key


def test_status_as_json(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2).serving()
    for filled in (False, True):
        if filled:
            assert exchange(server.connect(), b"hello\nworld\n") == b"HELLO\nWORLD\n"
            until(lambda: server.status("test")["connections"]["open"] == 0)
        document = json.loads(command(server, "status", "--json"))
        assert document.keys() >= {"master", "services", "workers"}
        check_shape(document["master"], SHAPE["master"])
        assert document["services"].keys() == {"test"}
        check_shape(document["services"]["test"], SHAPE["service"])
        assert len(document["workers"]) == 2
        for worker in document["workers"]:
            check_shape(worker, SHAPE["worker"])
            assert worker["memory"] > 1_000_000
    test = document["services"]["test"]
    assert (document["master"]["pid"], document["master"]["phase"]) == (server.pid, "serving")
    assert document["master"]["version"] == VERSION
    assert test["listen"] == [server.addresses[0][1]]
    assert (test["requests"], test["errors"], test["bytes"]) == (2, 0, {"in": 12, "out": 12})
    assert test["connections"] == {"open": 0, "accepted": 1}
    assert 0 < test["latency"]["p50"] <= test["latency"]["max"] < 1
    assert sum(worker["requests"] for worker in document["workers"]) == 2


def test_scale(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    assert command(server, "scale", "test", "3") == ""
    until(lambda: server.status("test")["workers"]["total"] == 3)
    assert "there is no service 'other'; there are test" in command(server, "scale", "other", "3", status=2)


def test_stacks(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2).serving()
    with server.connect() as client:
        client.sendall(b"30\n")
        until(lambda: server.status("test")["workers"]["busy"] == 1)
        for arguments in ([], ["test"]):
            out = command(server, "stacks", *arguments)
            assert sorted(map(int, re.findall(r"(?m)^test worker=\d gen=1 pid=(\d+)$", out))) == sorted(
                server.workers()
            )
            assert len(re.findall(r'small\.py", line \d+ in nap', out)) == 1
    assert "there is no service 'other'" in command(server, "stacks", "other", status=2)


def test_stacks_of_coroutines(forkd: Forkd) -> None:
    server = forkd("waiting:nap", worker='"event"', workers=1).serving()
    with server.connect() as one, server.connect() as other:
        one.sendall(b"30\n")
        other.sendall(b"30\n")
        until(lambda: server.status("test")["connections"]["open"] == 2)
        out = until(lambda: (told := command(server, "stacks")).count("in nap") == 2 and told)
        assert len(re.findall(r'waiting\.py", line \d+, in _wait', out)) == 2
        for each in (one, other):
            assert f"from 127.0.0.1:{each.getsockname()[1]} (most recent call last):" in out
        assert "line" in out.partition("Connection")[0], "the thread's own stack comes first"


def test_reload(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    assert command(server, "reload") == "test: generation 2 serves\n"
    assert server.status("test")["generation"] == 2


def test_a_reload_that_fails_says_why_and_the_old_generation_continues(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    file = server.control_path.parent / "forkd.toml"
    text = file.read_text()
    file.write_text(text.replace("small:shout", "broken:shout").replace(str(HANDLERS), str(file.parent)))
    (file.parent / "broken.py").write_text("import forkd\n1 / 0\n")
    err = command(server, "reload", status=1)
    assert "service.test.app: cannot be imported: ZeroDivisionError" in err
    assert f'File "{file.parent}/broken.py", line 2, in <module>' in err
    assert "/forkd/" not in err.replace(str(file.parent), "")
    file.write_text(text + "no_such_key = 1\n")
    err = command(server, "reload", status=1)
    assert err.startswith("forkd.toml:")
    assert "service.test.no_such_key: unknown key" in err
    assert exchange(server.connect(), b"hello\n") == b"HELLO\n"
    assert server.status("test")["generation"] == 1


def test_a_server_that_is_stopping_still_answers(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=1).serving()
    with server.connect() as client:
        client.sendall(b"0.4\n")
        until(lambda: server.status("test")["workers"]["busy"] == 1)
        server.kill(15)
        until(lambda: server.status()["master"]["phase"] == "stopping")
        assert client.recv(100) == b"slept 0.4\n"
    assert server.exited() == 0


# The process tree.


def test_the_processes_are_titled_as_drawn(forkd: Forkd) -> None:
    table = f'path = "{HANDLERS}"\nlisten = "127.0.0.1:0"\n'
    server = forkd(
        file=f'[service.echo]\napp = "forkd.services:echo"\nworkers = 2\n{table}'
        f'[service.daytime]\napp = "forkd.services:daytime"\nworkers = 1\n{table}'
    ).serving(2)
    assert title(server.pid) == "forkd: master"
    assert sorted(map(title, server.family())) == [
        "forkd: daytime: fork server, generation 1",
        "forkd: daytime: worker 0, generation 1",
        "forkd: echo: fork server, generation 1",
        "forkd: echo: worker 0, generation 1",
        "forkd: echo: worker 1, generation 1",
        "forkd: master",
    ]
    assert program("reload", "--control", str(server.control_path), cwd=Path("/")).returncode == 0
    until(lambda: not server.titled(".*generation 1"))
    assert len(server.titled("forkd: echo: worker [01], generation 2")) == 2


def test_each_fork_server_imports_the_application_once_and_the_master_never(forkd: Forkd, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "import os\nfrom tests_small import shout\n"
        f"open({str(tmp_path / 'importers')!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
    )
    (tmp_path / "tests_small.py").write_text((HANDLERS / "small.py").read_text())
    server = forkd(
        file=f'[service.test]\napp = "told:shout"\npath = "{tmp_path}"\nworkers = 3\nlisten = "127.0.0.1:0"\n'
    ).serving()
    first = server.fork_servers()
    assert server.ask(command="reload")["generations"] == {"test": 2}
    second = [pid for pid in server.fork_servers() if pid not in first]
    assert exchange(server.connect(), b"hello\n") == b"HELLO\n"
    importers = [int(line) for line in (tmp_path / "importers").read_text().split()]
    assert importers == first + second
    assert len(importers) == 2
    assert server.pid not in importers


def test_the_master_has_nothing_of_an_application_in_its_memory(forkd: Forkd, tmp_path: Path) -> None:
    (tmp_path / "marked.py").write_text(
        "import mmap, os\nfrom forkd.services import echo\n"
        "fd = os.memfd_create('mark-of-the-application')\nos.truncate(fd, 4096)\nmark = mmap.mmap(fd, 4096)\n"
    )
    server = forkd(
        file=f'[service.test]\napp = "marked:echo"\npath = "{tmp_path}"\nworkers = 1\nlisten = "127.0.0.1:0"\n'
    ).serving()
    marked = {pid for pid in server.family() if "mark-of-the-application" in Path(f"/proc/{pid}/maps").read_text()}
    assert marked == {*server.fork_servers(), *server.workers()}


def test_workers_load_no_modules_of_the_command_line(forkd: Forkd) -> None:
    server = forkd("listeners:loaded", workers=1).serving()
    absent = b"click rich msgspec tomllib forkd.cli forkd.settings forkd.master forkd.lifecycle forkd.sockets"
    assert exchange(server.connect(), absent + b" forkd.workers.worker\n") == b"forkd.workers.worker\n"


def test_the_parent_of_a_worker_imported_its_application(forkd: Forkd) -> None:
    server = forkd("listeners:importer", workers=2).serving()
    importer, parent = exchange(server.connect(), b"?\n").split()
    assert importer == parent
    assert [int(parent)] == server.fork_servers()


# The control socket.


def test_nonsense_on_the_control_socket_is_answered_and_harmless(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    for line in (
        b"\n",
        b"[]\n",
        b"{\n",
        b"\xff\n",
        b'{"command": ["status"]}\n',
        b'{"command": "status", "service": [1]}\n',
        b'{"command": "status", "service": {"a": 1}}\n',
        b'{"command": "no such"}\n',
        b'{"command": "scale", "service": "test", "size": 0}\n',
        b'{"command": "scale", "service": "test", "size": "2"}\n',
        b'{"command": "stacks", "service": "no such"}\n',
        b"[" * 5000 + b"\n",
    ):
        with connect(f"unix:{server.control_path}") as client, client.makefile("rb") as lines:
            client.sendall(line)
            answer = json.loads(lines.readline())
            assert answer["ok"] is False, line
            assert answer["error"]
            assert answer["status"] == 2
    assert server.status("test")["workers"]["total"] == 1
