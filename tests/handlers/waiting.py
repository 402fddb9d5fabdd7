"""Services whose handlers are coroutines."""

import asyncio
import time
from collections.abc import AsyncIterator

import forkd


@forkd.service(forkd.Lines())
async def nap(request: bytes) -> bytes:
    """Waits for N seconds; `block N` holds up the whole loop for N seconds."""
    word, _, seconds = request.rpartition(b" ")
    if word == b"block":
        time.sleep(float(seconds))
    else:
        await _wait(float(seconds))
    return b"slept %s" % request


async def _wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


@forkd.service(forkd.Lines())
async def count(request: bytes) -> AsyncIterator[bytes]:
    """Sends as many replies as the request says."""
    for number in range(int(request)):
        await asyncio.sleep(0)
        yield b"%d" % number


@forkd.stream
async def session(connection: forkd.AsyncConnection) -> None:
    """Greets by name, reads a size and that many bytes, then echoes lines in capitals until `bye`."""
    name = await connection.read_until(b"\n")
    await connection.send(b"hello " + name)
    size = int(await connection.read_exactly(3))
    await connection.send(await connection.read_exactly(size))
    await connection.send(await connection.recv(4))
    async for line in connection.requests(forkd.Lines()):
        if line == b"bye":
            connection.close()
            return
        await connection.send(line.upper() + b"\n")


@forkd.service(forkd.Lines())
async def lives(request: bytes, connection: forkd.AsyncConnection) -> bytes:
    """Returns its resources, the event loop's module and the connection's number; raises on `fail`."""
    if request == b"fail":
        raise ValueError("as told")
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    return b"%s %s %d" % (connection.resources, loop.encode(), connection.number)


@lives.lifespan
async def life() -> AsyncIterator[bytes]:
    await asyncio.sleep(0)
    yield b"alive"
    await asyncio.sleep(0)


@lives.on_connect
async def greet(connection: forkd.AsyncConnection) -> bytes:
    await asyncio.sleep(0)
    return b"welcome"


@lives.on_error
async def excuse(error: Exception, connection: forkd.AsyncConnection) -> bytes:
    await asyncio.sleep(0)
    return str(error).encode()


@forkd.service(forkd.Lines())
async def stillborn(request: bytes) -> bytes:
    return request


@stillborn.lifespan
async def never() -> AsyncIterator[None]:
    await asyncio.sleep(0)
    raise RuntimeError("no database")
    yield
