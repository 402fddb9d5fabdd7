"""Programs that know nothing of forkd talk to it, and `forkd call` talks to forkd's services."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from forkd.cli import main
from forkd.kernel.address import parse
from tests.conftest import Forkd
from tests.server import FORKD, LIMIT, Server, program, until

pytestmark = pytest.mark.slow


def address(server: Server, service: str = "") -> str:
    return next(address for name, address in server.addresses if service in ("", name))


def standard(forkd: Forkd, *names: str) -> Server:
    """Starts some of the small standard services, with one worker each."""
    tables = [
        f'[service.{name}]\napp = "forkd.services:{name}"\nworkers = 1\nlisten = "127.0.0.1:0"\n' for name in names
    ]
    return forkd(file="\n".join(tables)).serving(len(names))


def needs(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"needs the program {tool}")
    return path


def nc() -> str:
    """Returns OpenBSD's netcat. Other versions lack -N, which shuts down our side when the input ends."""
    path = needs("nc")
    told = subprocess.run([path, "-h"], capture_output=True, text=True, timeout=LIMIT, check=False)
    if "OpenBSD" not in told.stderr + told.stdout:
        pytest.skip("needs OpenBSD's netcat, for its option -N")
    return path


def run(*command: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=data, capture_output=True, timeout=LIMIT, check=False)


# Third-party programs.


def test_netcat_is_echoed_and_ends(forkd: Forkd) -> None:
    program = nc()
    host, _, port = address(standard(forkd, "echo")).rpartition(":")
    data = os.urandom(300_000)
    assert run(program, "-N", host, port, data=data).stdout == data


def test_netcat_reads_the_time_of_day(forkd: Forkd) -> None:
    program = nc()
    host, _, port = address(standard(forkd, "daytime")).rpartition(":")
    before = datetime.now().replace(microsecond=0)
    told = run(program, "-d", host, port).stdout.decode()
    found = re.fullmatch(r"(\w+, \w+ \d+, \d{4} \d\d:\d\d:\d\d)-\S+\r\n", told)
    assert found
    assert before <= datetime.strptime(found[1], "%A, %B %d, %Y %H:%M:%S") <= datetime.now()


def test_netcat_on_a_unix_socket(forkd: Forkd, tmp_path: Path) -> None:
    program = nc()
    forkd("small:shout", workers=1, listen=f"unix:{tmp_path}/shout").serving()
    assert run(program, "-N", "-U", f"{tmp_path}/shout", data=b"hello\n").stdout == b"HELLO\n"


def test_rdate_agrees_with_the_clock(forkd: Forkd) -> None:
    program = needs("rdate")
    host, _, port = address(standard(forkd, "time")).rpartition(":")
    before = int(time.time())
    result = subprocess.run(
        [program, "-p", "-o", port, host],
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C", "TZ": "UTC0"},
        timeout=LIMIT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    told = re.search(r"\w{3} +(\w{3}) +(\d+) +(\d\d:\d\d:\d\d) +(?:\w+ +)?(\d{4})", result.stdout)
    assert told, result.stdout
    month, day, clock, year = told.groups()
    when = datetime.strptime(f"{month} {day} {year} {clock} +0000", "%b %d %Y %H:%M:%S %z")
    assert before <= when.timestamp() <= time.time()


# `forkd call`.


def call(*arguments: str, cwd: Path, text: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    result = program("call", *arguments, cwd=cwd, text=text)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_call_on_every_standard_service(forkd: Forkd, tmp_path: Path) -> None:
    server = standard(forkd, "echo", "discard", "qotd", "daytime", "time")
    assert call(address(server, "echo"), "one", "two", cwd=tmp_path).stdout == "one\ntwo\n"
    assert call(address(server, "discard"), "one", cwd=tmp_path).stdout == ""
    assert call(address(server, "qotd"), cwd=tmp_path).stdout.startswith('"')
    assert re.search(r" \d\d:\d\d:\d\d-", call(address(server, "daytime"), cwd=tmp_path).stdout)
    raw = subprocess.run([*FORKD, "call", address(server, "time")], input=b"", capture_output=True, check=True)
    assert abs(int.from_bytes(raw.stdout) - 2_208_988_800 - time.time()) < 5


def test_call_stops_quietly_when_nobody_reads_any_more(forkd: Forkd) -> None:
    where = address(standard(forkd, "chargen"))
    with subprocess.Popen([*FORKD, "call", where], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as calling:
        assert calling.stdout is not None
        line = calling.stdout.read(74)
        calling.stdout.close()
        assert calling.wait(LIMIT) == 0
    assert line == bytes(range(32, 104)) + b"\r\n"


def test_call_is_a_filter_in_a_pipe(forkd: Forkd, tmp_path: Path) -> None:
    where = address(forkd("small:shout", workers=1).serving())
    result = subprocess.run(
        ["sh", "-c", f'printf "one\\ntwo\\nlast" | {FORKD[0]} -m forkd call {where} | tr -d N'],
        capture_output=True,
        timeout=LIMIT,
        check=True,
    )
    assert result.stdout == b"OE\nTWO\n"  # an unterminated line is not a request


def test_call_with_a_file_as_its_input(forkd: Forkd, tmp_path: Path) -> None:
    where = address(forkd("small:shout", workers=1).serving())
    (tmp_path / "requests").write_text("hello\n" * 20_000)
    with (tmp_path / "requests").open() as requests:
        result = subprocess.run([*FORKD, "call", where], stdin=requests, capture_output=True, timeout=LIMIT, check=True)
    assert result.stdout == b"HELLO\n" * 20_000


def test_call_with_closed_standard_streams(forkd: Forkd) -> None:
    where = address(forkd("small:shout", workers=1).serving())
    assert run("sh", "-c", f"{FORKD[0]} -m forkd call {where} hello <&-").stdout == b"HELLO\n"
    assert run("sh", "-c", f"{FORKD[0]} -m forkd call {where} hello >&-").returncode == 0


def test_call_on_unix_sockets(forkd: Forkd, tmp_path: Path) -> None:
    forkd("small:shout", workers=1, listen=f"unix:{tmp_path}/shout").serving()
    assert call(f"unix:{tmp_path}/shout", "hello", cwd=tmp_path).stdout == "HELLO\n"


def test_call_from_an_address_of_choice(forkd: Forkd, tmp_path: Path) -> None:
    where = address(forkd("small:ends", workers=1).serving())
    told = call(where, "?", "--source", "127.0.0.9", cwd=tmp_path).stdout
    assert parse(told.split()[1]).host == "127.0.0.9"


def test_call_where_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{bound.getsockname()[1]}"
        result = call(where, "hello", cwd=tmp_path, status=69)
    assert result.stderr.startswith(f"forkd: cannot connect to {where}: no process listens there (ECONNREFUSED)")
    assert call(f"unix:{tmp_path}/none", "hello", cwd=tmp_path, status=69).stderr.count("ENOENT") == 1


def test_call_where_nobody_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        result = call(where, "hello", "--timeout", "0.1", cwd=tmp_path, status=75)
    assert result.stderr.startswith(f"forkd: {where} has been silent for 0.1 s")


def test_call_names_a_unix_socket_as_it_was_given(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("small:stubborn", workers=1, listen=f"unix:{tmp_path}/stubborn").serving()
    result = call(address(server), "hello", "--timeout", "0.1", cwd=tmp_path, status=75)
    assert result.stderr.startswith(f"forkd: unix:{tmp_path}/stubborn has been silent")


def test_call_when_the_server_breaks_off(forkd: Forkd, tmp_path: Path) -> None:
    where = address(forkd("small:die", workers=1).serving())
    # A file instead of a pipe always has more data to read, so there was certainly something left to send.
    (tmp_path / "requests").write_text("exit 3\n" + "more\n" * 1_000_000)
    with (tmp_path / "requests").open() as requests:
        result = subprocess.run(
            [*FORKD, "call", where], stdin=requests, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    assert result.returncode == 76
    assert result.stderr.startswith(f"forkd: {where} ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nowhere",),
        ("127.0.0.1:0",),
        ("systemd:echo",),
        ("127.0.0.1:7", "--timeout", "-1"),
        ("127.0.0.1:7", "--timeout", "nan"),
        ("127.0.0.1:7", "--connect-timeout", "0"),
        ("127.0.0.1:7", "--source", "[::1"),
        ("127.0.0.1:7", "--source", "::1"),
        ("127.0.0.1:7", "--no-such-option"),
    ],
)
def test_call_used_wrongly(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["call", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err


@contextmanager
def terminal(*arguments: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Runs `forkd call` on a terminal. Yields the terminal's descriptor and the program."""
    screen, theirs = pty.openpty()
    tty.setraw(theirs)  # no echo, and \n stays \n
    # A background job of a shell, which the tests may be, ignores SIGINT.
    command = ["env", "--default-signal=INT", *FORKD, "call", *arguments]
    calling = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        yield screen, calling
    finally:
        calling.kill()
        calling.wait(LIMIT)
        os.close(screen)


def read(screen: int, expected: bytes) -> None:
    received = b""
    while len(received) < len(expected):
        received += os.read(screen, 100)
    assert received == expected


def test_call_on_a_terminal(forkd: Forkd) -> None:
    where = address(forkd("small:shout", workers=1).serving())
    with terminal(where) as (screen, calling):
        for line in (b"one\n", b"two\n"):
            os.write(screen, line)
            read(screen, line.upper())
        calling.terminate()
        assert calling.wait(LIMIT) == -signal.SIGTERM


def test_the_end_of_input_on_a_terminal_ends_the_call(forkd: Forkd) -> None:
    where = address(forkd("small:shout", workers=1).serving())
    screen, theirs = pty.openpty()
    calling = subprocess.Popen([*FORKD, "call", where], stdin=theirs, stdout=subprocess.PIPE)
    assert calling.stdout is not None
    os.write(screen, b"one\n")
    assert calling.stdout.readline() == b"ONE\n"
    os.write(screen, b"\x04")  # Ctrl-D
    assert calling.wait(LIMIT) == 0
    os.close(screen)
    os.close(theirs)
    calling.stdout.close()


def test_an_interrupt_on_a_terminal_ends_the_call(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1).serving()
    with terminal(address(server)) as (screen, calling):
        os.write(screen, b"one\n")
        read(screen, b"ONE\n")
        calling.send_signal(signal.SIGINT)
        assert calling.wait(LIMIT) == 130
    until(lambda: server.status("test")["connections"]["open"] == 0)
