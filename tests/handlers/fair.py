"""Services with which a client could hold up others: long replies, many requests at once, waiting coroutines."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import forkd

BIG = b"m" * 8_000_000
PIECE = b"p" * 100_000


@forkd.service(forkd.Lines())
def plain(request: bytes, connection: forkd.Connection) -> bytes | Iterator[bytes] | None:
    """`reply`, `pieces` and `send` each send 8 MB; `work N` computes for N ms; any other request is echoed."""
    word, _, rest = request.partition(b" ")
    match word:
        case b"reply":
            return BIG
        case b"pieces":
            return iter([PIECE] * 80)
        case b"send":
            connection.send(BIG)
            return None
    _work(word, rest)
    return request


@forkd.service(forkd.Lines())
async def awaited(request: bytes, connection: forkd.AsyncConnection) -> bytes | AsyncIterator[bytes] | None:
    """Does the same; `wait N` also waits for N ms."""
    word, _, rest = request.partition(b" ")
    match word:
        case b"reply":
            return BIG
        case b"pieces":
            return _pieces()
        case b"send":
            await connection.send(BIG)
            return None
        case b"wait":
            await asyncio.sleep(float(rest) / 1000)
    _work(word, rest)
    return request


async def _pieces() -> AsyncIterator[bytes]:
    for _ in range(80):
        yield PIECE


def _work(word: bytes, rest: bytes) -> None:
    if word == b"work":
        over = time.perf_counter() + float(rest) / 1000
        while time.perf_counter() < over:
            pass


@forkd.stream
async def timed(connection: forkd.AsyncConnection) -> None:
    """Reads in four ways, each with a timeout that expires in the turn of the loop in which the bytes arrive."""
    lines = connection.requests(forkd.Lines())
    for read in (
        lambda: connection.recv(100),
        lambda: connection.read_until(b"\n"),
        lambda: connection.read_exactly(6),
        lambda: anext(aiter(lines)),
    ):
        asyncio.get_running_loop().call_soon(_hold_up, time.monotonic() + 0.1)  # as another client's handler may
        try:
            async with asyncio.timeout(0.05):
                got = await read()
        except TimeoutError:
            await connection.send(b"timeout\n")
            got = await read()
        await connection.send(b"got " + got.rstrip() + b"\n")


def _hold_up(until: float) -> None:
    """Holds up the loop until the client has sent its next line and the timeout is over."""
    Path("held-up").touch()
    while not Path("sent").exists() or time.monotonic() < until:
        pass
    Path("sent").unlink()


@forkd.stream
async def pushed(connection: forkd.AsyncConnection) -> None:
    """Reads lines with a very short timeout, again and again; at the end sends how many lines there were."""
    count = 0
    while True:
        try:
            async with asyncio.timeout(0.0005):
                line = await connection.read_until(b"\n")
        except TimeoutError:
            continue
        except EOFError:
            break
        assert line == b"%d\n" % count, (line, count)
        count += 1
    await connection.send(b"%d\n" % count)


@forkd.stream
async def twice(connection: forkd.AsyncConnection) -> None:
    """Sends from two tasks at once, then reads from two at once."""
    await asyncio.gather(*(_send(connection, letter) for letter in (b"a", b"b")))
    first = asyncio.create_task(connection.recv(1))
    await asyncio.sleep(0)
    try:
        await connection.recv(1)
    except RuntimeError as error:
        await connection.send(b"\n%s\n" % str(error).encode())
    await connection.send(b"got " + await first)


async def _send(connection: forkd.AsyncConnection, letter: bytes) -> None:
    for _ in range(8):
        await connection.send(letter * 1_000_000)


_clients: set[forkd.AsyncConnection] = set()


@forkd.service(forkd.Lines())
async def pushes(request: bytes, connection: forkd.AsyncConnection) -> bytes:
    """Sends a long line of the request's first byte to every other client."""
    for other in _clients - {connection}:
        await other.send(request[:1] * 300_000 + b"\n")
    return b"ok"


@pushes.on_connect
async def _arrives(connection: forkd.AsyncConnection) -> None:
    _clients.add(connection)


@pushes.on_close
async def _goes(connection: forkd.AsyncConnection) -> None:
    _clients.discard(connection)


def _note(word: str) -> None:
    with Path("noted").open("a") as file:
        file.write(f"{word}\n")


@forkd.service(forkd.Lines())
def endless(request: bytes) -> Iterator[bytes]:
    """Replies forever, and notes when the generator is closed."""
    try:
        while True:
            yield PIECE
    finally:
        _note("generator closed")


@endless.on_close
def _ends(connection: forkd.Connection) -> None:
    _note("on_close")


@forkd.service(forkd.Lines())
async def endless_awaited(request: bytes) -> AsyncIterator[bytes]:
    """Does the same in a coroutine."""
    try:
        while True:
            yield PIECE
    finally:
        _note("generator closed")


@endless_awaited.on_close
async def _ends_awaited(connection: forkd.AsyncConnection) -> None:
    _note("on_close")


@forkd.stream
def until_mark(connection: forkd.Connection) -> None:
    """Reads up to a mark that comes late, and sends how many bytes that was."""
    connection.send(b"%d\n" % len(connection.read_until(b"\r\n.\r\n", 1 << 30)))
