"""PORT LOOP: the store of examples/keyvalue.py in an asyncio Protocol, on asyncio's own loop or on uvloop."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from bench.peers.loops import run
from examples.keyvalue import Memory, Resp, answer

# `answer` needs a connection only for its store.
connection = cast(Any, SimpleNamespace(resources=Memory()))


class Commands(asyncio.Protocol):
    def __init__(self) -> None:
        self.feed = Resp().feed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.write = self.transport.write

    def data_received(self, data: bytes) -> None:
        requests = self.feed(data)
        if len(requests) == 1:
            self.write(answer(requests[0], connection))
        elif requests:
            self.write(b"".join([answer(request, connection) for request in requests]))

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


if __name__ == "__main__":
    run(Commands)
