"""A service in a test's own process: no daemon, no port, no waiting.

`connect` runs the real conversation over a socket pair in a thread of the test, so that a test of a
handler sees framing, hooks and deadlines as a client would, in microseconds.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forkd.connection import Connection, Limits
from forkd.conversation import Outcome, converse
from forkd.framing import Framing
from forkd.handler import Service
from forkd.scoreboard import ROW_BYTES, Meter

_TIMEOUT = 5.0


class Client:
    """The client's end of a conversation with a service under test.

    Requests are dressed and replies cut by the service's own framing. What does not come within
    five seconds raises TimeoutError. `outcome` tells how the conversation ended, once it has.
    """

    def __init__(self, sock: socket.socket, framing: Framing[Any] | None) -> None:
        self._socket = sock
        self._framing = framing.copy() if framing is not None else None
        self._replies: list[Any] = []
        self.outcome: Outcome | None = None
        sock.settimeout(_TIMEOUT)

    def call(self, request: bytes) -> Any:
        """Sends one request and gives its reply."""
        self.request(request)
        return self.reply()

    def request(self, request: bytes) -> None:
        """Sends one request, dressed by the framing."""
        self.send(request if self._framing is None else self._framing.encode(request))

    def reply(self) -> Any:
        """The next reply, cut by the framing; EOFError when the service ended its side instead."""
        if self._framing is None:
            raise TypeError("a stream has no framing: use recv(), read_exactly() or read_all()")
        while not self._replies:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError("the service ended the connection instead of a reply")
            self._replies.extend(self._framing.feed(data))
        return self._replies.pop(0)

    def send(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._socket.sendall(data)

    def recv(self, n: int) -> bytes:
        """At most `n` bytes of what the service sends; b"" at its end."""
        return self._socket.recv(n)

    def read_exactly(self, n: int) -> bytes:
        """Just `n` bytes; EOFError where the service ends before."""
        data = bytearray()
        while len(data) < n:
            piece = self._socket.recv(n - len(data))
            if not piece:
                raise EOFError(f"the service ended after {len(data)} of {n} bytes")
            data += piece
        return bytes(data)

    def end(self) -> None:
        """Ends the client's side, as a client does that has no more requests."""
        self._socket.shutdown(socket.SHUT_WR)

    def read_all(self) -> bytes:
        """Ends the client's side and gives all that the service still sends."""
        self.end()
        data = bytearray()
        while piece := self._socket.recv(65536):
            data += piece
        return bytes(data)


@contextmanager
def connect(service: Service[..., Any], *, limits: Limits = Limits(), name: str = "test") -> Iterator[Client]:  # noqa: B008
    """A client connected to `service`, which runs its lifespan and one conversation in a thread.

    `limits` are the deadlines, in seconds. An exception of the handler that no `on_error` turned
    into a reply is raised at the end of the `with` block.
    """
    ours, theirs = socket.socketpair()
    client = Client(ours, service.framing)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with service.alive() as resources:
                connection = Connection(theirs, service=name, limits=limits, resources=resources)
                connection.prepare()
                meter = Meter(memoryview(bytearray(ROW_BYTES)).cast("Q"))
                client.outcome = converse(connection, service, meter)
        except BaseException as error:
            failures.append(error)
        finally:
            theirs.close()

    thread = threading.Thread(target=run, name=f"forkd.testing: {name}", daemon=True)
    thread.start()
    try:
        yield client
    finally:
        ours.close()
        thread.join(_TIMEOUT)
    outcome = client.outcome
    if outcome is not None and outcome.end.value.startswith("handler") and outcome.error is not None:
        raise outcome.error
    if failures:
        raise failures[0]
