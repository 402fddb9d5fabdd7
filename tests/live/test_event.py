"""Event workers: many connections in one worker, with and without threads, and with coroutines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forkd
from tests.live.test_life import begin, call
from tests.server import FORKD, HANDLERS, Server, alive, exchange, until

KINDS: dict[str, dict[str, Any]] = {
    "event": {"app": "small:shout"},
    "threads": {"app": "small:shout", "threads": 2},
    "async": {"app": "waiting:nap"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def start(forkd: Forkd, kind: str, **keys: object) -> Server:
    told: dict[str, Any] = {"workers": 1, "worker": '"event"'} | KINDS[kind] | keys
    return forkd(told.pop("app"), **told).serving()


def ask(kind: str) -> tuple[bytes, bytes]:
    """Returns a request to the handler of this kind, and the reply to it."""
    return (b"0\n", b"slept 0\n") if kind == "async" else (b"well\n", b"WELL\n")


@every_kind
def test_it_serves_many_connections_in_one_worker(forkd: Forkd, kind: str) -> None:
    server = start(forkd, kind)
    request, reply = ask(kind)
    with ExitStack() as clients:
        all_of_them = [clients.enter_context(server.connect()) for _ in range(100)]
        for _ in range(3):
            for client in all_of_them:
                client.sendall(request)
            assert {client.recv(100) for client in all_of_them} == {reply}
        assert server.status("test")["connections"]["open"] == 100
    until(lambda: server.status("test")["connections"]["open"] == 0)
    found = server.status("test")
    assert (found["requests"], found["workers"]["total"], found["workers"]["idle"]) == (300, 1, 1)
    assert server.stop() == 0


@pytest.mark.parametrize("kind", ["sync", *KINDS])
def test_a_default_timeout_of_the_application_is_not_its_clients(forkd: Forkd, kind: str) -> None:
    keys: dict[str, Any] = {"worker": '"event"'} | KINDS[kind] if kind in KINDS else {"app": "small:shout"}
    app = keys.pop("app").partition(":")[2]
    server = forkd(f"hasty:{app}", workers=2, **keys).serving()
    request, reply = ask(kind)
    with server.connect() as client:
        for _ in range(10):
            assert call(client, request) == reply
            client.sendall(request[:1])
            until(lambda: server.status("test")["workers"]["total"] == 2)
            client.sendall(request[1:])
            assert client.recv(100) == reply
    until(lambda: server.status("test")["connections"]["open"] == 0)
    found = server.status("test")
    assert found["requests"] == 20
    assert not any(found["refused"].values())
    assert server.stop() == 0


@every_kind
def test_pipelined_requests_are_answered_in_their_order(forkd: Forkd, kind: str) -> None:
    server = start(forkd, kind)
    if kind == "async":  # the longest waits come first
        requests = [b"%.2f" % (0.05 - number / 100) for number in range(5)]
        replies = [b"slept " + each for each in requests]
    else:
        requests = [b"line %d" % number for number in range(500)]
        replies = [each.upper() for each in requests]
    assert exchange(server.connect(), b"\n".join(requests) + b"\n").splitlines() == replies


@every_kind
def test_a_stop_answers_what_has_begun_and_ends_idle_ones(forkd: Forkd, kind: str) -> None:
    server = start(forkd, kind)
    request, reply = ask(kind)
    with server.connect() as idle, server.connect() as silent, server.connect() as half:
        assert call(idle, request) == reply
        half.sendall(request[:1])
        until(lambda: server.status("test")["connections"]["open"] == 3)
        server.kill(signal.SIGTERM)
        assert idle.recv(100) == b""
        assert silent.recv(100) == b""
        half.sendall(request[1:])
        assert half.recv(100) == reply
        assert half.recv(100) == b""
    assert server.exited() == 0
    server.gone()


@every_kind
def test_a_reload_lets_connections_go_on_until_they_end(forkd: Forkd, kind: str) -> None:
    server = start(forkd, kind)
    request, reply = ask(kind)
    with server.connect() as old:
        assert call(old, request) == reply
        server.ask(command="reload")
        assert call(old, request) == reply
        assert exchange(server.connect(), request) == reply
        assert {each["generation"] for each in server.status()["workers"]} == {1, 2}
    until(lambda: {each["generation"] for each in server.status()["workers"]} == {2})


@every_kind
def test_silence_and_half_requests_have_their_time(forkd: Forkd, kind: str) -> None:
    server = start(forkd, kind, idle_timeout=0.2, read_timeout=0.2)
    with server.connect() as idle, server.connect() as half:
        half.sendall(b"0.")
        began = time.monotonic()
        assert idle.recv(100) == b""
        assert half.recv(100) == b""
        assert 0.15 < time.monotonic() - began < 5
    until(lambda: server.status("test")["refused"]["timed_out"] == 2)


def test_a_thread_that_waits_for_its_client_is_not_cut_off_by_the_sweep(forkd: Forkd) -> None:
    """Waiting for a client has its own limit, `write_timeout`, even if the other limits are shorter."""
    server = forkd("visits:visit", workers=1, worker='"event"', threads=2, idle_timeout=0.2, write_timeout=20).serving()
    with server.connect() as slow, server.connect() as idle:
        slow.sendall(b"flood\n")
        until(lambda: "in drain" in server.ask(command="stacks")[0]["stack"], "a thread that waits")
        assert idle.recv(100) == b"", "the sweep must have run"
        received = 0
        while received < 30_000_001:
            received += len(slow.recv(1 << 20)) or pytest.fail(f"cut off after {received} bytes")


@every_kind
def test_an_idle_worker_sleeps(forkd: Forkd, kind: str) -> None:
    server = start(forkd, kind)
    request, reply = ask(kind)
    assert exchange(server.connect(), request) == reply
    [pid] = server.workers()
    until(lambda: server.status("test")["connections"]["open"] == 0)

    def wake_ups() -> int:
        told = Path(f"/proc/{pid}/status").read_text()
        return int(told.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    before = wake_ups()
    with pytest.raises(AssertionError):  # the master checks twice in this time
        server.said("never said", limit=2.2)
    assert wake_ups() - before <= 1


def test_a_slow_reader_holds_up_nobody_and_is_not_read_meanwhile(forkd: Forkd) -> None:
    server = forkd("small:swell", workers=1, worker='"event"').serving()
    with server.connect() as slow, server.connect() as other:
        slow.setblocking(False)
        asked = 0
        with suppress(BlockingIOError):  # the socket fills up sooner or later
            while asked < 100_000_000:
                asked += slow.send(b"x" * 99 + b"\n")
        assert asked < 20_000_000
        for _ in range(50):
            other.sendall(b"x\n")
            assert other.recv(21, socket.MSG_WAITALL) == b"x" * 20 + b"\n"
        [worker] = server.status()["workers"]
        assert worker["memory"] < 100 * 1024 * 1024
        slow.setblocking(True)
        slow.settimeout(10)
        slow.shutdown(socket.SHUT_WR)
        got = 0
        while data := slow.recv(1 << 16):
            got += len(data)
        assert got == asked // 100 * (99 * 20 + 1)


def test_an_endless_reply_goes_on_as_the_client_reads(forkd: Forkd) -> None:
    server = forkd("small:endless", workers=1, worker='"event"').serving()
    with server.connect() as client, server.connect() as other:
        client.sendall(b"go\n")
        other.sendall(b"go\n")
        for each in (client, other):
            got = 0
            while got < 5_000_000:
                got += len(each.recv(1 << 16))
        [worker] = server.status()["workers"]
        assert worker["memory"] < 100 * 1024 * 1024


def test_connections_spread_over_the_workers(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=4, worker='"event"').serving()
    with ExitStack() as clients:
        for number in range(1000):
            client = clients.enter_context(server.connect())
            if number % 10 == 0:
                assert call(client, b"a\n") == b"A\n"
        until(lambda: server.status("test")["connections"]["open"] == 1000)
        held = [each["connections"] for each in server.status()["workers"]]
    assert sum(held) == 1000
    assert max(held) <= 1.3 * min(held), held


def taken(server: Server) -> int:
    """Returns how many connections a service accepts per second from clients that connect, ask once and leave."""
    load = [
        *FORKD,
        "load",
        server.addresses[0][1],
        "--connections=10",
        "--per-connection=1",
        "--duration=1",
        "--json=-",
    ]
    done = subprocess.run(load, capture_output=True, check=True, timeout=30)
    return int(json.loads(done.stdout)["connections"])


@pytest.mark.slow
def test_two_workers_take_as_many_connections_as_one(forkd: Forkd) -> None:
    """Workers with more connections than others used to avoid the listener for 2 ms, which cost nine tenths of the
    rate."""
    figures = []
    for size in (1, 2):
        server = forkd("small:shout", workers=size, worker='"event"').serving()
        figures.append(taken(server))
        assert server.stop() == 0
    assert figures[1] > 0.4 * figures[0], figures


def test_a_stuck_colleague_does_not_keep_connections_waiting(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2, worker='"event"').serving()
    with begin(server, b"2\n"):
        for _ in range(20):  # many more than its share
            client = server.connect(timeout=1.5)
            assert call(client, b"0\n") == b"slept 0\n"
            client.close()


def test_a_handler_that_never_returns_is_ended_with_its_stack(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=2, worker='"event"', request_timeout=0.3).serving()
    with begin(server, b"60\n") as client:
        peer = client.getsockname()
        assert client.recv(100) == b""
    [record] = server.said("error worker crashed .*request_timeout.*")
    assert f"peer={peer[0]}:{peer[1]}" in record[0]
    assert "begins=60" in record[0]
    assert any("in nap" in line for line in server.lines)
    until(lambda: server.status("test")["workers"]["total"] == 2)


def test_threads_wait_beside_each_other(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=1, worker='"event"', threads=2).serving()
    with begin(server, b"0.5\n") as slow:
        for _ in range(5):
            assert exchange(server.connect(), b"0\n") == b"slept 0\n"
        assert slow.recv(100) == b"slept 0.5\n"


def test_a_stream_has_a_thread_to_itself(forkd: Forkd) -> None:
    server = forkd("small:session", workers=1, worker='"event"', threads=2).serving()
    with server.connect() as one, server.connect() as other:
        for client in (one, other, one, other):
            assert call(client, b"here") == b"here"
    until(lambda: server.status("test")["connections"]["open"] == 0)


def test_a_thread_that_never_returns_is_ended_with_its_stack(forkd: Forkd) -> None:
    server = forkd("small:nap", workers=1, worker='"event"', threads=2, request_timeout=0.3).serving()
    with begin(server, b"60\n") as client, server.connect() as other:
        assert call(other, b"0\n") == b"slept 0\n"
        assert client.recv(100) == b""
    [record] = server.said("error worker crashed .*request_timeout.*")
    assert "begins=60" in record[0]
    assert any("in nap" in line for line in server.lines)


def test_coroutines_wait_beside_each_other(forkd: Forkd) -> None:
    server = forkd("waiting:nap", workers=1, worker='"event"').serving()
    with begin(server, b"0.5\n") as slow:
        for _ in range(5):
            assert exchange(server.connect(), b"0\n") == b"slept 0\n"
        assert slow.recv(100) == b"slept 0.5\n"


def test_a_coroutine_over_its_time_ends_alone(forkd: Forkd) -> None:
    server = forkd("waiting:nap", workers=1, worker='"event"', request_timeout=0.3).serving()
    [pid] = server.workers()
    with begin(server, b"60\n") as client, server.connect() as other:
        assert client.recv(100) == b""
        assert call(other, b"0.2\n") == b"slept 0.2\n"
    server.said("error connection: request_timeout .*")
    server.said(r"the handler waited here:")
    server.said(r"waiting.py\", line \d+, in _wait")
    assert alive(pid)
    assert server.status("test")["refused"]["timed_out"] == 1


def test_a_coroutine_that_holds_up_its_loop_ends_the_worker(forkd: Forkd) -> None:
    server = forkd("waiting:nap", workers=1, worker='"event"', request_timeout=0.3).serving()
    with begin(server, b"block 60\n") as client:
        assert client.recv(100) == b""
    [record] = server.said("error worker crashed .*request_timeout.*")
    assert 'begins="block 60"' in record[0]
    assert any("in nap" in line for line in server.lines)


def test_a_coroutine_gives_several_replies(forkd: Forkd) -> None:
    server = forkd("waiting:count", workers=1, worker='"event"').serving()
    assert exchange(server.connect(), b"3\n0\n2\n") == b"0\n1\n2\n0\n1\n"


def test_a_stream_is_a_coroutine(forkd: Forkd) -> None:
    server = forkd("waiting:session", workers=1, worker='"event"').serving()
    with server.connect() as client:
        assert call(client, b"joe\n") == b"hello joe\n"
        assert call(client, b"005abcde") == b"abcde"
        assert call(client, b"wxyz") == b"wxyz"
        assert call(client, b"one\n") == b"ONE\n"
        assert call(client, b"bye\n") == b""
    with server.connect() as client:  # in one segment
        assert exchange(client, b"joe\n002abwxyzone\ntwo\n") == b"hello joe\nabwxyzONE\nTWO\n"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_lifespan_and_hooks_are_coroutines(forkd: Forkd, loop: str, tmp_path: Path) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    without = {} if loop == "uvloop" else {"path": f'"{tmp_path}"'}
    (tmp_path / "uvloop.py").write_text("raise ImportError('not here')\n")
    (tmp_path / "waiting.py").write_text((HANDLERS / "waiting.py").read_text())
    server = forkd("waiting:lives", workers=1, worker='"event"', **without).serving()
    expected = b"welcome\nalive %s 1\nas told\nalive %s 1\n" % (loop.encode(), loop.encode())
    assert exchange(server.connect(), b"a\nfail\nb\n") == expected
    assert server.stop() == 0
    assert not [line for line in server.lines if " error " in line]


def test_a_lifespan_that_fails_is_the_reason_of_the_start(forkd: Forkd) -> None:
    server = forkd("waiting:stillborn", workers=1, worker='"event"')
    assert server.exited() == 1
    assert any("no database" in line for line in server.lines)


@pytest.mark.parametrize(
    ("app", "keys", "why"),
    [
        ("waiting:nap", {}, 'nap is an async def: it runs with worker = "event", without threads'),
        ("waiting:nap", {"worker": '"event"', "threads": 2}, "nap is an async def"),
        ("small:session", {"worker": '"event"'}, "session has a connection to itself"),
    ],
)
def test_a_handler_that_does_not_suit_its_worker_is_refused(
    forkd: Forkd, app: str, keys: dict[str, object], why: str
) -> None:
    server = forkd(app, workers=1, **keys)
    assert server.exited() == 78
    assert any(why in line for line in server.lines), server.lines


def test_a_worker_told_by_hand_finishes_and_is_replaced(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=1, worker='"event"').serving()
    [pid] = server.workers()
    with server.connect() as client:
        assert call(client, b"a\n") == b"A\n"
        os.kill(pid, signal.SIGTERM)
        assert client.recv(100) == b""
    until(lambda: server.workers() not in ([], [pid]))
    assert exchange(server.connect(), b"b\n") == b"B\n"
