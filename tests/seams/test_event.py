"""The cases of the API as each kind of `event` worker runs them: plain, with threads, with coroutines."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import forkd
from forkd.ipc.meter import BlackBox, Meter
from forkd.ipc.scoreboard import BUCKETS, BUSY_SINCE, HISTOGRAM, REQUESTS
from forkd.serving.connection import Connection
from forkd.serving.conversation import Conversation
from forkd.serving.outcome import End, Outcome
from forkd.serving.visit import IN
from forkd.workers.tasks import Turner
from tests.cases import CASES, PATIENCE, Case, Serve, check, pair, read_all, service, tcp_pair
from tests.kinds import Hall, awaited, serve_by_event, serve_by_tasks

KINDS: dict[str, Serve] = {
    "event": serve_by_event,
    "threads": partial(serve_by_event, threads=2),
    "async": lambda sock, service: serve_by_tasks(sock, awaited(service)),
}
ACCOUNTED: dict[str, Serve] = {
    "event": partial(serve_by_event, access=True),
    "threads": partial(serve_by_event, threads=2, access=True),
    "async": lambda sock, service: serve_by_tasks(sock, awaited(service), access=True),
}


def can_serve(kind: str, case: Case) -> bool:
    """Streams wait for their client, and an `async def` uses other words to wait."""
    stream = case.service.framing is None
    return kind == "threads" or (not stream and (kind == "event" or not case.service.takes_connection))


CASES_OF_KINDS = [
    pytest.param(kind, case, id=f"{kind}: {case.name}") for kind in KINDS for case in CASES if can_serve(kind, case)
]
every_case = pytest.mark.parametrize(("kind", "case"), CASES_OF_KINDS)


@every_case
def test_whole(kind: str, case: Case) -> None:
    with pair() as (ours, theirs):
        check(case, KINDS[kind], ours, theirs, [case.sent])


@every_case
def test_over_tcp(kind: str, case: Case) -> None:
    with tcp_pair() as (ours, theirs):
        check(case, KINDS[kind], ours, theirs, [case.sent])


@every_case
def test_with_an_account_of_its_own(kind: str, case: Case) -> None:
    with pair() as (ours, theirs):
        check(case, ACCOUNTED[kind], ours, theirs, [case.sent])


@every_case
def test_byte_by_byte(kind: str, case: Case) -> None:
    with pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        check(case, KINDS[kind], ours, theirs, (bytes([byte]) for byte in case.sent))


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_ended_is_gone_without_a_collection(kind: str) -> None:
    service = CASES[0].service
    gc.collect()
    before = len(conversations())
    gc.disable()
    try:
        with pair() as (ours, theirs):
            ours.sendall(b"a\nb\n")
            ours.shutdown(socket.SHUT_WR)
            KINDS[kind](theirs, service)
        assert len(conversations()) == before
    finally:
        gc.enable()


def conversations() -> list[object]:
    return [each for each in gc.get_objects() if isinstance(each, Connection | Conversation)]


def test_a_hook_is_no_request_in_hand() -> None:
    in_handlers, in_hooks = list[int](), list[int]()

    def handler(request: bytes) -> bytes:
        in_handlers.append(hall.row[BUSY_SINCE])
        return request

    def hook(connection: forkd.Connection) -> None:
        in_hooks.append(hall.row[BUSY_SINCE])

    hall = Hall(service(handler, on_connect=hook, on_close=hook))
    with pair() as (one, one_theirs), pair() as (other, other_theirs), pair() as (last, last_theirs):
        hall.welcome(one_theirs)
        hall.welcome(other_theirs)
        visits = list(hall.loop.visits.values())
        one.sendall(b"a\n")
        other.sendall(b"b\n")
        for visit in visits:
            visit.ready(IN)
        hall.welcome(last_theirs)
        one.sendall(b"c\n")
        other.shutdown(socket.SHUT_WR)
        for visit in visits:
            visit.ready(IN)
        assert len(in_handlers) == 3
        assert all(in_handlers)
        assert in_hooks == [0] * 4, "four hooks: three connections have begun and one has ended"
        last.close()
        hall.loop.turn(PATIENCE)
        assert hall.row[REQUESTS] == sum(hall.row[HISTOGRAM : HISTOGRAM + BUCKETS]) == 3
        assert hall.row[BUSY_SINCE] == 0
    hall.close()


@pytest.mark.parametrize("kind", ["event", "threads"])
def test_a_handler_may_read_what_is_still_to_come(kind: str) -> None:
    def handler(request: bytes, connection: forkd.Connection) -> bytes:
        connection.send(b"go on\n")
        return connection.read_exactly(4)

    with pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        served = pool.submit(KINDS[kind], theirs, service(handler))
        for body in (b"body", b"more"):
            ours.sendall(b"one\n")
            assert ours.recv(100) == b"go on\n"
            ours.sendall(body[:2])
            ours.sendall(body[2:])
            assert ours.recv(100) == body + b"\n"
        ours.sendall(b"one\n")
        ours.shutdown(socket.SHUT_WR)
        assert read_all(ours) == b"go on\n"
        outcome, _ = served.result(PATIENCE)
        assert outcome.end is End.ERROR
        assert isinstance(outcome.error, EOFError)


def test_the_black_box_has_the_client_whose_replies_go_on() -> None:
    told: list[str] = []

    def many() -> Iterator[bytes]:
        for _ in range(100):
            told.append(BlackBox.of(hall.row).peer)
            yield bytes(100_000)

    hall = Hall(service(lambda request: many() if request == b"many" else request))
    with tcp_pair() as (slow, slow_theirs), tcp_pair() as (other, other_theirs), ThreadPoolExecutor(1) as pool:
        for sock in (slow_theirs, other_theirs):
            hall.welcome(sock)
            sock.close()
        slow.sendall(b"many\n")
        hall.loop.turn(PATIENCE)
        assert 0 < len(told) < 100, "the other replies must wait until the client reads"
        other.sendall(b"one\n")
        hall.loop.turn(PATIENCE)
        assert other.recv(100) == b"one\n"
        for sock in (slow, other):
            sock.shutdown(socket.SHUT_WR)
        read = pool.submit(read_all, slow)
        hall.run()
        assert len(read.result()) == 100 * 100_001
        assert set(told) == {"{}:{}".format(*slow.getsockname())}
    hall.close()


def test_what_is_set_after_somebody_has_looked_at_the_time_is_due_all_the_same() -> None:
    hall = Hall(CASES[0].service)
    loop = hall.loop
    loop.replan = loop.timeout  # type: ignore[assignment]  # as a loop around this one does

    def attend(fd: int) -> None:
        loop.due_by(loop.now + 20)
        loop.doors.resume_at = loop.now + 1

    loop.attend = attend  # type: ignore[method-assign]
    os.eventfd_write(hall.inbox.fd, 1)
    loop.turn(PATIENCE)
    wait = loop.timeout()
    assert wait is not None
    assert wait <= 1
    hall.close()


class Torn(Meter):
    def moved(self, received: int, sent: int) -> None:
        raise ValueError("somebody wrote over the row")


def test_what_a_thread_cannot_deal_with_ends_the_worker() -> None:
    hall = Hall(forkd.service(forkd.Lines())(bytes.upper), threads=2, meter=Torn)
    ours, theirs = socket.socketpair()
    with ours:
        hall.welcome(theirs)
        theirs.close()
        ours.sendall(b"one\n")
        with pytest.raises(ValueError, match="wrote over"):
            hall.run()
    hall.close()


def test_what_a_task_cannot_deal_with_ends_the_worker() -> None:
    async def serve() -> None:
        hall = Hall(awaited(forkd.service(forkd.Lines())(bytes.upper)), meter=Torn)
        hall.loop.close()
        turner = Turner(hall.context)
        hall.loop = turner.loop
        hall.welcome(theirs)
        theirs.close()
        try:
            await turner.run()
        finally:
            asyncio.get_running_loop().remove_reader(turner.loop.epoll.fileno())
            turner.close()
            hall.close()

    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"one\n")
        with pytest.raises(ValueError, match="wrote over"):
            asyncio.run(serve())


def test_a_worker_of_coroutines_serves_whom_it_lets_in_as_it_leaves() -> None:
    async def serve() -> list[Outcome]:
        hall = Hall(awaited(forkd.service(forkd.Lines())(bytes.upper)))
        hall.loop.close()
        turner = Turner(hall.context)
        hall.loop = turner.loop
        over = asyncio.ensure_future(turner.run())
        await asyncio.sleep(0)
        hall.loop.open = False  # as while the accept queues are emptied
        hall.welcome(theirs)
        theirs.close()
        await over
        turner.close()
        hall.close()
        return hall.report.outcomes

    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"one\n")
        ours.shutdown(socket.SHUT_WR)
        assert [outcome.end for outcome in asyncio.run(serve())] == [End.CLIENT]
        assert ours.recv(10) == b"ONE\n"


def test_what_a_coroutine_has_sent_leaves_while_it_waits_for_something_else() -> None:
    chunk, sent, taken = b"x" * 30_000, [0], threading.Event()

    @forkd.service(forkd.Lines())
    async def answer(request: bytes, connection: forkd.AsyncConnection) -> bytes:
        while not connection._plain.parked:
            await connection.send(chunk)
            sent[0] += len(chunk)
        begun.set()
        while not taken.is_set():
            await asyncio.sleep(0.001)
        return request

    def read() -> bytes:
        received = 0
        with ours:
            try:
                assert begun.wait(PATIENCE)
                ours.sendall(b"two\n")  # nothing waits for it yet
                while received < sent[0]:
                    received += len(ours.recv(65536))
            finally:
                taken.set()
            return ours.recv(4)

    begun = threading.Event()
    with pair() as (ours, theirs), ThreadPoolExecutor() as pool:
        ours.sendall(b"one\n")
        reply = pool.submit(read)
        serve_by_tasks(theirs, answer)
        assert reply.result(PATIENCE) == b"one\n"
