"""PORT LOOP: an asyncio Protocol, on asyncio's own loop or on uvloop.

It uses the same framing and handler as forkd's event workers, and one write for requests that came together. It has
no deadlines, no limits on connections and no figures.
"""

import asyncio
from typing import cast

from bench.peers.forkd_lines import lines
from bench.peers.loops import run
from forkd import Lines


class Line(asyncio.Protocol):
    def __init__(self) -> None:
        framing = Lines()
        self.feed = framing.feed
        self.encode = framing.encode
        # The function itself, as forkd's workers call it, not the service around it.
        self.handler = lines.handler

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.write = self.transport.write

    def data_received(self, data: bytes) -> None:
        requests = self.feed(data)
        if len(requests) == 1:
            self.write(self.encode(self.handler(requests[0])))
        elif requests:
            self.write(b"".join([self.encode(self.handler(request)) for request in requests]))

    # Stop reading from a client that does not read its replies.
    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


if __name__ == "__main__":
    run(Line)
