"""The master's side of a port mapper, which obeys, refuses, hangs, breaks off, comes back and lies."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic

import pytest

from forkd.kernel.poller import Poller
from forkd.sockets.rpcbind import registry
from forkd.sockets.rpcbind.protocol import Mapping
from forkd.sockets.rpcbind.registry import Registry
from forkd.sockets.rpcbind.talk import Way
from tests.mapper import Mapper

LIMIT = 10.0
PROGRAM = 0x20049001
KEY = (PROGRAM, 1)
Obey = Callable[..., int | bytes | None]


class Room:
    """A registry in its own wait, as in the master, and a port mapper. `said` returns its log."""

    def __init__(self, folder: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
        self._stack = stack
        self._caplog = caplog
        caplog.set_level("INFO", "forkd")
        self.mapper = stack.enter_context(closing(Mapper(folder / "rpcbind.sock")))
        self.wait = Poller()
        self.registry = Registry(self.wait, [self.mapper.way])

    def to(self, *ways: Way) -> Registry:
        """Makes another registry, which knows these ways."""
        self.registry = Registry(self.wait, ways)
        return self.registry

    def said(self) -> str:
        return self._caplog.text

    def turn(self, until: Callable[[], object]) -> None:
        """Waits as the master does until a condition holds. Due work runs at once."""
        end = monotonic() + LIMIT
        while not until():
            assert monotonic() < end, (self.said(), self.mapper.asked)
            self.wait.once(0.005)

    def settle(self) -> None:
        """Waits until nothing is in progress."""
        self.turn(lambda: self.registry.talk is None)

    def look(self) -> None:
        """Makes the registry's next look happen now."""
        self.registry.look(self.registry.due)
        self.settle()

    def port(self) -> int:
        """Returns a port with a listener that lasts as long as the test."""
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        return int(listener.getsockname()[1])


@pytest.fixture
def room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Room]:
    with ExitStack() as stack:
        yield Room(tmp_path, stack, caplog)


def dead_port() -> int:
    """Returns a port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_services_are_told_of_and_withdrawn(room: Room) -> None:
    one, two = Mapping(PROGRAM, 1, room.port()), Mapping(PROGRAM, 2, room.port())
    room.registry.want({"one": one, "two": two})
    room.settle()
    assert room.mapper.table == {(PROGRAM, 1): one.port, (PROGRAM, 2): two.port}
    assert room.said().count("registered with port") == 2
    room.registry.want({"two": two})
    room.settle()
    assert room.mapper.table == {(PROGRAM, 2): two.port}
    room.registry.want({})
    room.settle()
    assert room.mapper.table == {}
    assert room.registry.due == float("inf")


def test_a_look_says_nothing_new_where_nothing_is_new(room: Room) -> None:
    room.registry.want({"one": Mapping(*KEY, room.port())})
    room.settle()
    before = room.said()
    assert monotonic() < room.registry.due <= monotonic() + registry.LOOK
    for _ in range(3):
        room.look()
    assert room.said() == before
    assert [each[0] for each in room.mapper.asked] == ["SET"] * 4


def test_a_program_that_moves_is_at_its_new_port(room: Room) -> None:
    old, new = room.port(), room.port()
    room.registry.want({"one": Mapping(*KEY, old)})
    room.settle()
    room.registry.want({"other": Mapping(*KEY, new)})
    room.settle()
    assert room.mapper.table == {KEY: new}
    room.registry.want({"other": Mapping(PROGRAM, 2, new)})
    room.settle()
    assert room.mapper.table == {(PROGRAM, 2): new}
    assert room.said().count("registered with port") == 3


def test_a_port_mapper_that_has_forgotten_is_told_again(room: Room) -> None:
    port = room.port()
    room.registry.want({"one": Mapping(*KEY, port)})
    room.settle()
    room.mapper.table.clear()
    room.look()
    assert room.mapper.table == {KEY: port}


def test_a_port_mapper_that_is_not_there_is_told_of_once_and_used_when_it_comes(room: Room) -> None:
    port = room.port()
    room.mapper.close()
    room.registry.want({"one": Mapping(*KEY, port)})
    for _ in range(3):
        room.look()
    assert room.said().count("the port mapper cannot be used: Connection refused") == 1
    room.mapper.restart()
    room.look()
    assert room.mapper.table == {KEY: port}
    assert room.said().count("registered with port") == 1
    room.mapper.restart()
    room.mapper.close()
    room.look()
    assert room.said().count("the port mapper cannot be used: Connection refused") == 2
    room.mapper.restart()
    room.look()
    assert room.said().count("registered with port") == 2


def test_a_dead_predecessors_registration_is_replaced(room: Room) -> None:
    room.mapper.table[KEY] = dead_port()
    port = room.port()
    room.registry.want({"one": Mapping(*KEY, port)})
    room.settle()
    assert room.mapper.table == {KEY: port}


def test_a_predecessors_port_that_another_service_of_ours_has_is_no_strangers(room: Room) -> None:
    one, other = room.port(), room.port()
    room.mapper.table[KEY] = other
    room.registry.want({"one": Mapping(*KEY, one), "other": Mapping(PROGRAM, 2, other)})
    room.settle()
    assert room.mapper.table == {KEY: one, (PROGRAM, 2): other}


def test_a_living_strangers_registration_is_told_and_stays(room: Room) -> None:
    stranger = room.port()
    room.mapper.table[KEY] = stranger
    room.registry.want({"one": Mapping(*KEY, room.port())})
    room.settle()
    room.look()
    assert room.said().count(f"another server is registered, on port {stranger}") == 1
    room.registry.close()
    assert room.mapper.table == {KEY: stranger}


def test_a_port_mapper_that_hangs_is_given_up_and_tried_again(room: Room) -> None:
    port = room.port()
    room.mapper.hangs = True
    began = monotonic()
    room.registry.want({"one": Mapping(*KEY, port)})
    room.turn(lambda: room.mapper.asked)
    assert began < room.registry.due <= monotonic() + registry.PATIENCE
    room.registry.look(room.registry.due)
    assert "no answer within 2 s" in room.said()
    assert room.registry.due > began + registry.PATIENCE
    room.mapper.hangs = False
    room.look()
    assert room.mapper.table == {KEY: port}


def test_a_new_wish_does_not_wait_for_one_that_hangs(room: Room) -> None:
    old, new = room.port(), room.port()
    room.registry.want({"one": Mapping(*KEY, old)})
    room.settle()
    room.mapper.hangs = True
    room.registry.look(room.registry.due)
    room.turn(lambda: len(room.mapper.asked) > 1)
    room.mapper.hangs = False
    room.registry.want({"one": Mapping(*KEY, new)})
    room.settle()
    assert room.mapper.table == {KEY: new}


def test_a_queue_that_is_full_is_a_port_mapper_that_is_not_there(room: Room, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(tmp_path / "full"))
        full.listen(0)
        first.connect(str(tmp_path / "full"))
        room.to((socket.AF_UNIX, str(tmp_path / "full")), room.mapper.way).want({"one": Mapping(*KEY, room.port())})
        assert "the port mapper cannot be used: Resource temporarily unavailable" in room.said()


def test_the_first_way_where_somebody_listens_is_taken(room: Room, tmp_path: Path) -> None:
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(tmp_path / "left_over"))
    left_over.close()
    port = room.port()
    with closing(Mapper("127.0.0.1")) as tcp:
        ways = [(socket.AF_UNIX, str(tmp_path / name)) for name in ("absent", "left_over")]
        room.to(*ways, tcp.way).want({"one": Mapping(*KEY, port)})
        room.settle()
        assert tcp.table == {KEY: port}
        room.registry.close()
        assert tcp.table == {}


def test_a_closed_tcp_port_is_a_port_mapper_that_is_not_there(room: Room) -> None:
    room.to((socket.AF_INET, ("127.0.0.1", dead_port()))).want({"one": Mapping(*KEY, room.port())})
    room.settle()
    assert "the port mapper cannot be used: Connection refused" in room.said()


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (lambda *_: None, "it closed the connection"),
        (lambda *_: b"HTTP/1.1 400 Bad Request\r\n\r\n", "longer than"),
        (lambda *_: struct.pack(">8I", 0x8000001C, 1, 1, 0, 0, 0, 0, 1), "not a reply to the call"),
        (lambda *_: 2, "makes no sense"),
        (lambda procedure, *_: 70000 if procedure.name == "GETPORT" else 0, "makes no sense"),
        (lambda *_: bytes(100000), "longer than"),
    ],
)
def test_a_port_mapper_that_lies_costs_nothing(room: Room, lie: Obey, why: str) -> None:
    port = room.port()
    room.mapper.obey = lie
    room.registry.want({"one": Mapping(*KEY, port)})
    room.settle()
    assert why in room.said()
    assert monotonic() < room.registry.due < float("inf")
    room.mapper.obey = room.mapper.answer
    room.look()
    assert room.mapper.table == {KEY: port}


def test_one_that_refuses_everything_is_asked_a_few_times_and_told(room: Room) -> None:
    room.mapper.obey = lambda *_: 0
    room.registry.want({"one": Mapping(*KEY, room.port())})
    room.settle()
    assert len(room.mapper.asked) == 4
    assert "the port mapper refuses it" in room.said()


def test_the_end_withdraws_and_waits_for_that(room: Room) -> None:
    port = room.port()
    room.registry.want({"one": Mapping(*KEY, port)})
    room.settle()
    room.registry.close()
    assert room.mapper.table == {}


def test_the_end_finishes_what_a_stop_has_begun(room: Room) -> None:
    room.registry.want({"one": Mapping(*KEY, room.port())})
    room.settle()
    room.registry.want({})
    room.registry.close()
    assert room.mapper.table == {}


def test_the_end_does_not_wait_for_one_that_hangs(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LAST_WORD", 0.05)
    room.registry.want({"one": Mapping(*KEY, room.port())})
    room.settle()
    room.mapper.hangs = True
    began = monotonic()
    room.registry.close()
    assert 0.05 <= monotonic() - began < LIMIT / 2
    room.wait.once(0)  # the wait holds nothing of it any more
    assert "0x20049001 version 1 could not be withdrawn" in room.said()


def test_the_end_has_nothing_to_tell_where_there_never_was_a_port_mapper(room: Room) -> None:
    room.mapper.close()
    room.registry.want({"one": Mapping(*KEY, room.port())})
    before = room.said()
    room.registry.want({})
    room.registry.close()
    assert room.said() == before


def test_without_services_nobody_is_asked(room: Room) -> None:
    room.registry.want({})
    room.registry.close()
    assert room.mapper.asked == []
    assert room.registry.due == float("inf")
