"""Framings find the same requests and the same error, no matter how the bytes were split on the way."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkd.errors import FramingError, OverLimit, Truncated
from forkd.serving.counted_framings import BLOCK_LIMIT, Chunks, Fixed, LengthPrefixed, Netstrings
from forkd.serving.delimited_framings import Delimited, Lines
from forkd.serving.framing import Framing, is_quick

Outcome = tuple[list[bytes], str]

END = "end"
OVER = "OverLimit"
CUT = "Truncated"
BAD = "FramingError"

# Each case: a framing, a stream, the requests in it, and how it ends.
STREAMS = [
    (Lines(), b"", [], END),
    (Lines(), b"\n", [b""], END),
    (Lines(), b"one\ntwo\r\n\n\r\nthree\n", [b"one", b"two", b"", b"", b"three"], END),
    (Lines(), b"a\r\r\n\rb\n", [b"a\r", b"\rb"], END),
    (Lines(), b"one\ntw", [b"one"], CUT),
    (Lines(), b"one\r", [], CUT),
    (Lines(4), b"abc\nabcd\nabc\r\nabcd\r\n", [b"abc", b"abcd", b"abc", b"abcd"], END),
    (Lines(4), b"abcd\r", [], CUT),
    (Lines(4), b"abcd\nabcde\nabc\n", [b"abcd"], OVER),
    (Lines(4), b"abcd\nabcde\r\nabc\n", [b"abcd"], OVER),
    (Lines(4), b"abcd\nabcde", [b"abcd"], OVER),
    (Lines(4), b"abcd\nabcd\r\r\n", [b"abcd"], OVER),
    (Lines(4), b"abcd\nabcd\rx\n", [b"abcd"], OVER),
    (Lines(1), b"\r\r\n\r", [b"\r"], CUT),
    (Lines(4, end=b"\r\n"), b"a\nb\r\nabcd\r\n\r\r\n\r\n", [b"a\nb", b"abcd", b"\r", b""], END),
    (Lines(4, end=b"\r\n"), b"abcd\r\nabcde\r\n", [b"abcd"], OVER),
    (Lines(4, end=b";"), b"ab\r;cd;;", [b"ab\r", b"cd", b""], END),
    (Delimited(b"\0"), b"one\0\0two\r\0", [b"one", b"", b"two\r"], END),
    (Delimited(b"\n"), b"a\r\n", [b"a\r"], END),
    (Delimited(b"\0", 3), b"ab\0abc\0abcd\0a\0", [b"ab", b"abc"], OVER),
    (Delimited(b"\0", 3), b"abc\0abcd", [b"abc"], OVER),
    (Delimited(b"aab", 3), b"aaab" + b"aabaab" + b"baaaab" + b"abaab", [b"a", b"", b"", b"baa", b"ab"], END),
    (Delimited(b"aab", 3), b"xxxaabxxaaab", [b"xxx", b"xxa"], END),
    (Delimited(b"aab", 3), b"xxxaabxxxaaab", [b"xxx"], OVER),
    (Delimited(b"aab", 3), b"xxxaa", [], CUT),
    (Delimited(b"aab", 3), b"xxxaaa", [], OVER),
    (Delimited(b"\r\n\r\n", 5), b"\r\n\r\na\r\nb\r\n\r\n\r\r\n\r\n", [b"", b"a\r\nb", b"\r"], END),
    (Delimited(b"\r\n\r\n", 5), b"abcde\r\n\r", [], CUT),
    (Delimited(b"\r\n\r\n", 5), b"abcde\r\n\r\nabcd\r\n\r\r\n\r\n", [b"abcde"], OVER),
    (LengthPrefixed(1), b"\x03one\x00\x02tw", [b"one", b"", b"tw"], END),
    (LengthPrefixed(1, limit=3), b"\x02ab\x03abc\x04abcd\x01a", [b"ab", b"abc"], OVER),
    (LengthPrefixed(2), b"\x00\x03one\x00\x00", [b"one", b""], END),
    (LengthPrefixed(2, "little"), b"\x03\x00one\x00\x00", [b"one", b""], END),
    (LengthPrefixed(4), b"\x00\x00\x00\x03one\x00\x00\x00", [b"one"], CUT),
    (LengthPrefixed(4), b"\x00\x00\x00\x03one\x00\x00\x00\x03on", [b"one"], CUT),
    (LengthPrefixed(4), b"\xff\xff\xff\xff", [], OVER),
    (LengthPrefixed(8), b"\x00\x00\x00\x00\x00\x00\x00\x03one", [b"one"], END),
    (
        LengthPrefixed(8, "little"),
        b"\x03\x00\x00\x00\x00\x00\x00\x00one\x00\x00\x00\x00\x00\x00\x00\x80",
        [b"one"],
        OVER,
    ),
    (Netstrings(), b"5:hello,0:,12:hello, world,", [b"hello", b"", b"hello, world"], END),
    (Netstrings(), b"3:one,3:tw", [b"one"], CUT),
    (Netstrings(), b"3:one,3:two", [b"one"], CUT),
    (Netstrings(), b"3:one,1", [b"one"], CUT),
    (Netstrings(), b"3:one,0", [b"one"], CUT),
    (Netstrings(), b"3:one,3:two;3:six,", [b"one"], BAD),
    (Netstrings(), b"3:one,03:two,", [b"one"], BAD),
    (Netstrings(), b"3:one,00:,", [b"one"], BAD),
    (Netstrings(), b"3:one,:,", [b"one"], BAD),
    (Netstrings(), b"3:one,-1:,", [b"one"], BAD),
    (Netstrings(), b"3:one, 1:a,", [b"one"], BAD),
    (Netstrings(), b"3:one,1 :a,", [b"one"], BAD),
    (Netstrings(), b"3:one,1a", [b"one"], BAD),
    (Netstrings(), b"\xb23:one,", [], BAD),
    (Netstrings(10), b"9:123456789,10:1234567890,11:12345678901,", [b"123456789", b"1234567890"], OVER),
    (Netstrings(10), b"1:a,11x", [b"a"], OVER),
    (Netstrings(10), b"1:a,100", [b"a"], OVER),
    (Netstrings(10), b"1:a,999999999999", [b"a"], OVER),
    (Netstrings(10), b"1:a,0000", [b"a"], BAD),
    (Fixed(3), b"onetwosix", [b"one", b"two", b"six"], END),
    (Fixed(3), b"onetw", [b"one"], CUT),
    (Fixed(1), b"abc", [b"a", b"b", b"c"], END),
]
NAMES = [f"{framing!r} {stream!r}"[:90] for framing, stream, _, _ in STREAMS]

# Bytes that often have a meaning in the framing, so that short streams reach every branch.
ALPHABETS = [
    (Lines(2), b"ax\r\n"),
    (Lines(2, end=b"\r\n"), b"a\r\n"),
    (Delimited(b"\0", 2), b"a\0"),
    (Delimited(b"aab", 2), b"ab"),
    (Delimited(b"abab", 3), b"ab"),
    (Delimited(b"\r\n\r\n", 2), b"a\r\n"),
    (LengthPrefixed(1, limit=3), b"\0\1\2\3\4"),
    (LengthPrefixed(2, limit=257), b"\0\0\0\1\2"),
    (LengthPrefixed(2, "little", limit=2), b"\0\0\1\2\3"),
    (Netstrings(3), b"0123:,,a"),
    (Netstrings(12), b"012:,,a"),
    (Fixed(3), b"ab"),
]
ALPHABET_NAMES = [repr(framing) for framing, _ in ALPHABETS]

quickly = settings(max_examples=25, deadline=None, database=None)


def outcome(framing: Framing[bytes], pieces: Iterable[bytes]) -> Outcome:
    """Feeds these pieces of a stream, and its end, to a fresh copy of `framing`. Returns the result."""
    framing = framing.copy()
    requests: list[bytes] = []
    try:
        for piece in pieces:
            requests += framing.feed(piece)
        requests += framing.end()
    except FramingError as error:
        return [*requests, *error.requests], f"{type(error).__name__}: {error}"
    return requests, END


def one_by_one(stream: bytes) -> Iterator[bytes]:
    return (stream[at : at + 1] for at in range(len(stream)))


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


def in_pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


@pytest.mark.parametrize(("framing", "stream", "requests", "end"), STREAMS, ids=NAMES)
def test_a_stream_means_the_same_however_it_is_cut_in_three(
    framing: Framing[bytes], stream: bytes, requests: list[bytes], end: str
) -> None:
    whole = outcome(framing, [stream])
    assert (whole[0], whole[1].partition(":")[0]) == (requests, end)
    assert outcome(framing, one_by_one(stream)) == whole
    for place in range(len(stream) + 1):
        assert outcome(framing, cut(stream, [place])) == whole, place
    for places in combinations(range(1, len(stream)), 2):
        assert outcome(framing, cut(stream, places)) == whole, places


@pytest.mark.parametrize(("framing", "alphabet"), ALPHABETS, ids=ALPHABET_NAMES)
@given(data=st.data())
@quickly
def test_any_bytes_mean_the_same_however_they_are_cut(
    framing: Framing[bytes], alphabet: bytes, data: st.DataObject
) -> None:
    stream = bytes(data.draw(st.lists(st.sampled_from(alphabet), max_size=30)))
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    whole = outcome(framing, [stream])
    assert outcome(framing, cut(stream, places)) == whole
    assert outcome(framing, one_by_one(stream)) == whole


@pytest.mark.parametrize(
    ("framing", "mark"),
    [
        (Lines(), b"\n"),
        (Lines(end=b"\r\n"), b"\r\n"),
        (Delimited(b"\0"), b"\0"),
        (Delimited(b"aab"), b"aab"),
        (LengthPrefixed(1), b""),
        (LengthPrefixed(2, "little"), b""),
        (LengthPrefixed(4), b""),
        (LengthPrefixed(8), b""),
        (Netstrings(), b""),
    ],
    ids=repr,
)
@given(data=st.data())
@quickly
def test_what_one_side_encodes_the_other_feeds(framing: Framing[bytes], mark: bytes, data: st.DataObject) -> None:
    awkward = st.lists(st.sampled_from(b"ab\r\n\0"), max_size=12).map(bytes)
    drawn = data.draw(st.lists(st.binary(max_size=12) | awkward, max_size=5))
    # A line can neither contain its terminator nor begin it.
    requests = [request for request in drawn if (request + mark).find(mark) == len(request) or not mark]
    if mark == b"\n":
        requests = [request.rstrip(b"\r") for request in requests]
    stream = b"".join(map(framing.encode, requests))
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=4))
    assert outcome(framing, cut(stream, places)) == (requests, END)


@pytest.mark.parametrize("length", [99, 100, 101])
@pytest.mark.parametrize(
    "framing",
    [
        Lines(100),
        Lines(100, end=b"\r\n"),
        Delimited(b"\0", 100),
        Delimited(b"xxy", 100),
        LengthPrefixed(limit=100),
        Netstrings(100),
    ],
    ids=repr,
)
def test_the_limit_is_the_longest_request_at_every_split(framing: Framing[bytes], length: int) -> None:
    first, request = framing.encode(b"x"), b"x" * length
    stream = first + framing.encode(request)
    for place in range(len(stream) + 1):
        requests, end = outcome(framing, cut(stream, [place]))
        if length <= 100:
            assert (requests, end) == ([b"x", request], END)
        else:
            assert (requests, end) == ([b"x"], "OverLimit: a request is longer than 100 bytes")


def test_over_the_limit_is_noticed_with_the_first_byte_too_many() -> None:
    for framing in (Lines(100), Delimited(b"\r\n\r\n", 100)):
        assert framing.feed(b"x" * 100) == []
        with pytest.raises(OverLimit):
            framing.feed(b"x")
    with pytest.raises(OverLimit):
        LengthPrefixed(8).feed(b"\xff" * 8)
    with pytest.raises(OverLimit):
        Netstrings(100).feed(b"101")


def test_a_break_carries_the_requests_before_it() -> None:
    with pytest.raises(OverLimit) as over:
        Lines(3).feed(b"one\ntwo\nthree\nsix\n")
    assert over.value.requests == (b"one", b"two")
    held = Lines(3)
    assert held.feed(b"on") == []
    with pytest.raises(OverLimit) as over:
        held.feed(b"e\ntwo\nthree")
    assert over.value.requests == (b"one", b"two")
    with pytest.raises(FramingError) as bad:
        Netstrings().feed(b"3:one,3:two,x")
    assert bad.value.requests == (b"one", b"two")


def test_the_messages_speak_to_people() -> None:
    truncated = Lines()
    truncated.feed(b"done\nnot do")
    with pytest.raises(Truncated, match=r"^the stream ended inside a request, after 6 of its bytes$"):
        truncated.end()
    with pytest.raises(FramingError, match=r"^a netstring's length is digits without a leading zero, then a colon$"):
        Netstrings().feed(b"GET / HTTP/1.1")
    with pytest.raises(FramingError, match=r"^a netstring does not end in a comma$"):
        Netstrings().feed(b"1:a\n")


def test_pending_counts_the_bytes_of_the_incomplete_request() -> None:
    lines = Lines()
    counts = []
    for piece in (b"one", b"", b"\n", b"two\nth", b"ree\nfo", b"ur\n"):
        lines.feed(piece)
        counts.append(lines.pending)
    assert counts == [3, 3, 0, 2, 2, 0]
    blocks = LengthPrefixed(2)
    counts = []
    for piece in (b"\0", b"\3", b"on", b"e", b"\0\0\0\1"):
        blocks.feed(piece)
        counts.append(blocks.pending)
    assert counts == [1, 2, 4, 0, 2]
    assert [len(Fixed(3).feed(b"ab")), Chunks().pending] == [0, 0]


@pytest.mark.parametrize(
    "framing",
    [
        Lines(7, b"\r\n"),
        Delimited(b"--", 7),
        LengthPrefixed(2, "little", 7),
        Netstrings(7),
        Fixed(7),
        Chunks(),
    ],
    ids=repr,
)
def test_a_copy_is_fresh_and_has_the_same_parameters(framing: Framing[bytes]) -> None:
    framing.feed(b"1")
    copy = framing.copy()
    assert copy is not framing
    assert type(copy) is type(framing)
    assert repr(copy) == repr(framing)
    assert list(copy.end()) == []


def test_the_limits_unless_told_otherwise() -> None:
    assert [repr(Lines()), repr(Delimited(b"\0"))] == [
        "Lines(limit=65536, end=b'\\n')",
        "Delimited(mark=b'\\x00', limit=65536)",
    ]
    assert [repr(LengthPrefixed()), repr(Netstrings())] == [
        "LengthPrefixed(size=4, order='big', limit=16777216)",
        "Netstrings(limit=16777216)",
    ]


def test_chunks_are_whatever_has_arrived() -> None:
    chunks = Chunks()
    assert [chunks.feed(piece) for piece in (b"one", b"", b"\n")] == [[b"one"], [], [b"\n"]]
    assert (chunks.encode(b"as it is"), chunks.end()) == (b"as it is", [])


def test_replies_are_encoded_by_the_rules_of_each() -> None:
    assert Lines().encode(b"hi") == b"hi\n"
    assert Lines(end=b"\r\n").encode(b"hi") == b"hi\r\n"
    assert Delimited(b"--").encode(b"hi") == b"hi--"
    assert LengthPrefixed().encode(b"hi") == b"\0\0\0\2hi"
    assert LengthPrefixed(8, "little").encode(b"hi") == b"\2\0\0\0\0\0\0\0hi"
    assert Netstrings().encode(b"hi") == b"2:hi,"
    assert Fixed(3).encode(b"longer") == b"longer"


def test_a_reply_that_does_not_fit_its_length_field_is_refused() -> None:
    assert LengthPrefixed(1).encode(b"x" * 255) == b"\xff" + b"x" * 255
    with pytest.raises(ValueError, match=r"^a reply of 256 bytes does not fit a length field of size 1$"):
        LengthPrefixed(1).encode(b"x" * 256)
    with pytest.raises(ValueError, match="size 2"):
        LengthPrefixed(2).encode(b"x" * 65536)


@pytest.mark.parametrize(
    ("make", "error", "what"),
    [
        (lambda: Lines(0), ValueError, "limit must be at least 1 byte, not 0"),
        (lambda: Lines("64"), TypeError, "limit must be a whole number of bytes, not '64'"),
        (lambda: Lines(True), TypeError, "limit must be a whole number of bytes, not True"),
        (lambda: Lines(end=""), TypeError, "the end of a request must be bytes, not ''"),
        (lambda: Delimited(b""), ValueError, "the end of a request must be at least 1 byte, not none"),
        (lambda: Delimited(b"\0", -1), ValueError, "limit must be at least 1 byte, not -1"),
        (lambda: LengthPrefixed(3), ValueError, "size must be 1, 2, 4 or 8 bytes, not 3"),
        (lambda: LengthPrefixed(4.0), TypeError, "size must be a whole number of bytes, not 4.0"),
        (lambda: LengthPrefixed(4, "network"), ValueError, 'order must be "big" or "little", not \'network\''),
        (lambda: LengthPrefixed(limit=0), ValueError, "limit must be at least 1 byte, not 0"),
        (lambda: Netstrings(0), ValueError, "limit must be at least 1 byte, not 0"),
        (lambda: Fixed(0), ValueError, "size must be at least 1 byte, not 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_with_a_sentence(
    make: Callable[[], object], error: type[Exception], what: str
) -> None:
    with pytest.raises(error) as refused:
        make()
    assert str(refused.value) == what


@pytest.mark.parametrize("framing", [Lines(1 << 16), Delimited(b"\r\n\r\n", 1 << 16)], ids=repr)
@pytest.mark.parametrize("size", [64, 4096])
def test_an_endless_request_is_not_held_beyond_its_limit(framing: Framing[bytes], size: int) -> None:
    tracemalloc.start()
    try:
        requests, end = outcome(framing, (b"x" * size for _ in range((1 << 20) // size)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (requests, end.partition(":")[0]) == ([], OVER)
    assert peak < 2 * (1 << 16) + 4 * size


def test_a_small_piece_costs_no_more_memory_than_its_bytes() -> None:
    framing = Fixed(1 << 14)
    tracemalloc.start()
    try:
        for _ in range((1 << 13) - 1):
            framing.feed(b"xy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert framing.pending == (1 << 14) - 2
    assert peak < 3 * (1 << 14)


@pytest.mark.parametrize(
    "framing",
    [
        Lines(BLOCK_LIMIT),
        Delimited(b"\r\n\r\n", BLOCK_LIMIT),
        LengthPrefixed(),
        Netstrings(),
        Fixed(BLOCK_LIMIT),
    ],
    ids=repr,
)
def test_sixteen_megabytes_in_small_pieces_are_one_request(framing: Framing[bytes]) -> None:
    # If the work grew with the square of the length, this would take seconds.
    request = b"x" * BLOCK_LIMIT
    requests, end = outcome(framing, in_pieces(framing.encode(request), 16384))
    assert end == END
    assert len(requests) == 1
    assert requests[0] == request


@pytest.mark.parametrize("framing", [Lines(), Delimited(b"\0"), LengthPrefixed(), Netstrings(), Fixed(1)], ids=repr)
def test_a_hundred_thousand_requests_come_out_of_one_feed(framing: Framing[bytes]) -> None:
    count = 100_000
    assert framing.copy().feed(framing.encode(b"x") * count) == [b"x"] * count


class Numbers:
    """A framing as a user writes it: requests are integers, and there is no `pending`."""

    def __init__(self) -> None:
        self.blocks = Fixed(2)

    def feed(self, data: bytes) -> list[int]:
        return [int.from_bytes(block, "big") for block in self.blocks.feed(data)]

    def encode(self, reply: bytes) -> bytes:
        return self.blocks.encode(reply)

    def end(self) -> list[int]:
        return [int.from_bytes(block, "big") for block in self.blocks.end()]

    def copy(self) -> Numbers:
        return Numbers()


def test_anything_with_the_four_methods_is_a_framing() -> None:
    numbers: Framing[int] = Numbers()
    assert isinstance(numbers, Framing)
    assert [numbers.feed(b"\0\1\0"), numbers.feed(b"\2")] == [[1], [2]]
    assert all(isinstance(framing, Framing) for framing, *_ in STREAMS)
    assert not isinstance(b"", Framing)


@pytest.mark.parametrize(
    "framing",
    [Lines(), Lines(end=b"\r\n"), Delimited(b"::"), Netstrings(), Fixed(3), Chunks(), LengthPrefixed(2)],
    ids=repr,
)
def test_several_replies_at_once_are_what_they_are_one_by_one(framing: Framing[bytes]) -> None:
    replies = [b"one", b"", b"three"]
    if is_quick(framing):
        assert framing.encode_all(replies) == b"".join(map(framing.encode, replies))
    else:
        assert isinstance(framing, LengthPrefixed)
