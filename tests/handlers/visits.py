"""Services whose connections end in every way, for each kind of worker, and one that prints."""

import asyncio
import sys
import threading

import forkd


@forkd.service(forkd.Lines(limit=64))
def visit(request: bytes) -> bytes:
    """Ends the connection in the way that the request names; any other request is returned in capitals."""
    match request:
        case b"bye":
            raise forkd.Close(b"bye")
        case b"fail":
            raise ValueError("as told")
        case b"exit":
            raise SystemExit(3)
        case b"flood":
            return b"x" * 30_000_000
    return request.upper()


@forkd.service(forkd.Lines(limit=64))
async def awaited(request: bytes) -> bytes:
    """Does the same; `hang` waits for a minute first."""
    await asyncio.sleep(60 if request == b"hang" else 0)
    return visit(request)


@forkd.stream
def session(connection: forkd.Connection) -> None:
    while data := connection.recv(100):
        connection.send(data)


@forkd.service(forkd.Netstrings())
def aloud(request: bytes) -> bytes:
    """Prints the request on standard error; `thread` does so by a thread's exception, `begun` without a newline."""
    word, _, text = request.decode(errors="surrogateescape").partition(" ")
    match word:
        case "thread":

            def fail() -> None:
                raise ValueError(text)

            thread = threading.Thread(target=fail, name="the helper")
            thread.start()
            thread.join()
        case "begun":
            print(text, end="", file=sys.stderr, flush=True)
        case "bytes":
            sys.stderr.buffer.write(request.partition(b" ")[2] + b"\n")
        case _:
            print(text, file=sys.stderr)
    return b"said"
