"""What a handler that is an `async def` sees of its connection: `Connection`, with what may take time to be awaited.

It is light: asyncio itself is the affair of `asynchronous`, which does the waiting.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, Protocol, TypeVar

from forkd.kernel.address import Address
from forkd.serving.connection import Connection, Reading
from forkd.serving.framing import Framing

Request = TypeVar("Request")

AT_EASE: Final = 65536
"""Bytes that a handler may leave to a slow client before its `send` waits."""


class Waiter(Protocol):
    """Who waits for the client on the handler's behalf."""

    async def recv(self, n: int) -> bytes: ...

    async def read(self, reading: Reading) -> bytes: ...

    def requests(self, framing: Framing[Request]) -> AsyncIterator[Request]: ...

    async def taken(self, all_but: int) -> None: ...


class AsyncConnection:
    """One client, from accept to close, for an `async def` handler; the names are those of `Connection`."""

    __slots__ = ("_plain", "_visit")

    def __init__(self, plain: Connection, visit: Waiter) -> None:
        self._plain = plain
        self._visit = visit

    @property
    def peer(self) -> Address:
        """The client's address, as it is seen from here."""
        return self._plain.peer

    @property
    def local(self) -> Address:
        """The address that the client called, also where the listener is a wildcard."""
        return self._plain.local

    @property
    def service(self) -> str:
        """The service's name."""
        return self._plain.service

    @property
    def number(self) -> int:
        """This worker's connections, counted from 1."""
        return self._plain.number

    @property
    def data(self) -> dict[Any, Any]:
        """The handler's own, from the first to the last call for this connection."""
        return self._plain.data

    @property
    def resources(self) -> Any:
        """What the service's lifespan gave."""
        return self._plain.resources

    async def recv(self, n: int) -> bytes:
        """At most `n` bytes, as soon as there are any; `b""` at the stream's end. See `Connection.recv`."""
        return await self._visit.recv(n)

    async def read_exactly(self, n: int) -> bytes:
        """Just `n` bytes; raises EOFError where the stream ends before. See `Connection.read_exactly`."""
        return await self._visit.read(self._plain.exactly(n))

    async def read_until(self, mark: bytes, limit: int = 65536) -> bytes:
        """The bytes up to and with `mark`; see `Connection.read_until`."""
        return await self._visit.read(self._plain.until(mark, limit))

    async def send(self, data: bytes) -> None:
        """Sends all of `data` as it is; waits while a slow client has much to take still. See `Connection.send`."""
        self._plain.send(data)
        await self._visit.taken(AT_EASE)

    async def requests(self, framing: Framing[Request]) -> AsyncIterator[Request]:
        """The requests that `framing` cuts out of the rest of the stream, to its end. See `Connection.requests`."""
        async for request in self._visit.requests(framing.copy()):
            yield request

    def close(self) -> None:
        """Ends our side: the client reads what was sent, then the end of the stream."""
        self._plain.close()
