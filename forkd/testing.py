"""A service in a test's own process: no daemon, no port, no waiting.

`connect` runs the real conversation over a socket pair in a thread of the test, so that a test of a
handler sees framing, hooks and deadlines as a client would, in microseconds.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic
from typing import Any

from forkd.ipc.deadlines import Deadlines
from forkd.ipc.meter import Meter
from forkd.ipc.scoreboard import ROW_BYTES
from forkd.kernel.sockopts import plain
from forkd.serving.async_visit import AsyncVisit
from forkd.serving.connection import Connection
from forkd.serving.exchange import converse
from forkd.serving.framing import Framing
from forkd.serving.outcome import End, Outcome
from forkd.serving.service import Service
from forkd.serving.visit import IN, OUT, Visitor


class Client:
    """The client's end of a conversation with a service under test.

    Requests are dressed and replies cut by the service's own framing. What does not come within
    `timeout` seconds raises TimeoutError.
    """

    def __init__(self, sock: socket.socket, framing: Framing[Any] | None, session: _Session, timeout: float) -> None:
        self._socket = sock
        self._framing = framing.copy() if framing is not None else None
        self._replies: list[Any] = []
        self._session = session
        sock.settimeout(timeout)

    @property
    def outcome(self) -> Outcome:
        """How the conversation ended; waits until it has."""
        self._session.wait()
        if self._session.outcome is None:
            raise EOFError("the lifespan failed: there was no conversation")
        return self._session.outcome

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
def connect(
    service: Service[..., Any],
    *,
    limits: Deadlines = Deadlines(),  # noqa: B008  # immutable
    name: str = "test",
    timeout: float = 5.0,
) -> Iterator[Client]:
    """A client connected to `service`, which runs its lifespan and one conversation in a thread.

    `limits` are the deadlines, in seconds; `timeout` is the client's patience. An exception of the
    handler that no `on_error` turned into a reply is raised at the end of the `with` block, also
    when the block fails over its consequences (their EOFError is its context).
    """
    ours, theirs = socket.socketpair()
    with plain(theirs):
        session = _Session(service, theirs, limits, name, timeout)
        try:
            with ours:
                yield Client(ours, service.framing, session, timeout)
        except Exception:
            session.finish()
            raise
        session.wait()
        session.finish()


class _Session:
    """The service's side: a thread, and what came of it."""

    def __init__(
        self, service: Service[..., Any], sock: socket.socket, limits: Deadlines, name: str, timeout: float
    ) -> None:
        self._service = service
        self._socket = sock
        self._limits = limits
        self._name = name
        self._timeout = timeout
        self._error: BaseException | None = None
        self.outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._run, name=f"forkd.testing: {name}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join(self._timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the service still runs after {self._timeout:g} seconds")

    def finish(self) -> None:
        """Raises what the application did wrong, when the thread has ended."""
        self._thread.join(self._timeout)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        connection = Connection(
            self._socket, service=self._name, limits=self._limits, peer="", parks=self._service.is_async
        )
        try:
            with self._service.alive() as connection.resources:
                connection.prepare()
                meter = Meter(memoryview(bytearray(ROW_BYTES)).cast("Q"))
                if self._service.is_async:
                    self.outcome = asyncio.run(
                        _Alone.serve(connection, self._socket, self._service, self._limits, meter)
                    )
                else:
                    self.outcome = converse(connection, self._service, meter)
                if self.outcome.end in (End.ERROR, End.EXIT, End.REQUEST):
                    self._error = self.outcome.error
        except BaseException as error:
            self._error = error
        finally:
            # Not closed here: unread input would reset the client, from which a worker's lingering keeps it.
            connection.close()


class _Alone:
    """The host of one visit, for a handler that is a coroutine."""

    def __init__(self, limits: Deadlines) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[Outcome] = self._loop.create_future()
        self._visit: Visitor | None = None

    @classmethod
    async def serve(
        cls, connection: Connection, sock: socket.socket, service: Service[..., Any], limits: Deadlines, meter: Meter
    ) -> Outcome:
        alone = cls(limits)
        visit = alone._visit = AsyncVisit(sock, connection, service, meter, limits, alone)
        async with service.alive_awaited() or nullcontext(connection.resources) as connection.resources:
            alone.watch(visit)
            alone.due_by(alone.now)
            visit.ready(0)
            return await alone._outcome

    @property
    def now(self) -> float:
        return monotonic()

    def due_by(self, when: float) -> None:
        self._loop.call_later(max(0.0, min(when - self.now, 86400.0)), self._look)

    def watch(self, visit: Visitor) -> None:
        self._loop.remove_reader(visit.fd)
        self._loop.remove_writer(visit.fd)
        if visit.interest & IN:
            self._loop.add_reader(visit.fd, visit.ready, IN)
        if visit.interest & OUT:
            self._loop.add_writer(visit.fd, visit.ready, OUT)

    def ended(self, visit: Visitor, outcome: Outcome) -> None:
        self._loop.remove_reader(visit.fd)
        self._loop.remove_writer(visit.fd)
        self._outcome.set_result(outcome)

    def failed(self, error: BaseException) -> None:
        self._outcome.set_exception(error)

    def _look(self) -> None:
        """Ends the visit when its time is over; looks again before any deadline can be that is set meanwhile."""
        if self._visit is None or self._outcome.done():
            return
        if self._visit.due() <= self.now:
            self._visit.expire()
        self.due_by(min([self._visit.due(), *(self.now + each for each in self._limits if each)]))
