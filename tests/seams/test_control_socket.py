"""Both ends of the control socket, over the master's own kind of wait."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from forkd.errors import BrokenOffError, ControlError, Exit, TimedOutError, UnreachableError
from forkd.ipc.control_client import ask
from forkd.ipc.control_server import CLIENTS, LINE_BYTES, Answer, ControlServer, failure, success
from forkd.kernel.owned_file import OwnedFile
from forkd.kernel.poller import Poller
from tests.server import POWERLESS, program, setpriv_missing

LIMIT = 10.0


class Room:
    """A control server that records its commands. `obey` answers them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wait = Poller()
        self.seen: list[dict[str, Any]] = []
        self.obey: Callable[[dict[str, Any], Answer], None] = lambda command, reply: reply(success(command))
        self.server = ControlServer(str(path), self.wait, self.heard)
        self.callers = ThreadPoolExecutor(CLIENTS)

    def heard(self, command: dict[str, Any], reply: Answer) -> None:
        self.seen.append(command)
        self.obey(command, reply)

    def ask(self, **command: Any) -> Future[Any]:
        return self.callers.submit(ask, self.path, command, LIMIT)

    def turn(self, *asked: Future[Any]) -> None:
        """Waits, as the master does, until all of these have been answered."""
        while not all(each.done() for each in asked):
            self.wait.once(0.01)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LIMIT)
        sock.connect(str(self.path))
        return sock


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    found = Room(tmp_path / "control.sock")
    yield found
    if found.path.exists():
        found.server.close()
    found.callers.shutdown()


def test_a_command_is_answered(room: Room) -> None:
    asked = room.ask(command="status", size=3)
    room.turn(asked)
    assert asked.result() == {"command": "status", "size": 3}


def test_a_failure_is_raised_with_its_words_and_its_status(room: Room) -> None:
    room.obey = lambda command, reply: reply(failure("no such thing", Exit.CONFIG))
    asked = room.ask(command="reload")
    room.turn(asked)
    with pytest.raises(ControlError, match="no such thing") as caught:
        asked.result()
    assert caught.value.exit_status is Exit.CONFIG


def test_an_answer_may_come_later_and_others_are_served_meanwhile(room: Room) -> None:
    held: list[Answer] = []

    def obey(command: dict[str, Any], reply: Answer) -> None:
        if command["command"] == "reload":
            held.append(reply)
        else:
            reply(success("now"))

    room.obey = obey
    late = room.ask(command="reload")
    while not held:
        room.wait.once(0.01)
    early = room.ask(command="status")
    room.turn(early)
    assert early.result() == "now"
    assert not late.done()
    held[0](success("at last"))
    room.turn(late)
    assert late.result() == "at last"


def test_a_caller_that_has_left_is_no_harm(room: Room) -> None:
    held: list[Answer] = []
    room.obey = lambda command, reply: held.append(reply)
    with room.connect() as client:
        client.sendall(b'{"command": "reload"}\n')
        while not held:
            room.wait.once(0.01)
    held[0](success("nobody hears it"))
    room.obey = lambda command, reply: reply(success())
    asked = room.ask(command="status")
    room.turn(asked)


def test_several_commands_in_one_piece_and_one_in_several(room: Room) -> None:
    with room.connect() as client, client.makefile("rb") as lines:
        client.sendall(b'{"command": "a"}\n{"command": "b"}\n{"comm')
        while len(room.seen) < 2:
            room.wait.once(0.01)
        client.sendall(b'and": "c"}\n')
        while len(room.seen) < 3:
            room.wait.once(0.01)
        assert [json.loads(lines.readline())["result"]["command"] for _ in range(3)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"3", b"\xff", b'{"a": []}', b'{"a": {}}', b'{"a": null}', b'{"a": 1.5}', b"[" * 9999]
)
def test_what_is_no_command_is_answered_and_never_obeyed(room: Room, line: bytes) -> None:
    with room.connect() as client, client.makefile("rb") as lines:
        client.sendall(line + b"\n" + b'{"command": "good"}\n')
        while not room.seen:
            room.wait.once(0.01)
        answer = json.loads(lines.readline())
        assert (answer["ok"], answer["status"]) == (False, 2)
        assert json.loads(lines.readline())["ok"] is True
    assert room.seen == [{"command": "good"}]


def test_a_line_without_end_ends_the_caller(room: Room) -> None:
    def shout(client: socket.socket) -> int:
        sent = 0
        while True:
            try:
                sent += client.send(b"x" * 8192)
            except BlockingIOError:
                room.wait.once(0.01)
            except ConnectionError:
                return sent

    with room.connect() as client:
        client.setblocking(False)
        assert shout(client) > LINE_BYTES
    assert room.seen == []


def test_an_answer_longer_than_a_sockets_queue_comes_whole(room: Room) -> None:
    long = "x" * 5_000_000
    room.obey = lambda command, reply: reply(success(long))
    asked = room.ask(command="status")
    room.turn(asked)
    assert asked.result() == long


def test_a_caller_that_reads_nothing_holds_nobody_up(room: Room) -> None:
    room.obey = lambda command, reply: reply(success("x" * 1_000_000))
    with room.connect() as lazy:
        lazy.sendall(b'{"command": "status"}\n' * 3)
        while len(room.seen) < 3:
            room.wait.once(0.01)
        asked = room.ask(command="status")
        room.turn(asked)
        assert len(asked.result()) == 1_000_000


def test_there_is_a_limit_to_the_callers(room: Room) -> None:
    with ExitStack() as held:
        for _ in range(CLIENTS):
            held.enter_context(room.connect())
        one_more = held.enter_context(room.connect())
        one_more.settimeout(0)
        while True:
            room.wait.once(0.01)
            try:
                assert one_more.recv(1) == b""
                break
            except BlockingIOError:
                continue
    room.wait.once(0)  # all of them have left
    asked = room.ask(command="status")
    room.turn(asked)
    assert asked.result() == {"command": "status"}


def test_the_socket_is_for_its_user_alone(room: Room) -> None:
    assert stat.S_IMODE(room.path.stat().st_mode) == 0o600
    assert not room.server.socket.getblocking()


def test_a_stranger_is_not_heard_even_where_the_rights_let_him(room: Room) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    room.path.chmod(0o666)
    room.path.parent.chmod(0o711)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.chdir(room.path.parent)  # not every user may enter the folders above it
            os.setresuid(65534, 65534, 65534)
            status = 2 if heard(room.path.name) else 0
        finally:
            os._exit(status)
    outcome = None
    while outcome is None:
        room.wait.once(0.01)
        ended, found = os.waitpid(pid, os.WNOHANG)
        outcome = os.waitstatus_to_exitcode(found) if ended else None
    assert outcome == 0
    assert room.seen == []


def heard(path: str) -> bytes:
    """Returns the answer to a command, if any."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        try:
            sock.sendall(b'{"command": "status"}\n')
            return sock.recv(100)
        except ConnectionError:
            return b""


def test_closing_ends_every_caller_and_removes_the_file(room: Room) -> None:
    with room.connect() as client:
        room.wait.once(1)
        room.server.close()
        assert client.recv(1) == b""
    assert not room.path.exists()
    with pytest.raises(UnreachableError):
        ask(room.path, {"command": "status"}, LIMIT)


def test_an_answer_that_was_given_before_the_close_arrives(room: Room) -> None:
    room.obey = lambda command, reply: reply(success("x" * 1000))
    with room.connect() as client, client.makefile("rb") as lines:
        client.sendall(b'{"command": "status"}\n')
        while not room.seen:
            room.wait.once(0.01)
        room.server.close()
        assert len(json.loads(lines.readline())["result"]) == 1000


def test_a_socket_made_anew_keeps_its_callers_and_lets_in_who_had_called(room: Room) -> None:
    with room.connect() as earlier, room.connect() as waiting:
        room.wait.once(1)  # which accepts only the first
        before = room.server.socket
        room.path.unlink()
        assert room.server.reopen() == OwnedFile.at(str(room.path))
        assert before.fileno() == -1
        asked = room.ask(command="status")
        room.turn(asked)
        for caller in (earlier, waiting):
            caller.sendall(b'{"command": "status"}\n')
            seen = len(room.seen)
            while len(room.seen) == seen:
                room.wait.once(0.01)
            assert json.loads(caller.recv(100))["ok"]


def test_a_socket_that_cannot_be_made_anew_stays_as_it_was(room: Room) -> None:
    with room.connect() as earlier:
        room.wait.once(1)
        room.path.unlink()
        room.path.touch()
        with pytest.raises(FileExistsError):
            room.server.reopen()
        earlier.sendall(b'{"command": "status"}\n')
        while not room.seen:
            room.wait.once(0.01)
        assert json.loads(earlier.recv(100))["ok"]
    room.path.unlink()
    room.server.reopen()
    asked = room.ask(command="status")
    room.turn(asked)


# The client's end.


def test_nobody_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "stale"))
    for path in (tmp_path / "none", tmp_path / "stale", tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UnreachableError, match=f"no forkd is running with the control socket {path}"):
            ask(path, {"command": "status"}, LIMIT)


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises((UnreachableError, BrokenOffError), match="too long"):
        ask(tmp_path / ("x" * 120), {"command": "status"}, LIMIT)


def test_somebody_elses_server(tmp_path: Path) -> None:
    if reason := setpriv_missing():
        pytest.skip(reason)
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(tmp_path / "theirs"))
        theirs.listen()
        os.chown(tmp_path / "theirs", 65534, 65534)
        (tmp_path / "theirs").chmod(0o600)
        result = program("status", "--control", str(tmp_path / "theirs"), cwd=tmp_path, before=POWERLESS)
    assert result.returncode == 69
    assert "belongs to another user" in result.stderr


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        with pytest.raises(TimedOutError, match=r"no answer from the forkd at .* within 0\.05 s"):
            ask(tmp_path / "silent", {"command": "status"}, 0.05)


@pytest.mark.parametrize("answer", [b"", b'{"ok": true'])
def test_a_server_that_breaks_off(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as serving:
        listener.bind(str(tmp_path / "breaks"))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(answer)

        served = serving.submit(serve)
        with pytest.raises(BrokenOffError, match="ended before it answered"):
            ask(tmp_path / "breaks", {"command": "status"}, LIMIT)
        served.result()
