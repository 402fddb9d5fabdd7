"""The port mapper's protocol: calls to the byte, replies however they are split, and the order of calls."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from forkd.errors import UnreachableError
from forkd.sockets.rpcbind.protocol import (
    LIMIT,
    Mapping,
    Procedure,
    RpcRecord,
    Script,
    answer,
    call,
    register,
    withdraw,
)

OURS = Mapping(0x20049001, 1, 40000)
LAST = 0x80000000


def words(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def fragment(data: bytes, *, last: bool = True) -> bytes:
    return words(len(data) | (LAST if last else 0)) + data


def reply(result: int, number: int = 7) -> bytes:
    """Returns an accepted call's result as in RFC 5531, 9: reply, accepted, no verifier, success."""
    return words(number, 1, 0, 0, 0, 0, result)


def test_a_call_is_as_the_rfcs_have_it() -> None:
    head = bytes.fromhex("80000038 00000007 00000000 00000002 000186a0 00000002 00000003")
    nobody = bytes(16)
    assert call(7, Procedure.GETPORT, Mapping(0x20049001, 1)) == head + nobody + bytes.fromhex(
        "20049001 00000001 00000006 00000000"
    )
    assert call(7, Procedure.SET, OURS)[-4:] == words(40000)


@pytest.mark.parametrize("pieces", [[28], [4, 24], [0, 1, 27], [4] * 7])
def test_a_record_is_the_same_however_the_stream_is_split(pieces: list[int]) -> None:
    """The sender chooses the fragments, and the network decides where the stream is split."""
    whole, at, stream = reply(111), 0, b""
    for size in pieces:
        at += size
        stream += fragment(whole[at - size : at], last=at == len(whole))
    for cut in range(len(stream) + 1):
        record = RpcRecord()
        found = [each for each in (record.feed(stream[:cut]), record.feed(stream[cut:])) if each is not None]
        assert found[:1] == [whole]
    record = RpcRecord()
    assert [record.feed(stream[at : at + 1]) for at in range(len(stream))] == [None] * (len(stream) - 1) + [whole]


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (words(LAST | 0x7FFFFFFF), "longer than"),
        (words(LIMIT + 1), "longer than"),
        (bytes(LIMIT + 4), "longer than"),  # an endless run of empty fragments
        (fragment(bytes(LIMIT // 2), last=False) * 3, "longer than"),
        (fragment(reply(1)) + b"!", "more than one reply"),
    ],
)
def test_a_record_is_bounded(stream: bytes, why: str) -> None:
    with pytest.raises(UnreachableError, match=why):
        RpcRecord().feed(stream)


def test_a_record_without_an_end_is_bounded() -> None:
    record = RpcRecord()
    for _ in range(LIMIT // 4):
        assert record.feed(bytes(4)) is None
    with pytest.raises(UnreachableError, match="longer than"):
        record.feed(bytes(4))


def test_an_answer_is_read() -> None:
    assert answer(reply(40000), 7, Procedure.GETPORT) == 40000
    assert answer(reply(0), 7, Procedure.GETPORT) == 0
    assert answer(reply(1), 7, Procedure.SET) == 1
    with_verifier = words(7, 1, 0, 2, 5) + b"proof\0\0\0" + words(0, 9)
    assert answer(with_verifier, 7, Procedure.GETPORT) == 9


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "not a reply"),
        (b"HTTP/1.1 400 Bad Request", "not a reply"),
        (reply(1)[:-1], "not a reply"),
        (reply(1, number=8), "not a reply"),
        (words(7, 0, 0, 0, 0, 0, 1), "not a reply"),  # a call instead of a reply
        (words(7, 1, 1, 0, 2, 2), "another version of RPC"),
        (words(7, 1, 1, 1, 5), "other credentials"),
        (words(7, 1, 1, 9), "rejects"),
        (words(7, 1, 0, 0, 0, 1), "not a port mapper"),
        (words(7, 1, 0, 0, 0, 2, 3, 4), "does not speak version 2"),
        (words(7, 1, 0, 0, 0, 77), "refuses"),
        (words(7, 1, 0, 0, 0, 0), "makes no sense"),
        (words(7, 1, 0, 0), "makes no sense"),
        (words(7, 1, 0, 0, 0xFFFFFFFF, 0, 1), "makes no sense"),
        (reply(1) + words(1), "makes no sense"),
        (reply(65536), "makes no sense"),
    ],
)
def test_a_lie_is_no_answer(message: bytes, why: str) -> None:
    with pytest.raises(UnreachableError, match=why):
        answer(message, 7, Procedure.GETPORT)


def test_yes_and_no_are_one_and_zero() -> None:
    with pytest.raises(UnreachableError, match="makes no sense"):
        answer(reply(2), 7, Procedure.SET)


def play(script: Script, *answers: int) -> tuple[list[tuple[str, int]], str]:
    """Returns the calls that the script makes given these answers, by name and port, and the failure it reports."""
    asked, left = [], list(answers)
    try:
        procedure, mapping = next(script)
        while True:
            assert mapping[:2] == OURS[:2]
            asked.append((procedure.name, mapping.port))
            procedure, mapping = script.send(left.pop(0))
    except StopIteration as end:
        assert not left
        return asked, end.value


NEVER: Callable[[int], bool] = {}.__getitem__
SET, GETPORT, UNSET = ("SET", 40000), ("GETPORT", 40000), ("UNSET", 40000)


def test_a_free_program_is_registered_at_once() -> None:
    assert play(register(OURS, NEVER), 1) == ([SET], "")


def test_what_is_registered_already_is_ours() -> None:
    assert play(register(OURS, NEVER), 0, 40000) == ([SET, GETPORT], "")


def test_a_dead_predecessors_registration_is_replaced() -> None:
    stale = {39999: True}.__getitem__
    assert play(register(OURS, stale), 0, 39999, 1, 1) == ([SET, GETPORT, UNSET, SET], "")
    assert play(register(OURS, NEVER), 0, 0, 1) == ([SET, GETPORT, SET], "")  # rpcbind knew that it was dead


def test_a_living_strangers_registration_stays() -> None:
    asked, wrong = play(register(OURS, {39999: False}.__getitem__), 0, 39999)
    assert asked == [SET, GETPORT]
    assert "another server is registered, on port 39999" in wrong


def test_what_cannot_be_removed_is_told_and_tried_no_further() -> None:
    asked, wrong = play(register(OURS, {39999: True}.__getitem__), 0, 39999, 1, 0, 39999, 1)
    assert asked == [SET, GETPORT, UNSET] * 2
    assert "only its owner or root" in wrong
    assert "refuses" in play(register(OURS, NEVER), 0, 0, 0, 0)[1]


def test_only_what_is_ours_is_withdrawn() -> None:
    assert play(withdraw(OURS), 40000, 1) == ([GETPORT, UNSET], "")
    assert play(withdraw(OURS), 39999) == ([GETPORT], "")
    assert play(withdraw(OURS), 0) == ([GETPORT], "")


def test_a_mapping_is_told_as_people_write_it() -> None:
    assert str(OURS) == "0x20049001 version 1"
