"""Several clients of one `event` worker, whose requests arrive in the same turn of its loop."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from threading import Event, Thread
from time import monotonic
from typing import Any

import pytest

import forkd
from forkd.ipc.scoreboard import BYTES_IN, BYTES_OUT, ERRORS, REQUESTS, RESET
from forkd.serving.connection import Connection
from forkd.serving.conversation import UNCOUNTED
from forkd.serving.outcome import End
from forkd.serving.service import Service
from tests.cases import PATIENCE
from tests.kinds import Hall

SPEECH = b"x" * 600_000


@forkd.service(forkd.Lines())
def shout(request: bytes) -> bytes:
    return request.upper()


class Room:
    """A hall, and the clients that connect to it."""

    def __init__(self, service: Service[..., Any]) -> None:
        self.hall = Hall(service)
        self.visits: dict[socket.socket, int] = {}

    def enter(self, family: socket.AddressFamily = socket.AF_UNIX) -> socket.socket:
        """Returns a client that the worker serves and that has sent nothing yet."""
        if family == socket.AF_UNIX:
            client, accepted = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                client = socket.create_connection(listener.getsockname())
                accepted = listener.accept()[0]
        client.settimeout(PATIENCE)
        known = set(self.hall.loop.visits)
        self.hall.welcome(accepted)
        accepted.close()
        (self.visits[client],) = set(self.hall.loop.visits) - known
        return client

    def turn(self) -> None:
        self.hall.loop.turn(0)

    def told(self, *clients: socket.socket) -> None:
        """Runs a turn whose wait reports, in this order, that these clients have sent something, even if that is
        outdated."""
        loop = self.hall.loop
        assert loop.answering is not None
        events = [(self.visits[client], select.EPOLLIN) for client in clients]
        assert loop.answer(loop.answering, events) == []
        self.hall.context.meter.rests()

    def close(self) -> None:
        for client in self.visits:
            client.close()
        self.hall.close()


Rooms = Callable[[Service[..., Any]], Room]


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    made: list[Room] = []

    def make(service: Service[..., Any]) -> Room:
        made.append(Room(service))
        return made[-1]

    yield make
    for room in made:
        room.close()


def met(room: Room, count: int) -> list[socket.socket]:
    """Connects this many clients; client I has sent I and read the reply."""
    clients = [room.enter() for _ in range(count)]
    for client in clients:
        client.sendall(b"I\n")
        room.turn()
        assert client.recv(10) == b"I\n"
    return clients


Speaking = tuple[Room, list[socket.socket], list[Connection]]


@pytest.fixture
def speaking(rooms: Rooms) -> Speaking:
    """Returns two clients of a handler that sends SPEECH to the second on request, and the connections it answered."""
    answered: list[Connection] = []

    @forkd.service(forkd.Lines())
    def tell(request: bytes, connection: Connection) -> bytes:
        if request == b"tell":
            answered[1].send(SPEECH)
        answered.append(connection)
        return request

    room = rooms(tell)
    return room, met(room, 2), answered


def test_each_gets_its_own_reply(rooms: Rooms) -> None:
    room = rooms(shout)
    clients = [room.enter() for _ in range(50)]
    for asked in range(2):
        for number, client in enumerate(clients):
            client.sendall(b"from %d, %d\n" % (number, asked))
        room.turn()
        room.turn()  # they are more than one turn takes
        for number, client in enumerate(clients):
            assert client.recv(100) == b"FROM %d, %d\n" % (number, asked)
    assert room.hall.row[REQUESTS] == 100


def test_whatever_else_one_does_the_others_are_answered(rooms: Rooms) -> None:
    room = rooms(shout)
    clients = [room.enter() for _ in range(5)]
    sent = [b"one\n", b"one\ntwo\nthr", b"thr", b"x" * 70000, b""]
    for client, data in zip(clients, sent, strict=True):
        client.sendall(data)
        if not data:
            client.shutdown(socket.SHUT_WR)
    room.turn()
    clients[0].sendall(b"four\n")
    clients[1].sendall(b"ee\n")
    clients[2].sendall(b"ee\n")
    for _ in range(100):  # the long one is read in pieces
        room.turn()
    received = [client.recv(100) for client in clients]
    assert received == [b"ONE\nFOUR\n", b"ONE\nTWO\nTHREE\n", b"THREE\n", b"", b""]
    assert [outcome.end for outcome in room.hall.report.outcomes] == [End.CLIENT, End.OVER_LIMIT]


def test_one_whom_another_ones_handler_has_closed_is_not_answered(rooms: Rooms) -> None:
    known: list[Connection] = []

    @forkd.service(forkd.Lines())
    def kick(request: bytes, connection: Connection) -> bytes:
        if request == b"kick":
            known[1].close()
        else:
            known.append(connection)
        return request

    room = rooms(kick)
    clients = met(room, 3)
    clients[0].sendall(b"kick\n")
    clients[1].sendall(b"me\n")
    clients[2].sendall(b"too\n")
    room.told(*clients)
    assert [client.recv(10) for client in clients] == [b"kick\n", b"", b"too\n"]
    assert [outcome.end for outcome in room.hall.report.outcomes] == [End.CLOSED]
    assert len(known) == 4


@pytest.mark.parametrize("asks", [True, False])
def test_one_to_whom_another_ones_handler_speaks_reads_that_first(speaking: Speaking, asks: bool) -> None:
    room, clients, answered = speaking
    clients[0].sendall(b"tell\n")
    if asks:
        clients[1].sendall(b"and you\n")
        room.told(*clients)
    else:
        room.told(clients[0])
    assert clients[0].recv(10) == b"tell\n"
    assert len(answered) == 3  # the other client's request is not read before the client has read
    received = bytearray()
    expected = SPEECH + (b"and you\n" if asks else b"")
    while len(received) < len(expected):
        received += clients[1].recv(65536)
        room.turn()
    assert received == expected


class Fails(forkd.Lines):
    """Has a bug that one of its requests reveals."""

    def feed(self, data: bytes) -> list[bytes]:
        if data == b"bug\n":
            raise ZeroDivisionError("a bug")
        return list(super().feed(data))


class GivesText(forkd.Lines):
    """Has another bug: it returns that request as str although it declares bytes."""

    def feed(self, data: bytes) -> list[Any]:
        return ["bug"] if data == b"bug\n" else list(super().feed(data))


class SendsText(forkd.Lines):
    """Has another bug: it encodes that reply as str."""

    def encode(self, reply: bytes) -> Any:
        return "bug\n" if reply == b"bug" else super().encode(reply)


@pytest.mark.parametrize(
    ("framing", "error"), [(Fails(), ZeroDivisionError), (GivesText(), struct.error), (SendsText(), TypeError)]
)
def test_a_framing_that_fails_ends_its_own_connection_alone(
    rooms: Rooms, framing: forkd.Lines, error: type[Exception]
) -> None:
    @forkd.service(framing)
    def answer(request: bytes) -> bytes:
        return request

    room = rooms(answer)
    clients = [room.enter() for _ in range(3)]
    for client, data in zip(clients, (b"one\n", b"bug\n", b"three\n"), strict=True):
        client.sendall(data)
    room.turn()
    assert [client.recv(10) for client in clients] == [b"one\n", b"", b"three\n"]
    assert [type(outcome.error) for outcome in room.hall.report.outcomes] == [error]
    assert room.hall.row[ERRORS] == 1


def test_what_one_has_asked_is_answered_though_another_ones_handler_has_waited_for_it_to_read(
    speaking: Speaking,
) -> None:
    room, clients, _ = speaking
    clients[0].sendall(b"tell\n")
    clients[1].sendall(b"and you\n")
    room.told(*clients)
    received = bytearray()

    def read() -> None:
        while len(received) < 3 * len(SPEECH) + 8:
            received.extend(clients[1].recv(65536))

    reader = Thread(target=read)
    reader.start()
    for _ in range(2):  # after the second speech too much is parked, so the handler waits
        clients[0].sendall(b"tell\n")
        room.told(clients[0])
    until = monotonic() + PATIENCE
    while reader.is_alive():
        assert monotonic() < until
        room.turn()
    assert received == 3 * SPEECH + b"and you\n"


@pytest.mark.parametrize(
    ("asked", "body", "expected"),
    [(b"ask\n" * 10_000, b"", 310_000), (b"send\n", b"", 100_001), (b"read\n", b"x" * 100_000, 41)],
)
def test_bytes_are_counted_while_the_connection_goes_on(rooms: Rooms, asked: bytes, body: bytes, expected: int) -> None:
    begun = Event()

    @forkd.service(forkd.Lines())
    def answer(request: bytes, connection: Connection) -> bytes | None:
        if request == b"send":
            connection.send(b"x" * 100_000 + b"\n")
            return None
        if request == b"read":
            begun.set()
            connection.read_exactly(len(body))
        return request * 10

    room = rooms(answer)
    client = room.enter()

    def send() -> None:
        client.sendall(asked)
        if body:
            begun.wait(PATIENCE)
            client.sendall(body)

    sender = Thread(target=send)
    sender.start()
    received, until = 0, monotonic() + PATIENCE
    while received < expected:
        assert monotonic() < until
        room.turn()
        if select.select([client], [], [], 0)[0]:
            received += len(client.recv(1 << 20))
    sender.join()
    row = room.hall.row
    assert row[BYTES_IN] > len(asked + body) - UNCOUNTED
    assert row[BYTES_OUT] > expected - UNCOUNTED


def test_one_that_has_broken_off_holds_up_nobody(rooms: Rooms) -> None:
    room = rooms(shout)
    clients = [room.enter(socket.AF_INET) for _ in range(3)]
    clients[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    clients[0].sendall(b"one\n")
    clients[2].sendall(b"three\n")
    room.turn()
    clients[0].sendall(b"two\n")
    clients[2].sendall(b"four\n")
    clients[1].close()
    room.told(*clients)
    assert [client.recv(100) for client in (clients[0], clients[2])] == [b"ONE\nTWO\n", b"THREE\nFOUR\n"]
    assert [outcome.end for outcome in room.hall.report.outcomes] == [End.RESET]
    assert room.hall.row[RESET] == 1


def test_one_that_has_gone_before_its_reply_holds_up_nobody(rooms: Rooms) -> None:
    room = rooms(shout)
    clients = [room.enter() for _ in range(2)]
    clients[0].sendall(b"one\n")
    clients[0].close()
    clients[1].sendall(b"two\n")
    room.told(*clients)
    assert clients[1].recv(10) == b"TWO\n"
    assert [outcome.end for outcome in room.hall.report.outcomes] == [End.RESET]


def test_one_that_has_sent_nothing_after_all_is_waited_for(rooms: Rooms) -> None:
    room = rooms(shout)
    client = room.enter()
    room.told(client)
    assert room.hall.report.outcomes == []
    client.sendall(b"one\n")
    room.turn()
    assert client.recv(10) == b"ONE\n"


def test_one_that_does_not_read_is_not_asked_again_until_it_does(rooms: Rooms) -> None:
    asked = []

    @forkd.service(forkd.Lines())
    def answer(request: bytes) -> bytes:
        asked.append(request)
        return request * 100

    room = rooms(answer)
    client, other = room.enter(), room.enter()
    number = 0
    while len(asked) == number:  # until a reply no longer fits
        client.sendall(b"%09d\n" % number)
        number += 1
        room.turn()
    other.sendall(b"hello\n")
    room.turn()
    assert other.recv(1000) == b"hello" * 100 + b"\n"
    expected = b"".join(b"%09d" % each * 100 + b"\n" for each in range(number))
    received = bytearray()
    while len(received) < len(expected):
        received += client.recv(65536)
        room.turn()
    assert received == expected


def several(request: bytes) -> bytes | list[bytes] | None:
    match request[:1]:
        case b"n":
            return None
        case b"s":
            return [request, b"", request]
        case b"b":
            return request * 50_000
        case b"e":
            raise LookupError(request)
        case b"c":
            raise forkd.Close(b"bye")
    return request.upper()


def said(requests: list[bytes], *, excused: bool) -> bytes:
    """Returns what a client must read after it has sent all of these requests."""
    replies: list[bytes] = []
    for request in requests:
        try:
            reply = several(request)
        except forkd.Close as close:
            replies.append(close.reply)  # type: ignore[arg-type]  # as it is above
            break
        except LookupError:
            if not excused:
                break
            reply = b"sorry"
        replies += [reply] if isinstance(reply, bytes) else reply or []
    return b"".join(reply + b"\n" for reply in replies)


KINDS_OF_REQUEST = [b"xyz", b"none", b"several", b"big", b"error", b"close"]


def drawn(random: Random) -> list[list[bytes]]:
    """Returns what a client sends, turn by turn: usually one ordinary request, sometimes something else."""
    kinds = random.choice([KINDS_OF_REQUEST, KINDS_OF_REQUEST[:4]])
    return [
        [b"xyz"] if random.random() < 0.6 else random.choices(kinds, k=random.randrange(4))
        for _ in range(random.randrange(8))
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("excused", [True, False])
@pytest.mark.parametrize("takes", [True, False])
def test_whatever_clients_ask_in_the_same_turns_each_reads_its_own_replies(
    rooms: Rooms, seed: int, excused: bool, takes: bool
) -> None:
    random = Random(seed)
    scripts = [drawn(random) for _ in range(random.randrange(1, 50))]
    made = forkd.service(forkd.Lines())((lambda request, connection: several(request)) if takes else several)
    if excused:
        made.on_error(lambda error, connection: b"sorry")
    room = rooms(made)
    clients = [room.enter() for _ in scripts]
    received = [bytearray() for _ in clients]
    rests = [b"" for _ in clients]
    for number in range(8):
        for place, (client, script) in enumerate(zip(clients, scripts, strict=True)):
            data = rests[place] + b"".join(
                request + b"\n" for asked in script[number : number + 1] for request in asked
            )
            cut = len(data) if random.random() < 0.8 else random.randint(0, len(data))
            rests[place] = data[cut:]
            if data[:cut]:
                with suppress(BrokenPipeError):  # this client's connection has ended
                    client.sendall(data[:cut])
        room.turn()
    for client, rest in zip(clients, rests, strict=True):
        with suppress(BrokenPipeError):
            client.sendall(rest)
            client.shutdown(socket.SHUT_WR)
    until = monotonic() + PATIENCE
    waiting = dict(enumerate(clients))
    for client in clients:
        client.setblocking(False)
    while waiting:
        assert monotonic() < until
        room.turn()
        for place, client in list(waiting.items()):
            with suppress(BlockingIOError):
                data = client.recv(1 << 20)
                received[place] += data
                if not data:
                    del waiting[place]
    expected = [said([each for asked in script for each in asked], excused=excused) for script in scripts]
    assert [bytes(each) for each in received] == expected
