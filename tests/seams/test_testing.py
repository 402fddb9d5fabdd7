"""forkd.testing, as the author of a service uses it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

import forkd
from forkd.ipc.deadlines import Deadlines
from forkd.serving.outcome import End
from forkd.testing import Client, connect


@forkd.service(forkd.Lines())
def shout(request: bytes) -> bytes | None:
    match request:
        case b"fail":
            raise ValueError("no good")
        case b"exit":
            raise SystemExit(3)
        case b"nothing":
            return None
        case b"quit":
            raise forkd.Close(b"bye")
    return request.upper()


@forkd.stream
def greeting(connection: forkd.Connection) -> None:
    name = connection.read_until(b"\n").strip()
    connection.send(b"hello " + name + b"\n")


def test_a_service_is_still_an_ordinary_callable() -> None:
    assert shout(b"hi") == b"HI"


def test_a_call() -> None:
    with connect(shout) as client:
        assert client.call(b"hi") == b"HI"
        assert client.call(b"ho") == b"HO"
    assert client.outcome.end is End.CLIENT


def test_requests_and_replies_apart() -> None:
    with connect(shout) as client:
        client.send(b"one\ntwo\nthr")
        assert [client.reply(), client.reply()] == [b"ONE", b"TWO"]
        client.send(b"ee\n")
        client.request(b"four")
        assert client.read_all() == b"THREE\nFOUR\n"


def test_the_name_the_peer_and_the_limits() -> None:
    @forkd.service(forkd.Lines())
    def tell(request: bytes, connection: forkd.Connection) -> bytes:
        return f"{connection.service} {connection.number} {connection.peer} {connection.local}".encode()

    with connect(tell, name="tell", limits=Deadlines(idle_timeout=0.02)) as client:
        assert client.call(b"?") == b"tell 1 unix: unix:"
        assert client.recv(10) == b""
        assert client.outcome.end is End.IDLE


def test_the_end_is_told_as_soon_as_it_is_asked_for() -> None:
    with connect(shout) as client:
        assert client.call(b"quit") == b"bye"
        assert client.outcome.end is End.CLOSED
        with pytest.raises(EOFError, match="ended the connection instead of replying"):
            client.call(b"more")


def test_an_end_that_does_not_come() -> None:
    with (
        connect(shout, timeout=0.02) as client,
        pytest.raises(TimeoutError, match=r"still running after 0\.02 seconds"),
    ):
        _ = client.outcome


@pytest.mark.parametrize(("request_", "error"), [(b"fail", ValueError), (b"exit", SystemExit)])
def test_a_handlers_exception_is_what_the_test_sees(request_: bytes, error: type[BaseException]) -> None:
    with pytest.raises(error) as raised, connect(shout) as client:
        client.call(request_)
    assert isinstance(raised.value.__context__, EOFError), "the client must have seen it end"
    assert client.outcome.error is raised.value


def content_with_one_reply(client: Client) -> None:
    client.send(b"fine\nfail\n")
    assert client.reply() == b"FINE"


def test_a_handlers_exception_is_seen_though_the_client_was_content() -> None:
    with pytest.raises(ValueError, match="no good"), connect(shout) as client:
        content_with_one_reply(client)


def test_the_tests_own_failure_is_kept() -> None:
    with pytest.raises(AssertionError, match="HI"), connect(shout) as client:
        assert client.call(b"hi") == b"HO"


def test_a_reply_that_never_comes() -> None:
    with connect(shout, timeout=0.02) as client:
        client.request(b"nothing")
        with pytest.raises(TimeoutError):
            client.reply()


def test_a_handler_that_hangs_does_not_hang_the_test() -> None:
    released = threading.Event()

    @forkd.service(forkd.Lines())
    def hang(request: bytes) -> None:
        released.wait(5)

    with pytest.raises(TimeoutError, match="still running"), connect(hang, timeout=0.02) as client:
        client.request(b"x")
    released.set()


def test_a_stream() -> None:
    with connect(greeting) as client:
        client.send(b"joe\n")
        assert client.read_exactly(6) == b"hello "
        assert client.recv(100) == b"joe\n"
        assert client.recv(100) == b""
        with pytest.raises(EOFError, match="ended after 0 of 1 bytes"):
            client.read_exactly(1)
        assert client.outcome.end is End.CLOSED


def test_a_stream_has_no_replies() -> None:
    with connect(greeting) as client:
        client.request(b"joe\n")
        with pytest.raises(TypeError, match="a stream has no framing"):
            client.reply()


def test_a_stream_that_is_truncated() -> None:
    with connect(greeting) as client:
        client.send(b"jo")
        assert client.read_all() == b""
        assert client.outcome.end is End.TRUNCATED


def test_unread_input_does_not_reset_the_client() -> None:
    @forkd.stream
    def deaf(connection: forkd.Connection) -> None:
        connection.send(b"I do not listen\n")

    with connect(deaf) as client:
        client.send(b"hello?\n")
        assert client.outcome.end is End.CLOSED
        client.send(b"hello?\n")
        assert client.read_all() == b"I do not listen\n"


def test_the_framing_of_a_service_is_not_used_up() -> None:
    for _ in range(2):
        with connect(shout) as client:
            client.send(b"half")


def with_lifespan() -> tuple[forkd.Service[..., bytes], list[str]]:
    said: list[str] = []

    @forkd.service(forkd.Lines())
    def tell(request: bytes, connection: forkd.Connection) -> bytes:
        if request == b"fail":
            raise ValueError("no good")
        return f"{connection.resources}".encode()

    @tell.lifespan
    def database() -> Iterator[str]:
        said.append("set up")
        yield "a database"
        said.append("cleaned up")

    return tell, said


def test_a_lifespan_gives_resources_and_is_cleaned_up() -> None:
    tell, said = with_lifespan()
    with connect(tell) as client:
        assert client.call(b"?") == b"a database"
        assert said == ["set up"]
    assert said == ["set up", "cleaned up"]


def test_a_lifespan_is_cleaned_up_after_an_error() -> None:
    tell, said = with_lifespan()
    with pytest.raises(ValueError, match="no good"), connect(tell) as client:
        client.request(b"fail")
    assert said == ["set up", "cleaned up"]


def test_a_lifespan_that_fails() -> None:
    tell, _ = with_lifespan()

    @tell.lifespan
    def fails() -> Iterator[None]:
        raise ConnectionRefusedError("no database")
        yield

    with pytest.raises(ConnectionRefusedError, match="no database"), connect(tell) as client:
        assert client.read_all() == b""
    with pytest.raises(EOFError, match="no conversation"):
        _ = client.outcome


def test_a_clean_up_that_fails() -> None:
    tell, _ = with_lifespan()

    @tell.lifespan
    def fails() -> Iterator[str]:
        yield "something"
        raise ConnectionResetError("the database went first")

    with pytest.raises(ConnectionResetError, match="went first"), connect(tell) as client:
        assert client.call(b"?") == b"something"


@forkd.service(forkd.Lines())
async def patient(request: bytes, connection: forkd.AsyncConnection) -> bytes:
    if request == b"fail":
        raise ValueError("no good")
    await asyncio.sleep(float(request))
    return b"%s %s" % (connection.resources, request)


@patient.lifespan
async def pool() -> AsyncIterator[bytes]:
    yield b"pooled"


def test_a_coroutine() -> None:
    with connect(patient) as client:
        assert client.call(b"0.01") == b"pooled 0.01"
    with connect(patient, limits=Deadlines(idle_timeout=0.05)) as client:
        assert client.call(b"0") == b"pooled 0"
        assert client.recv(100) == b""
    assert client.outcome.end is End.IDLE
    with pytest.raises(ValueError, match="no good"), connect(patient) as client:
        client.call(b"fail")


def test_a_coroutine_over_its_time() -> None:
    with pytest.raises(TimeoutError), connect(patient, limits=Deadlines(request_timeout=0.05)) as client:
        client.call(b"60")
    assert client.outcome.end is End.REQUEST
