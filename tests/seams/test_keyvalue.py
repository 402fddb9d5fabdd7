"""The key-value example: its framing alone, its commands in a conversation, its stores across processes."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forkd
from examples.keyvalue import COMMANDS, INLINE_LIMIT, File, Malformed, Memory, Resp, Store, keyvalue, split_words
from forkd.serving.outcome import End
from forkd.testing import Client, connect

NOW = 1_000_000_000_000


def packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


# The framing.


def cut(pieces: list[bytes], limit: int = 200) -> tuple[list[object], str]:
    """Returns the requests in a stream that arrives in these pieces, and how it ended."""
    framing = Resp(limit)
    requests: list[object] = []
    try:
        for piece in pieces:
            requests += framing.feed(piece)
        assert framing.pending >= 0
        requests += framing.end()
    except forkd.FramingError as error:
        return [*requests, *error.requests], f"{type(error).__name__}: {error}"
    assert framing.pending == 0
    return requests, ""


def test_arrays_and_lines_are_requests() -> None:
    stream = packed(b"GET", b"a\r\n\0") + b"get b\r\nping\n\r\n*0\r\n*-1\r\n" + packed(b"", b"")
    assert cut([stream]) == ([[b"GET", b"a\r\n\0"], [b"get", b"b"], [b"ping"], [b"", b""]], "")


streams = st.lists(
    st.one_of(
        st.lists(st.binary(max_size=40), min_size=1, max_size=4).map(lambda words: packed(*words)),
        st.sampled_from([b"ping\r\n", b"\n", b"*0\r\n", b"*-1\r\n", b"set \"a b\" 'c'\r\n", b"*1\r\n$4\r\nPING\r\n"]),
        st.sampled_from(
            [b"*", b"$", b"\r", b"\n", b"*2\r\n", b"$3\r\n", b"*01\r\n", b'"', b"$-1\r\n", b"*1" + b"0" * 30]
        ),
        st.binary(max_size=5),
    ),
    max_size=6,
).map(b"".join)


@given(streams, st.data())
def test_the_same_requests_come_out_however_the_bytes_are_split(stream: bytes, data: st.DataObject) -> None:
    whole = cut([stream])
    assert cut([stream[at : at + 1] for at in range(len(stream))]) == whole
    marks = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    assert cut([stream[a:b] for a, b in zip([0, *marks], [*marks, len(stream)], strict=True)]) == whole


@given(st.lists(st.lists(st.binary(max_size=3000), min_size=1), max_size=10), st.integers(1, 5000))
def test_any_strings_arrive_as_they_are(requests: list[list[bytes]], size: int) -> None:
    stream = b"".join(packed(*words) for words in requests)
    assert cut([stream[at : at + size] for at in range(0, len(stream), size)], limit=10**6) == (requests, "")


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*01\r\n", "invalid multibulk length"),
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*" + b"1" * 21, "invalid multibulk length"),
        (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$ 4\r\nPING\r\n", "invalid bulk length"),
        (b'set "a\r\n', "unbalanced quotes in request"),
        (b"set 'a'b\r\n", "unbalanced quotes in request"),
    ],
)
def test_a_breach_is_told_in_redis_words(stream: bytes, told: str) -> None:
    requests, ending = cut([packed(b"PING") + stream])
    assert ending == f"FramingError: Protocol error: {told}"
    assert requests == [[b"PING"], Malformed(b"-ERR Protocol error: %b\r\n" % told.encode())]


def test_a_request_over_the_limit() -> None:
    assert cut([packed(b"x" * 150)])[1] == ""
    assert cut([b"*1\r\n$500\r\n"])[1] == "OverLimit: Protocol error: invalid bulk length"
    many = packed(*[b"x" * 20] * 20)
    assert cut([many])[1] == cut([many[:300], many[300:]])[1] == "OverLimit: Protocol error: invalid bulk length"


@pytest.mark.parametrize("size", [1000, 2 * INLINE_LIMIT])
def test_a_line_over_the_limit(size: int) -> None:
    def ending(line: bytes) -> str:
        return cut([line[at : at + size] for at in range(0, len(line), size)])[1]

    assert ending(b"echo " + b"x" * (INLINE_LIMIT - 5) + b"\n") == ""
    assert ending(b"echo " + b"x" * (INLINE_LIMIT - 4) + b"\n") == "OverLimit: Protocol error: too big inline request"
    assert ending(b"x" * (INLINE_LIMIT + 1)) == "OverLimit: Protocol error: too big inline request"


@pytest.mark.parametrize(
    "stream", [b"ping", b"*", b"*1\r", b"*1\r\n", b"*1\r\n$4", b"*1\r\n$4\r\nPING", b"*1\r\n$4\r\nPING\r"]
)
def test_a_stream_that_ends_in_a_request_is_truncated(stream: bytes) -> None:
    framing = Resp()
    assert framing.feed(packed(b"PING") + stream) == [[b"PING"]]
    assert framing.pending == len(stream)
    with pytest.raises(forkd.Truncated, match=f"after {len(stream)} of its bytes"):
        framing.end()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"  set\ta  b ", [b"set", b"a", b"b"]),
        (rb'set "a b" "\x00\xfF\n\r\t\b\a\"\\\q"', [b"set", b"a b", b'\0\xff\n\r\t\b\a"\\q']),
        (rb"set 'it\'s' '\n' ''", [b"set", b"it's", rb"\n", b""]),
        (b'set a"b c"  ""', [b"set", b"ab c", b""]),
        (rb'"\xg1"', [b"xg1"]),
        (rb"'a\'", None),
        (rb'"a\"', None),
        (b"'a'b", None),
        (b'"a"b', None),
        (b'a"', None),
    ],
)
def test_words_of_a_line(line: bytes, words: list[bytes] | None) -> None:
    assert split_words(line) == words


def test_a_long_request_in_small_pieces_costs_no_more_than_its_length() -> None:
    # Quadratic work would take minutes here and exceed the suite's timeout.
    framing = Resp()
    stream = packed(b"SET", b"a", b"x" * 2_000_000)
    requests = [request for at in range(0, len(stream), 50) for request in framing.feed(stream[at : at + 50])]
    assert requests == [[b"SET", b"a", b"x" * 2_000_000]]


# The commands, on either store.


class Clock:
    """A clock that stands still until the test sets it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "file"])
def open_store(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> Callable[[], Store]:
    if request.param == "memory":
        return lambda: Memory(clock)
    return lambda: File(tmp_path / "values", clock)


@pytest.fixture
def client(open_store: Callable[[], Store]) -> Iterator[Client]:
    with connect(keyvalue(open_store)) as client:
        yield client
        assert client.read_all() == b"", "there were more replies than expected"


def check(client: Client, *script: tuple[str, str]) -> None:
    """Sends each line and reads exactly its expected reply, in which `~` stands for an inner line end."""
    for line, reply in script:
        expected = reply.replace("~", "\r\n").encode() + b"\r\n"
        client.send(line.encode() + b"\r\n")
        assert (line, client.read_exactly(len(expected))) == (line, expected)


def test_small_talk(client: Client) -> None:
    check(
        client,
        ("PING", "+PONG"),
        ("ping 'hello you'", "$9~hello you"),
        ("ECHO hi", "$2~hi"),
        ("SELECT 0", "+OK"),
        ("SELECT 1", "-ERR DB index is out of range"),
        ("SELECT x", "-ERR value is not an integer or out of range"),
    )


def test_what_clients_ask_of_a_server(client: Client) -> None:
    about = f"*10~$6~server~$5~forkd~$7~version~$5~{forkd.__version__}~$5~proto~:2"
    about += "~$4~mode~$10~standalone~$4~role~$6~master"
    check(
        client,
        ("HELLO", about),
        ("HELLO 2", about),
        ("HELLO 3", "-NOPROTO unsupported protocol version"),
        ("HELLO x", "-ERR Protocol version is not an integer or out of range"),
        ("HELLO 2 AUTH", "-ERR Syntax error in HELLO option 'AUTH'"),
        ("COMMAND", "*0"),
        ("COMMAND DOCS", "*0"),
        ("COMMAND docs get", "*0"),
        ("COMMAND COUNT", f":{len(COMMANDS)}"),
        ("COMMAND foo", "-ERR unknown subcommand 'foo'. Try COMMAND HELP."),
        ("CONFIG GET save", "*2~$4~save~$0~"),
        ("CONFIG GET appendonly", "*2~$10~appendonly~$2~no"),
        ("CONFIG GET SA* databases", "*4~$9~databases~$1~1~$4~save~$0~"),
        ("CONFIG GET nothing", "*0"),
        ("CONFIG GET", "-ERR wrong number of arguments for 'config|get' command"),
        ("CONFIG SET a b", "-ERR unknown subcommand 'SET'. Try CONFIG HELP."),
    )


def test_a_value_is_set_found_counted_and_deleted(client: Client) -> None:
    check(
        client,
        ("GET a", "$-1"),
        ("SET a 1", "+OK"),
        ("get a", "$1~1"),
        ("SET b ''", "+OK"),
        ("GET b", "$0~"),
        ("DBSIZE", ":2"),
        ("EXISTS a b c a", ":3"),
        ("DEL a c", ":1"),
        ("EXISTS a", ":0"),
        ("DEL a", ":0"),
        ("FLUSHALL ASYNC", "+OK"),
        ("DBSIZE", ":0"),
        ("FLUSHALL now", "-ERR syntax error"),
    )


def test_any_bytes_are_a_key_and_a_value(client: Client) -> None:
    every = bytes(range(256)) * 300
    client.send(packed(b"SET", every, every[::-1]) + packed(b"GET", every))
    assert client.read_exactly(5 + 8 + len(every) + 2) == b"+OK\r\n$76800\r\n" + every[::-1] + b"\r\n"


def test_set_on_a_condition(client: Client) -> None:
    check(
        client,
        ("SET a 1 XX", "$-1"),
        ("SET a 1 NX", "+OK"),
        ("SET a 2 NX", "$-1"),
        ("SET a 3 xx GET", "$1~1"),
        ("SET a 4 NX GET", "$1~3"),
        ("SET b 1 GET", "$-1"),
        ("GET a", "$1~3"),
        ("GET b", "$1~1"),
    )


def test_set_refuses_what_redis_refuses(client: Client) -> None:
    invalid = "-ERR invalid expire time in 'set' command"
    check(
        client,
        ("SET a 1 NX XX", "-ERR syntax error"),
        ("SET a 1 EX", "-ERR syntax error"),
        ("SET a 1 EX 1 PX 1", "-ERR syntax error"),
        ("SET a 1 KEEPTTL EX 1", "-ERR syntax error"),
        ("SET a 1 FOO", "-ERR syntax error"),
        ("SET a 1 EX x FOO", "-ERR syntax error"),
        ("SET a 1 EX x", "-ERR value is not an integer or out of range"),
        ("SET a 1 EX 1.5", "-ERR value is not an integer or out of range"),
        ("SET a 1 EX 0", invalid),
        ("SET a 1 PX -1", invalid),
        ("SET a 1 EX 9223372036854775", invalid),
        ("SET a 1 EX 9223372036854775807", invalid),
        ("SET a 1 EX 9223372036854775808", "-ERR value is not an integer or out of range"),
        ("GET a", "$-1"),
    )


def test_counting(client: Client) -> None:
    check(
        client,
        ("INCR n", ":1"),
        ("INCRBY n 41", ":42"),
        ("DECR n", ":41"),
        ("DECRBY n -9", ":50"),
        ("GET n", "$2~50"),
        ("SET n 9223372036854775807", "+OK"),
        ("INCR n", "-ERR increment or decrement would overflow"),
        ("SET n ' 1'", "+OK"),
        ("INCR n", "-ERR value is not an integer or out of range"),
        ("INCRBY m 1_0", "-ERR value is not an integer or out of range"),
        ("EXISTS m", ":0"),
    )


def test_a_value_vanishes_at_its_time(client: Client, clock: Clock) -> None:
    check(
        client,
        ("SET a 1 EX 10", "+OK"),
        ("SET b 1 PX 10000", "+OK"),
        (f"SET c 1 EXAT {NOW // 1000 + 10}", "+OK"),
        (f"SET d 1 PXAT {NOW + 10_000}", "+OK"),
        ("SET e 1", "+OK"),
        ("TTL a", ":10"),
        ("PTTL b", ":10000"),
        ("TTL e", ":-1"),
        ("TTL f", ":-2"),
    )
    clock.now += 9_999
    check(client, ("EXISTS a b c d e", ":5"), ("PTTL a", ":1"), ("TTL a", ":0"))
    clock.now += 1
    check(
        client,
        ("EXISTS a b c d e", ":1"),
        ("GET a", "$-1"),
        ("TTL a", ":-2"),
        ("DEL b", ":0"),
        ("INCR c", ":1"),
        ("SET d 2 NX", "+OK"),
        ("DBSIZE", ":3"),
    )


def test_what_keeps_and_what_clears_a_deadline(client: Client) -> None:
    check(
        client,
        ("SET a 1 EX 10", "+OK"),
        ("INCR a", ":2"),
        ("TTL a", ":10"),
        ("SET a 5 KEEPTTL", "+OK"),
        ("TTL a", ":10"),
        ("SET a 1", "+OK"),
        ("TTL a", ":-1"),
        ("SET b 1 KEEPTTL", "+OK"),
        ("TTL b", ":-1"),
    )


def test_expire(client: Client, clock: Clock) -> None:
    check(
        client,
        ("EXPIRE a 10", ":0"),
        ("SET a 1", "+OK"),
        ("EXPIRE a 10", ":1"),
        ("TTL a", ":10"),
        ("PEXPIRE a 1500", ":1"),
        ("PTTL a", ":1500"),
        ("EXPIRE a x", "-ERR value is not an integer or out of range"),
        ("EXPIRE a 9223372036854775807", "-ERR invalid expire time in 'expire' command"),
        ("PEXPIRE a 9223372036854775807", "-ERR invalid expire time in 'pexpire' command"),
        ("EXPIRE a 1 FOO", "-ERR Unsupported option FOO"),
    )
    clock.now += 1_500
    check(client, ("GET a", "$-1"), ("SET a 1", "+OK"), ("EXPIRE a -1", ":1"), ("EXISTS a", ":0"))


def test_a_command_that_is_not_one(client: Client) -> None:
    check(
        client,
        ("foo", "-ERR unknown command 'foo', with args beginning with: "),
        ("foo bar 'b z'", "-ERR unknown command 'foo', with args beginning with: 'bar' 'b z' "),
        (r'"f\r\no" "\n"', "-ERR unknown command 'f  o', with args beginning with: ' ' "),
        (
            f"{'f' * 200} {'a' * 100} {'b' * 100} c",
            f"-ERR unknown command '{'f' * 128}', with args beginning with: '{'a' * 100}' '{'b' * 25}' ",
        ),
        ("''", "-ERR unknown command '', with args beginning with: "),
    )


@pytest.mark.parametrize(
    "line",
    ["get", "GET a b", "set a", "del", "exists", "incr", "incr a b", "incrby a", "expire a", "ttl", "echo", "echo a b",
     "ping a b", "select", "dbsize a", "flushall a b", "config"],
)  # fmt: skip
def test_a_wrong_number_of_arguments(client: Client, line: str) -> None:
    name = line.split()[0].lower()
    check(client, (line, f"-ERR wrong number of arguments for '{name}' command"), ("PING", "+PONG"))


# Whole connections.


def test_a_pipeline_is_answered_in_its_order() -> None:
    with connect(keyvalue(Memory)) as client:
        client.send(b"".join(packed(b"INCR", b"n") for _ in range(1000)))
        assert client.read_all() == b"".join(b":%d\r\n" % n for n in range(1, 1001))


def test_quit_is_acknowledged_and_ends_the_connection() -> None:
    with connect(keyvalue(Memory)) as client:
        client.send(b"PING\r\nQUIT\r\nPING\r\n")
        assert client.read_all() == b"+PONG\r\n+OK\r\n"
    assert client.outcome is not None
    assert client.outcome.end is End.CLOSED


@pytest.mark.parametrize(
    ("breach", "told", "end"),
    [
        (b"*1\r\n$x\r\n", b"invalid bulk length", End.MALFORMED),
        (b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$99999999\r\n", b"invalid bulk length", End.OVER_LIMIT),
    ],
)
def test_a_breach_is_told_after_the_replies_before_it(breach: bytes, told: bytes, end: End) -> None:
    with connect(keyvalue(Memory)) as client:
        client.send(packed(b"PING") + breach)
        assert client.recv(1000) == b"+PONG\r\n-ERR Protocol error: " + told + b"\r\n"
        assert client.recv(1000) == b""
    assert client.outcome is not None
    assert client.outcome.end is end


@pytest.mark.parametrize("first", [b"POST / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost:6380\r\n"])
def test_a_browser_gets_no_further_than_its_first_lines(first: bytes) -> None:
    with connect(keyvalue(Memory)) as client:
        client.send(first + b"\r\nFLUSHALL\r\n")
        assert b"OK" not in client.read_all()


def test_a_broken_file_is_told_and_the_connection_goes_on(tmp_path: Path) -> None:
    with connect(keyvalue(lambda: File(tmp_path / "values"))) as client:
        check(client, ("GET a", "$-1"))
        with closing(sqlite3.connect(tmp_path / "values")) as other:
            other.execute("ALTER TABLE entries RENAME TO mislaid")
        check(client, ("GET a", "-ERR the store failed: no such table: entries"))
        with closing(sqlite3.connect(tmp_path / "values")) as other:
            other.execute("ALTER TABLE mislaid RENAME TO entries")
        check(client, ("GET a", "$-1"))


# The stores.


def test_a_file_keeps_its_values(tmp_path: Path) -> None:
    with connect(keyvalue(lambda: File(tmp_path / "values"))) as client:
        check(client, ("SET a 1", "+OK"))
    with connect(keyvalue(lambda: File(tmp_path / "values"))) as client:
        check(client, ("GET a", "$1~1"))


def test_entries_that_nobody_asks_for_go_too(open_store: Callable[[], Store], clock: Clock) -> None:
    with closing(open_store()) as store:
        for number in range(2500):
            store.put(b"%d" % number, b"", clock.now + 1)
            clock.now += 1
        held = len(store._entries) if isinstance(store, Memory) else rows(store)
        assert held < 2500
        assert store.size() == 0


def rows(store: object) -> int:
    assert isinstance(store, File)
    return int(store._database.execute("SELECT count(*) FROM entries").fetchone()[0])


def in_processes(count: int, work: Callable[[], int]) -> list[int]:
    """Returns the results of `work` (up to 65535) in this many processes that start together."""
    start, started = os.pipe()
    results, result = os.pipe()
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(started)
            os.read(start, 1)  # until every process exists and the other end is closed
            try:
                os.write(result, work().to_bytes(2, "big"))
            finally:
                os._exit(0)
        pids.append(pid)
    for fd in (start, started, result):
        os.close(fd)
    with open(results, "rb") as pipe:  # noqa: PTH123  # a descriptor, no path
        told = pipe.read()
    for pid in pids:
        os.waitpid(pid, 0)
    return [int.from_bytes(told[at : at + 2], "big") for at in range(0, len(told), 2)]


def test_no_increment_of_two_processes_is_lost(tmp_path: Path) -> None:
    def count() -> int:
        with closing(File(tmp_path / "values")) as store:
            return [COMMANDS[b"INCR"].run(store, [b"INCR", b"n"]) for _ in range(500)].count(b"")

    assert in_processes(2, count) == [0, 0]
    with closing(File(tmp_path / "values")) as store:
        assert store.get(b"n") == (b"1000", None)


def test_one_process_alone_sets_what_is_not_there(tmp_path: Path) -> None:
    def won() -> int:
        with closing(File(tmp_path / "values")) as store:
            words = [[b"SET", b"%d" % key, b"", b"NX"] for key in range(100)]
            return [COMMANDS[b"SET"].run(store, request) for request in words].count(b"+OK\r\n")

    wins = in_processes(4, won)
    assert (len(wins), sum(wins)) == (4, 100)


def test_processes_may_make_the_file_together(tmp_path: Path) -> None:
    def opened() -> int:
        with closing(File(tmp_path / "values")) as store:
            store.put(b"%d" % os.getpid(), b"", None)
            return 1

    assert in_processes(16, opened) == [1] * 16
    with closing(File(tmp_path / "values")) as store:
        assert store.size() == 16
