"""Runs a service in a test's own process, without a daemon, a port or a wait.

`connect` runs a real conversation over a socket pair, in a thread of the test. The handler sees framing, hooks and
deadlines as with a real client, and a request takes microseconds.

    from forkd.testing import connect

    def test_shout() -> None:
        with connect(shout) as client:
            assert client.call(b"hello") == b"HELLO"
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
    """The client's end of a conversation with a service under test; `connect` makes it.

    The service's own framing encodes requests and cuts replies. A read that does not finish within the client's
    `timeout` raises TimeoutError.
    """

    def __init__(self, sock: socket.socket, framing: Framing[Any] | None, session: _Session, timeout: float) -> None:
        self._socket = sock
        self._framing = framing.copy() if framing is not None else None
        self._replies: list[Any] = []
        self._session = session
        sock.settimeout(timeout)

    @property
    def outcome(self) -> Outcome:
        """How the conversation ended: `outcome.end`, and `outcome.error` or None. Waits until it has ended.

        Raises TimeoutError if the service is still running after `timeout` seconds, and EOFError if the lifespan
        failed, so that there was no conversation.
        """
        self._session.wait()
        if self._session.outcome is None:
            raise EOFError("the lifespan failed: there was no conversation")
        return self._session.outcome

    def call(self, request: bytes) -> Any:
        """Sends one request and returns its reply. Raises what `request` and `reply` raise."""
        self.request(request)
        return self.reply()

    def request(self, request: bytes) -> None:
        """Sends one request, encoded by the framing; for a stream, the bytes as they are."""
        self.send(request if self._framing is None else self._framing.encode(request))

    def reply(self) -> Any:
        """Returns the next reply, cut by the framing.

        Raises EOFError if the service ended the connection instead, TimeoutError, and TypeError for a stream.
        """
        if self._framing is None:
            raise TypeError("a stream has no framing: use recv(), read_exactly() or read_all()")
        while not self._replies:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError("the service ended the connection instead of replying")
            self._replies.extend(self._framing.feed(data))
        return self._replies.pop(0)

    def send(self, data: bytes) -> None:
        """Sends bytes as they are, without framing."""
        self._socket.sendall(data)

    def recv(self, n: int) -> bytes:
        """Returns at most `n` bytes of what the service sends; `b""` at the end."""
        return self._socket.recv(n)

    def read_exactly(self, n: int) -> bytes:
        """Returns exactly `n` bytes. Raises EOFError if the service ends before, and TimeoutError."""
        data = bytearray()
        while len(data) < n:
            piece = self._socket.recv(n - len(data))
            if not piece:
                raise EOFError(f"the service ended after {len(data)} of {n} bytes")
            data += piece
        return bytes(data)

    def end(self) -> None:
        """Ends the client's side, like a client that has no more requests. Replies can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def read_all(self) -> bytes:
        """Ends the client's side and returns everything that the service still sends."""
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
    """Context manager: a `Client` connected to `service`, whose lifespan and conversation run in a thread.

    `limits` are the deadlines in seconds (`idle_timeout`, `read_timeout`, `write_timeout`, `request_timeout`; 0 is for
    ever), `name` is what `connection.service` says, `timeout` is how many seconds the client waits for anything.

    An exception of the handler that no `on_error` turned into a reply is raised at the end of the `with` block. If the
    block itself fails because of it, as with an EOFError from `reply`, that error becomes its context. TimeoutError is
    raised if the service is still running `timeout` seconds after the client has gone.
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
    """The service's side: a thread, and how its conversation ended."""

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
            raise TimeoutError(f"the service is still running after {self._timeout:g} seconds")

    def finish(self) -> None:
        """Waits for the thread; raises the application's error if there was one."""
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
            # Not closed here: unread input would reset the client. In a worker, lingering prevents that.
            connection.close()


class _Alone:
    """The host of a single visit, for an `async def` handler."""

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
        """Ends the visit if its time is over; looks again no later than any deadline set until then can pass."""
        if self._visit is None or self._outcome.done():
            return
        if self._visit.due() <= self.now:
            self._visit.expire()
        self.due_by(min([self._visit.due(), *(self.now + each for each in self._limits if each)]))
