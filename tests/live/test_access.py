"""The access record of each connection: what happened on it and why it ended, with every kind of worker."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forkd
from tests.live.test_life import call
from tests.server import Server, exchange, until

KINDS: dict[str, dict[str, Any]] = {
    "sync": {"app": "visits:visit", "workers": 12},
    "event": {"app": "visits:visit", "workers": 1, "worker": '"event"'},
    "threads": {"app": "visits:visit", "workers": 1, "worker": '"event"', "threads": 4},
    "async": {"app": "visits:awaited", "workers": 1, "worker": '"event"'},
}
every_kind = pytest.mark.parametrize("kind", KINDS)

RECORD = re.compile(
    r"^\S+ \S+ info access service=test worker=\d+ gen=1 connection=\d+ peer=127\.0\.0\.1:(?P<port>\d+) "
    r"seconds=(?P<seconds>[\d.e-]+) requests=(?P<requests>\d+) bytes_in=(?P<into>\d+) bytes_out=(?P<out>\d+) "
    r"end=(?P<end>\w+)$"
)


def start(forkd: Forkd, kind: str, **keys: object) -> Server:
    told: dict[str, Any] = {"access": "true"} | KINDS[kind] | keys
    return forkd(told.pop("app"), **told).serving()


def ends(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def resets(client: socket.socket) -> None:
    assert client.recv(100) == b"A\n"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def stays(client: socket.socket) -> None:
    """Does nothing."""


@dataclass(frozen=True)
class Call:
    """What a client sends and does next. `sent`, the bytes it gets back, is None if it depends on buffers."""

    end: str
    sends: bytes
    then: Callable[[socket.socket], None]
    requests: int
    sent: int | None
    seconds: float = 0.0


CALLS = [
    Call("client", b"a\nbb\n\nccc\n", ends, 4, 10),
    Call("closed", b"a\nbye\nnever heard\n", stays, 2, 6),
    Call("truncated", b"a\nhalf", ends, 1, 2),
    Call("over_limit", b"x" * 100, stays, 0, 0),
    Call("error", b"a\nfail\n", stays, 2, 2),
    Call("reset", b"a\n", resets, 1, 2),
    Call("idle", b"a\n", stays, 1, 2, 1.0),
    Call("idle", b"", stays, 0, 0, 1.0),
    Call("read", b"a\nhalf", stays, 1, 2, 1.0),
    Call("write", b"flood\n", stays, 1, None, 1.0),
]
HANGS = Call("request", b"a\nhang\n", stays, 2, 2, 1.0)


def records(server: Server) -> list[re.Match[str]]:
    return [found for line in server.lines if (found := RECORD.match(line))]


@pytest.mark.slow
@every_kind
def test_each_connection_has_a_record_that_tells_why_it_ended(forkd: Forkd, kind: str) -> None:
    calls = [*CALLS, HANGS] if kind == "async" else CALLS
    patience = {"idle_timeout": 1, "read_timeout": 1, "write_timeout": 1}
    server = start(forkd, kind, **patience, **({"request_timeout": 1} if kind == "async" else {}))
    with ExitStack() as clients:
        by_port = {}
        for each in calls:
            client = clients.enter_context(server.connect())
            by_port[str(client.getsockname()[1])] = each
            client.sendall(each.sends)
            each.then(client)
        server.said(RECORD.pattern, len(calls))
        found = {record["port"]: record for record in records(server)}
        assert found.keys() == by_port.keys()
        for port, each in by_port.items():
            record = found[port]
            told = (record["end"], int(record["requests"]), int(record["into"]))
            assert told == (each.end, each.requests, len(each.sends))
            assert each.sent in (None, int(record["out"]))
            assert each.seconds * 0.9 <= float(record["seconds"]) < each.seconds + 5
    last = server.connect()
    assert call(last, b"a\n") == b"A\n"
    totals = server.status("test")
    assert server.stop() == 0
    (leaving,) = (each for each in records(server) if each["port"] == str(last.getsockname()[1]))
    assert (leaving["end"], leaving["requests"]) == ("leaving", "1")
    # The records and the totals agree.
    told = [int(each["requests"]) for each in records(server)], [int(each["into"]) for each in records(server)]
    assert (sum(told[0]), sum(told[1])) == (totals["requests"], sum(len(each.sends) for each in calls) + 2)


@every_kind
def test_a_handler_that_ends_its_worker_ends_its_connection_with_a_record(forkd: Forkd, kind: str) -> None:
    server = start(forkd, kind)
    assert exchange(server.connect(), b"a\nexit\n") == b"A\n"
    server.said(RECORD.pattern)
    (record,) = records(server)
    assert (record["end"], record["requests"], record["into"], record["out"]) == ("exit", "2", "7", "2")


STREAMS = [{"workers": 1}, {"workers": 1, "worker": '"event"', "threads": 2}]


@pytest.mark.parametrize("keys", STREAMS, ids=["sync", "threads"])
def test_a_stream_is_one_request(forkd: Forkd, keys: dict[str, Any]) -> None:
    server = forkd("visits:session", access="true", **keys).serving()
    for _ in range(2):
        assert exchange(server.connect(), b"x" * 1000) == b"x" * 1000
    server.said(RECORD.pattern, 2)
    found = [(each["end"], each["requests"], each["into"], each["out"]) for each in records(server)]
    assert found == [("client", "1", "1000", "1000")] * 2


@every_kind
def test_many_at_once_have_each_their_own(forkd: Forkd, kind: str) -> None:
    server = start(forkd, kind)
    wanted = {}
    with ExitStack() as clients:
        all_of_them = [clients.enter_context(server.connect()) for _ in range(10)]
        for turn in range(10):
            for number, client in enumerate(all_of_them):
                if number >= turn:
                    assert call(client, b"%d\n" % number) == b"%d\n" % number
        wanted = {str(client.getsockname()[1]): number + 1 for number, client in enumerate(all_of_them)}
    server.said(RECORD.pattern, 10)
    assert {each["port"]: int(each["requests"]) for each in records(server)} == wanted
    assert all(int(each["into"]) == int(each["out"]) == 2 * int(each["requests"]) for each in records(server))


def test_as_json_it_has_numbers(forkd: Forkd) -> None:
    server = forkd("visits:visit", workers=1, access="true", master='log.format = "json"').serving()
    assert exchange(server.connect(), b"a\n") == b"A\n"
    server.said('"access"')
    (record,) = (json.loads(line) for line in server.lines if '"access"' in line)
    port = record.pop("peer").removeprefix("127.0.0.1:")
    assert port.isdecimal()
    assert isinstance(record.pop("seconds"), float)
    assert isinstance(record.pop("time"), str)
    who = {"level": "info", "message": "access", "service": "test", "worker": 0, "gen": 1, "connection": 1}
    assert record == who | {"requests": 1, "bytes_in": 2, "bytes_out": 2, "end": "client"}


def test_the_name_of_a_unix_client_is_written_out(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("visits:visit", listen=f"unix:{tmp_path}/door", workers=1, access="true").serving()
    name = os.fsencode(tmp_path) + b"/\x1b[2J\n \xff\xe2\x80\xae"
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(name)
        client.connect(str(tmp_path / "door"))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    with server.connect() as nameless:
        nameless.shutdown(socket.SHUT_WR)
        assert nameless.recv(100) == b""
    server.said(" access ", 2)
    first, second = (line for line in server.lines if " access " in line)
    assert f'peer="unix:{tmp_path}/\\u001b[2J\\n \\\\xff\\u202e" seconds=' in first
    assert " peer=unix: seconds=" in second


@pytest.mark.parametrize(("access", "level"), [("false", "debug"), ("true", "warning")])
def test_nobody_has_one_who_did_not_ask(forkd: Forkd, access: str, level: str) -> None:
    server = forkd("visits:visit", workers=1, access=access, master=f'log.level = "{level}"').serving()
    assert exchange(server.connect(), b"a\n") == b"A\n"
    until(lambda: server.status("test")["connections"]["open"] == 0)
    assert server.stop() == 0
    assert not any(" access " in line for line in server.lines)


def test_a_reload_turns_them_on_and_off(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd("visits:visit", workers=1).serving()
    file = tmp_path / "forkd.toml"
    before = file.read_text()
    for text, count in ((f"{before}access = true\n", 1), (before, 1), (f"{before}access = true\n", 2)):
        file.write_text(text)
        server.ask(command="reload")
        until(lambda: len(server.workers()) == 1)
        assert exchange(server.connect(), b"a\n") == b"A\n"
        until(lambda: server.status("test")["connections"]["open"] == 0)
        assert len([line for line in server.lines if " access " in line]) <= count
    server.said(" access ", 2)
