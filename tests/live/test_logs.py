"""What a running server logs: formats, levels, and what a peer cannot do to the log."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from forkd.errors import ControlError, UnreachableError
from tests import disk
from tests.conftest import Forkd
from tests.journald import Journald
from tests.server import (
    FORKD,
    HANDLERS,
    NOBODY,
    POWERLESS,
    Server,
    connect,
    exchange,
    running,
    setpriv_missing,
    until,
)

NASTY = "\x1b[2J\r\x07\x08 \x85 \u2028\u202e fake=1"
TEXT_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (debug|info|warning|error) \S.*")


def started(forkd: Forkd, log: Path, app: str, **settings: str) -> Server:
    table = ", ".join(f'{key} = "{value}"' for key, value in {"file": str(log), **settings}.items())
    return forkd(app, workers=1, master=f"log = {{ {table} }}").serving()


def provoke(server: Server, log: Path) -> str:
    """Makes a peer's text part of an exception's message. Returns the whole log."""
    assert exchange(server.connect(), f"{NASTY}\nnever answered\n".encode()) == b""
    assert server.stop() == 0
    return log.read_bytes().decode()


def test_text_is_one_record_a_line(forkd: Forkd, tmp_path: Path) -> None:
    server = started(forkd, tmp_path / "log", "small:complain")
    text = provoke(server, tmp_path / "log")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    lines = text.split("\n")
    assert lines.pop() == ""
    assert all(TEXT_RECORD.fullmatch(line) or line.startswith("    ") for line in lines)
    (error,) = (line for line in lines if " error " in line)
    assert re.search(
        r" error connection: handler error service=test worker=0 gen=1 connection=1 peer=127\.0\.0\.1:\d+$", error
    )
    told = r"    ValueError: cannot do \x1b[2J\r\x07\x08 \x85 \u2028\u202e fake=1"
    assert lines[lines.index(error) + 1] == "    Traceback (most recent call last):"
    assert told in lines


def test_json_is_one_object_a_line(forkd: Forkd, tmp_path: Path) -> None:
    server = started(forkd, tmp_path / "log", "small:complain", format="json", level="debug")
    text = provoke(server, tmp_path / "log")
    records = [json.loads(line) for line in text.split("\n")[:-1]]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert {record["level"] for record in records} >= {"debug", "info", "error"}
    (error,) = (record for record in records if record["level"] == "error")
    assert error["message"] == "connection: handler error"
    assert error["text"].endswith(f"ValueError: cannot do {NASTY}")
    assert {key: error[key] for key in ("service", "worker", "gen", "connection")} == {
        "service": "test",
        "worker": 0,
        "gen": 1,
        "connection": 1,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", error["time"])


@pytest.mark.parametrize(
    ("level", "seen"),
    [("debug", "DEBUG INFO WARNING ERROR"), ("warning", "WARNING ERROR"), ("error", "ERROR")],
)
def test_what_is_less_urgent_is_not_written(forkd: Forkd, tmp_path: Path, level: str, seen: str) -> None:
    log = tmp_path / "log"
    server = started(forkd, log, "small:remark", level=level)
    with server.connect() as client:
        for each in ("DEBUG", "INFO", "WARNING", "ERROR"):
            client.sendall(f"{each} it is {each}\n".encode())
            assert client.recv(100) == b"logged\n"
    assert server.stop() == 0
    assert re.findall(r"(?:debug|info|warning|error) shop: remark: it is (\w+)", log.read_text()) == seen.split()
    assert ("signal: stop" in log.read_text()) == (level == "debug")


def test_the_log_of_an_application_is_as_safe(forkd: Forkd, tmp_path: Path) -> None:
    server = started(forkd, tmp_path / "log", "small:remark")
    assert exchange(server.connect(), f"INFO {NASTY}\n".encode()) == b"logged\n"
    assert (
        r"info shop: remark: \x1b[2J\r\x07\x08 \x85 \u2028\u202e fake=1"
        in (tmp_path / "log").read_text().split("\n")[0][24:]
    )


def test_standard_error_is_the_default(forkd: Forkd) -> None:
    server = forkd("small:complain", workers=1).serving()
    exchange(server.connect(), b"this\n")
    server.said("error connection: handler error service=test worker=0 gen=1 connection=1 peer=")
    server.said("^    ValueError: cannot do this$")


def test_a_log_file_is_not_for_everybody(forkd: Forkd, tmp_path: Path) -> None:
    server = started(forkd, tmp_path / "log", "small:shout", level="debug")
    until(lambda: (tmp_path / "log").read_text())
    assert (tmp_path / "log").stat().st_mode & 0o137 == 0
    assert not any(TEXT_RECORD.fullmatch(line) for line in server.lines)


@pytest.mark.parametrize("where", ["no/such/folder/log", "folder", "link"])
def test_a_log_that_cannot_be_written_ends_the_start(forkd: Forkd, tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    server = forkd(
        "small:shout",
        listen=f"unix:{tmp_path}/door.sock",
        master=f'log.file = "{tmp_path}/{where}"\npidfile = "{tmp_path}/forkd.pid"',
    )
    assert server.exited() == 1
    server.said(f"^forkd: cannot open the log file {tmp_path}/{where}: ")
    server.gone()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "forkd.toml", "link"]


def test_a_control_socket_that_cannot_be_made_ends_the_start(forkd: Forkd, tmp_path: Path) -> None:
    (tmp_path / "control.sock").mkdir()
    server = forkd("small:shout", listen=f"unix:{tmp_path}/door.sock")
    assert server.exited() == 1
    server.said(f"^forkd: cannot open the control socket {tmp_path}/control.sock: ")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["control.sock", "forkd.toml"]


def netstring(text: str) -> bytes:
    data = text.encode(errors="surrogateescape")
    return b"%d:%s," % (len(data), data)


def test_what_an_application_prints_on_standard_error_is_as_safe(forkd: Forkd, tmp_path: Path) -> None:
    """It is logged line by line, wherever the log is, and an unfinished line is not lost."""
    log = tmp_path / "log"
    server = started(forkd, log, "visits:aloud")
    (worker,) = server.workers()
    forged = "2026-01-31 12:00:00.000 error forged"
    said = [f"print {NASTY}\n{forged}", f"bytes \x1b]0;title\x07\udcff\n{forged}", "begun and not ended"]
    for text in said:
        assert exchange(server.connect(), netstring(text)) == b"4:said,"
    assert server.stop() == 0
    lines = log.read_text().split("\n")
    told = [line[24:].removesuffix(f" service=test pid={worker}") for line in lines if " stderr: " in line]
    assert told == [
        r"warning stderr: \x1b[2J\r\x07\x08 \x85 \u2028\u202e fake=1",
        f"warning stderr: {forged}",
        r"warning stderr: \x1b]0;title\x07\xff",
        f"warning stderr: {forged}",
        "warning stderr: and not ended",
    ]
    assert not any(line.startswith(forged) for line in lines + server.lines)
    assert all(line.startswith("serving") for line in server.lines[1:-1])


def test_an_application_with_a_log_of_its_own_goes_round_in_no_circle(tmp_path: Path) -> None:
    """Its handlers print the records they receive. That output is logged, and not passed to the handlers again."""
    text = f'app = "outspoken:remark"\npath = "{HANDLERS}"\nlisten = "127.0.0.1:0"\nworkers = 1\n'
    (tmp_path / "forkd.toml").write_text(f'[master]\ncontrol = "{tmp_path}/control.sock"\n[service.test]\n{text}')
    both = ["sh", "-c", 'exec "$@" >&2', "sh", *FORKD]
    with running(["forkd.toml"], tmp_path, program=both) as server:
        assert exchange(server.serving().connect(), b"a\x1b\nb\n") == b"logged\nlogged\n"
        assert server.stop() == 0
        told = [line[24:].partition(" service=test ")[0] for line in server.lines if re.search("stdout|stderr", line)]
        assert told == [
            r"info stdout: printed a\x1b",
            r"warning stderr: WARNING:shop:remarked a\x1b",
            r"warning stderr: remarked a\x1b",
            "info stdout: printed b",
            r"warning stderr: begun a\x1bWARNING:shop:remarked b",
            "warning stderr: remarked b",
            "warning stderr: begun b",
        ]


def test_the_exception_of_a_thread_is_one_record(forkd: Forkd) -> None:
    server = forkd("visits:aloud", workers=1).serving()
    assert exchange(server.connect(), netstring(f"thread {NASTY}\n2026")) == b"4:said,"
    server.said(r" error the thread 'the helper' ended with an exception service=test pid=\d+$")
    first = next(at for at, line in enumerate(server.lines) if " ended with an exception " in line)
    last = next(at for at, line in enumerate(server.lines) if "    ValueError: " in line)
    assert server.lines[last] == r"    ValueError: \x1b[2J\r\x07\x08 \x85 \u2028\u202e fake=1"
    assert server.lines[last + 1] == "    2026"
    assert server.lines[first + 1] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in server.lines[first + 1 : last + 1])


def test_the_last_request_of_a_worker_is_as_safe(forkd: Forkd) -> None:
    server = forkd("small:die", workers=1).serving()
    with server.connect() as client:
        client.sendall(b"die \x0b\r9\x0c\n")  # which Python accepts as a number
        assert client.recv(100) == b""
    server.said(r' error worker crashed .* begins="die \\u000b\\r9\\f"$')


# The journal.


@pytest.mark.slow
def test_under_systemd_each_process_writes_to_the_journal(tmp_path: Path) -> None:
    """forkd runs with the variable that systemd sets, and a journal socket in its usual place, in a mount namespace."""
    if reason := namespaces_missing():
        pytest.skip(reason)
    with Journald(tmp_path / "socket") as journald, ExitStack() as servers:
        text = f'app = "small:complain"\npath = "{HANDLERS}"\nlisten = "127.0.0.1:0"\nworkers = 1\naccess = true\n'
        (tmp_path / "forkd.toml").write_text(f'[master]\ncontrol = "{tmp_path}/control.sock"\n[service.test]\n{text}')
        server = servers.enter_context(running(["forkd.toml"], tmp_path, program=under_systemd(tmp_path))).serving()
        (worker,) = server.workers()
        assert exchange(server.connect(), f"{NASTY}\n".encode()) == b""
        failed, access = journald.entry(), journald.entry()
        told = {"PRIORITY": "3", "SYSLOG_IDENTIFIER": "forkd", "_PID": str(worker)}
        whose = {"FORKD_SERVICE": "test", "FORKD_SLOT": "0", "FORKD_GENERATION": "1", "FORKD_CONNECTION": "1"}
        message, peer = failed.pop("MESSAGE").split("\n"), failed.pop("FORKD_PEER")
        assert failed == told | whose
        assert message[0] == f"connection: handler error service=test worker=0 gen=1 connection=1 peer={peer}"
        assert message[1] == "    Traceback (most recent call last):"
        assert message[-1] == r"    ValueError: cannot do \x1b[2J\r\x07\x08 \x85 \u2028\u202e fake=1"
        assert {key: access[key] for key in ("FORKD_PEER", "FORKD_REQUESTS", "FORKD_END", "PRIORITY", "_PID")} == {
            "FORKD_PEER": peer,
            "FORKD_REQUESTS": "1",
            "FORKD_END": "error",
            "PRIORITY": "6",
            "_PID": str(worker),
        }
        assert server.stop() == 0
        stopped = journald.entry()
        assert (stopped["MESSAGE"], stopped["_PID"]) == ("signal: stop signal=SIGTERM", str(server.pid))
        assert not [line for line in server.lines if TEXT_RECORD.match(line)]


@pytest.mark.slow
def test_without_its_socket_the_journal_has_priorities_on_standard_error(tmp_path: Path) -> None:
    if reason := namespaces_missing():
        pytest.skip(reason)
    (tmp_path / "forkd.toml").write_text("broken")
    with running(["forkd.toml"], tmp_path, program=under_systemd(tmp_path)) as server:
        assert server.exited() == 78
        server.said("^<3>.*forkd.toml:1: ")
    absent = ["small:absent", "--listen", "127.0.0.1:0", "--set", f'path="{HANDLERS}"']
    with running(absent, tmp_path, program=under_systemd(tmp_path)) as server:
        assert server.exited() == 78
        server.said("^<3>command line: service.absent.app: ")
    text = f'app = "small:complain"\npath = "{HANDLERS}"\nlisten = "127.0.0.1:0"\nworkers = 1\n'
    (tmp_path / "forkd.toml").write_text(f'[master]\ncontrol = "{tmp_path}/control.sock"\n[service.test]\n{text}')
    with running(["forkd.toml"], tmp_path, program=under_systemd(tmp_path)) as server:
        exchange(server.serving().connect(), b"this\n")
        server.said("^<3>connection: handler error service=test worker=0 gen=1 connection=1 peer=")
        server.said("^<3>    ValueError: cannot do this$")
        assert server.stop() == 0
        server.said("^<6>signal: stop signal=SIGTERM$")


@functools.cache
def namespaces_missing() -> str | None:
    """Returns why a mount namespace is impossible here, as a reason to skip; None if it is possible."""
    if not shutil.which("unshare"):
        return "a mount namespace needs the program unshare"
    trial = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"mount namespaces are impossible here: {done.stderr.strip()}"


def under_systemd(folder: Path) -> list[str]:
    """Returns a command that runs forkd with `folder` as the journal's, and the variable that identifies its stream."""
    shell = (
        "mount -t tmpfs tmpfs /run && mkdir /run/systemd && ln -s "
        f'"{folder}" /run/systemd/journal && export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", shell, "sh", *FORKD]


# A log that accepts nothing.


LOST = re.compile(r" warning (\d+) records? (?:was|were) lost: .* pid=(\d+)\n")


@pytest.mark.parametrize("before", [[], POWERLESS], ids=["own", "another user's"])
def test_a_standard_error_that_nobody_reads_holds_nobody_up(before: list[str]) -> None:
    """This holds even if the pipe belongs to another user, such as a supervisor, and so cannot be reopened."""
    if before and (reason := setpriv_missing()):
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        os.mkfifo(folder / "stderr", 0o600)
        if before:
            os.chown(folder / "stderr", NOBODY.pw_uid, NOBODY.pw_gid)
        pipe = os.open(folder / "stderr", os.O_RDWR | os.O_NONBLOCK)
        opened.callback(os.close, pipe)
        fill(pipe)
        redirected = ["sh", "-c", f'exec "$@" 2>"{folder}/stderr"', "sh", *before, *FORKD]
        text = f'app = "small:complain"\npath = "{HANDLERS}"\nlisten = "unix:{folder}/door.sock"\nworkers = 1\n'
        (folder / "forkd.toml").write_text(f'[master]\ncontrol = "{folder}/control.sock"\n[service.test]\n{text}')
        server = opened.enter_context(running(["forkd.toml"], folder, program=redirected))
        until(lambda: is_serving(server), "a server that serves")
        for _ in range(2):
            assert exchange(connect(f"unix:{folder}/door.sock"), b"hello\n") == b""  # and a traceback in the log
            assert server.ask(command="reload")
        (worker,) = until(lambda: len(found := server.workers()) == 1 and found, "the last generation's worker alone")
        for _ in range(2):  # so that the first has been handled, including its record
            assert exchange(connect(f"unix:{folder}/door.sock"), b"hello\n") == b""
        text = drain(pipe)  # it may contain the other's record, with the count of those lost before it
        assert exchange(connect(f"unix:{folder}/door.sock"), b"last words\n") == b""
        assert server.ask(command="reload")
        assert server.stop() == 0
        text += drain(pipe)
        assert "ValueError: cannot do last words\n" in text
        lost = [(int(found[2]), int(found[1])) for found in LOST.finditer(text)]
        assert (server.pid, 2) in lost
        assert dict(lost)[worker] in (1, 2)


def is_serving(server: Server) -> bool:
    with suppress(UnreachableError):
        return bool(server.status()["master"]["phase"] == "serving")
    return False


def fill(pipe: int) -> None:
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(pipe, b"x" * size)


def drain(pipe: int) -> str:
    """Returns everything that can be read now."""
    found = b""
    with suppress(BlockingIOError):
        while True:
            found += os.read(pipe, 65536)
    return found.decode()


def test_a_full_disk_is_told_and_what_was_lost_when_it_has_room(forkd: Forkd, tmp_path: Path) -> None:
    if reason := disk.missing():
        pytest.skip(reason)
    (tmp_path / "small").mkdir()
    with disk.small_disk(tmp_path / "small") as small:
        server = started(forkd, small / "log", "small:complain")
        (worker,) = server.workers()
        filler = disk.fill(small)
        for _ in range(9):  # the first records may fit into the log's last page
            assert exchange(server.connect(), b"lost\n") == b""
        cannot = rf"the log file {small.resolve()}/log cannot be written: No space left on device pid={worker}$"
        server.said(f"error records are lost: {cannot}")
        (tmp_path / "forkd.toml").write_text("broken")
        with pytest.raises(ControlError):
            server.ask(command="reload")
        filler.unlink()
        assert exchange(server.connect(), b"found again\n") == b""
        assert server.stop() == 0
        text = (small / "log").read_text()
        assert "ValueError: cannot do found again\n" in text
        lost = {int(found[2]): int(found[1]) for found in LOST.finditer(text)}
        assert lost == {server.pid: 1, worker: 9 - text.count("ValueError: cannot do lost\n")}
        assert len([line for line in server.lines if "records are lost" in line]) == 1
