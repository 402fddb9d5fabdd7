"""Replies are counted and checked, however the stream is split."""

from __future__ import annotations

import random
from typing import Any

import pytest

from forkd.cli.load.plan import LoadPlan
from forkd.cli.load.replies import Judge
from forkd.errors import FramingError
from forkd.serving.counted_framings import Chunks, Fixed, LengthPrefixed, Netstrings
from forkd.serving.delimited_framings import Delimited


def told(plan: LoadPlan, pieces: list[bytes], first: int = 0) -> tuple[int, int]:
    """Returns how many replies a stream in these pieces contains, and how many of them are wrong."""
    judge = Judge(plan)
    count = judge.counter(first)
    return sum(count(piece) for piece in pieces), judge.wrong


def cuts(stream: bytes) -> list[list[bytes]]:
    """Returns a stream in one piece, in single bytes, and in random pieces."""
    pieces = [[stream], [stream[at : at + 1] for at in range(len(stream))]]
    for seed in range(20):
        source, rest, found = random.Random(seed), stream, []
        while rest:
            size = source.randint(1, 7)
            found.append(rest[:size])
            rest = rest[size:]
        pieces.append(found)
    return pieces


ANY: list[tuple[dict[str, Any], bytes, int]] = [
    ({}, b"one\n\nthree\r\nfour", 3),
    ({"framing": Delimited(b";")}, b"a;b;", 2),
    ({"framing": Delimited(b"ab")}, b"aabab a b ab", 3),
    ({"framing": Delimited(b"\r\n\r\n")}, b"x\r\n\r\ny\r\n\r\r\n\r\n", 2),
    ({"framing": Fixed(4)}, b"123412341", 2),
    ({"framing": LengthPrefixed(2)}, b"\0\1a\0\0\0\2bc\0", 3),
    ({"framing": Netstrings()}, b"1:a,0:,2:bc,3", 3),
]
JUDGED: list[tuple[dict[str, Any], bytes, int, int]] = [
    ({"expect": "echo"}, b"hello\n" * 3, 3, 0),
    ({"expect": "echo"}, b"hello\r\n" * 3, 3, 0),  # Lines also accepts telnet line endings
    ({"expect": "echo"}, b"hello\nhullo\nhello\n\n", 4, 2),
    ({"expect": "yes"}, b"yes\nno\n", 2, 1),
    ({"expect": ""}, b"\n\nx\n", 3, 1),
    ({"expect": "/^O.$/"}, b"OK\nOh\nERR\n", 3, 1),
    ({"expect": "echo", "bodies": (b"a", b"b", b"c")}, b"a\nb\nc\na\n", 4, 0),
    ({"expect": "echo", "bodies": (b"a", b"b", b"c")}, b"a\nc\nb\n", 3, 2),
    ({"expect": "echo", "framing": Netstrings()}, b"5:hello,5:help!,", 2, 1),
    ({"expect": "echo", "framing": Fixed(5)}, b"hellohelp!", 2, 1),
    ({"expect": "echo", "framing": Chunks()}, b"hellohellohelp!he", 3, 1),
    ({"expect": "echo", "framing": Chunks(), "bodies": (b"a", b"bcd")}, b"abcdab", 3, 0),
]


@pytest.mark.parametrize(("keys", "stream", "replies"), ANY)
def test_replies_are_counted_however_they_come(keys: dict[str, Any], stream: bytes, replies: int) -> None:
    for pieces in cuts(stream):
        assert told(LoadPlan(**keys), pieces) == (replies, 0), pieces


@pytest.mark.parametrize(("keys", "stream", "replies", "wrong"), JUDGED)
def test_replies_are_judged_however_they_come(keys: dict[str, Any], stream: bytes, replies: int, wrong: int) -> None:
    for pieces in cuts(stream):
        assert told(LoadPlan(**keys), pieces) == (replies, wrong), pieces


def test_a_connection_may_begin_anywhere_in_the_requests() -> None:
    plan = LoadPlan(expect="echo", bodies=(b"a", b"bb", b"c"))
    assert told(plan, [b"bb\n", b"c\n", b"a\n"], first=1) == (3, 0)
    chunks = LoadPlan(expect="echo", bodies=(b"a", b"bb", b"c"), framing=Chunks())
    assert told(chunks, [b"b", b"bca"], first=1) == (3, 0)


def test_chunks_of_unknown_size_are_as_many_as_arrive() -> None:
    assert told(LoadPlan(framing=Chunks()), [b"hel", b"lo"]) == (2, 0)
    assert told(LoadPlan(framing=Chunks(), expect="/l/"), [b"hel", b"o"]) == (2, 1)


def test_each_connection_has_its_own_counter() -> None:
    judge = Judge(LoadPlan(expect="echo"))
    one, other = judge.counter(), judge.counter()
    assert (one(b"hel"), other(b"hello\n"), one(b"lo\n"), other(b"x\n")) == (0, 1, 1, 1)
    assert judge.wrong == 1


def test_broken_framing_is_an_error() -> None:
    with pytest.raises(FramingError):
        told(LoadPlan(framing=Netstrings()), [b"hello"])
