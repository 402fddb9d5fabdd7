"""A service that writes two lines to a file for each request, so that lost and repeated ones can be counted.

A request is `ID PAYLOAD`; the reply is `ID` and a digest of both. The environment variable LEDGER names the file, NAP
is how many seconds a request takes. Each worker writes a line `born PID TIME` when it is ready.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator

import forkd

NAP = float(os.environ.get("NAP", "0"))


@forkd.service(forkd.Lines())
def answer(request: bytes, connection: forkd.Connection) -> bytes:
    number, _, _ = request.partition(b" ")
    ledger = connection.resources
    if ledger is not None:
        os.write(ledger, b"%s start\n" % number)
    if NAP:
        time.sleep(NAP)
    reply = number + b" " + hashlib.sha256(request).hexdigest().encode()
    if ledger is not None:
        os.write(ledger, b"%s end\n" % number)
    return reply


@forkd.service(forkd.Lines())
async def answer_async(request: bytes, connection: forkd.AsyncConnection) -> bytes:
    """Does the same, for workers with coroutines."""
    number, _, _ = request.partition(b" ")
    ledger = connection.resources
    if ledger is not None:
        os.write(ledger, b"%s start\n" % number)
    await asyncio.sleep(NAP)
    reply = number + b" " + hashlib.sha256(request).hexdigest().encode()
    if ledger is not None:
        os.write(ledger, b"%s end\n" % number)
    return reply


@answer_async.lifespan
@answer.lifespan
def ledger() -> Iterator[int | None]:
    path = os.environ.get("LEDGER")
    if path is None:
        yield None
        return
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, b"born %d %d\n" % (os.getpid(), time.monotonic_ns()))
    yield fd
    os.close(fd)
