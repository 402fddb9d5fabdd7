"""A connection as an `async def` handler sees it: `Connection`, whose waiting methods are awaited here.

It does not import asyncio: `async_visit` does the waiting.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, Protocol, TypeVar

from forkd.kernel.address import Address
from forkd.serving.connection import Connection, Reading
from forkd.serving.framing import Framing

Request = TypeVar("Request")

AT_EASE: Final = 65536
"""Bytes that a slow client may still have to take before a handler's `send` waits."""


class Waiter(Protocol):
    """Waits for the client on the handler's behalf."""

    async def recv(self, n: int) -> bytes: ...

    async def read(self, reading: Reading) -> bytes: ...

    def requests(self, framing: Framing[Request]) -> AsyncIterator[Request]: ...

    async def taken(self, all_but: int) -> None: ...


class AsyncConnection:
    """One client, from accept to close, for an `async def` handler. The names are those of `Connection`.

    The methods that may wait (`recv`, `read_exactly`, `read_until`, `send`, `requests`) are awaited, and raise what
    their namesakes raise. The coroutine is cancelled if its request takes longer than `request_timeout`, or if the
    client does not take its replies within `write_timeout` while the coroutine waits for something else.

        @forkd.stream
        async def echo(connection: forkd.AsyncConnection) -> None:
            while data := await connection.recv(4096):
                await connection.send(data)
    """

    __slots__ = ("_plain", "_visit")

    def __init__(self, plain: Connection, visit: Waiter) -> None:
        self._plain = plain
        self._visit = visit

    @property
    def peer(self) -> Address:
        """The client's address, as seen from here."""
        return self._plain.peer

    @property
    def local(self) -> Address:
        """The address that the client called, even if the listener is a wildcard."""
        return self._plain.local

    @property
    def service(self) -> str:
        """The name of the service, as in the settings."""
        return self._plain.service

    @property
    def number(self) -> int:
        """The number of this connection in its worker, counted from 1."""
        return self._plain.number

    @property
    def data(self) -> dict[Any, Any]:
        """A dictionary for the handler's own use. It lives as long as the connection."""
        return self._plain.data

    @property
    def resources(self) -> Any:
        """What the service's lifespan yielded; None without one."""
        return self._plain.resources

    async def recv(self, n: int) -> bytes:
        """Returns at most `n` bytes as soon as there are any, `b""` at the end of the stream. See `Connection.recv`."""
        return await self._visit.recv(n)

    async def read_exactly(self, n: int) -> bytes:
        """Returns exactly `n` bytes; raises EOFError if the stream ends before. See `Connection.read_exactly`."""
        return await self._visit.read(self._plain.exactly(n))

    async def read_until(self, mark: bytes, limit: int = 65536) -> bytes:
        """Returns the bytes up to and including `mark`. See `Connection.read_until`."""
        return await self._visit.read(self._plain.until(mark, limit))

    async def send(self, data: bytes) -> None:
        """Sends all of `data` as it is, without framing.

        Waits while the client still has more than 64 KiB to take. See `Connection.send`.
        """
        self._plain.send(data)
        await self._visit.taken(AT_EASE)

    def requests(self, framing: Framing[Request]) -> AsyncIterator[Request]:
        """Iterates over the requests that `framing` cuts out of the rest of the stream, until its end (`async for`).

        See `Connection.requests`.
        """
        return self._visit.requests(framing.copy())

    def close(self) -> None:
        """Ends our side: the client reads what was sent, then the end of the stream."""
        self._plain.close()
