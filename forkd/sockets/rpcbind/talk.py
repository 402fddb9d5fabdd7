"""A connection to the machine's port mapper, which makes the calls of its scripts as the socket allows.

It never waits: its owner calls it when the socket is ready, and gives it up when that takes too long.
`protocol` has the scripts and checks the answers; `registry` knows why they are run.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from forkd.sockets.rpcbind import protocol
from forkd.sockets.rpcbind.protocol import Procedure, RpcRecord, Script

Way: TypeAlias = tuple[int, object]
WAYS: Final[tuple[Way, ...]] = (
    (socket.AF_UNIX, "/run/rpcbind.sock"),
    (socket.AF_UNIX, "/var/run/rpcbind.sock"),
    (socket.AF_INET, ("127.0.0.1", protocol.PORT)),
)


class Talk:
    """One connection to a port mapper, and the scripts that run on it, one after another."""

    def __init__(
        self, sock: socket.socket, scripts: Sequence[tuple[str, Script]], settled: Callable[[str, str], None]
    ) -> None:
        self.sock = sock
        self.connected = False
        self._scripts = list(scripts)
        self._settled = settled
        self.number = int.from_bytes(os.urandom(3), "big")
        self._procedure = Procedure.GETPORT
        self._record = RpcRecord()

    def go_on(self) -> bool:
        """Does what can be done now; True when all scripts have ended. Raises OSError or UnreachableError."""
        if not self.connected:
            if failure := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(failure, os.strerror(failure))
            self.connected = True
            return self._say(None)
        try:
            data = self.sock.recv(protocol.LIMIT)
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it closed the connection")
        message = self._record.feed(data)
        return message is not None and self._say(protocol.answer(message, self.number, self._procedure))

    def _say(self, result: int | None) -> bool:
        """Makes the next call, after an answer to the last; True when there is none left."""
        while self._scripts:
            name, script = self._scripts[0]
            try:
                self._procedure, mapping = next(script) if result is None else script.send(result)
            except StopIteration as end:
                del self._scripts[0]
                self._settled(name, end.value)
                result = None
                continue
            self.number += 1
            self._record = RpcRecord()
            self.sock.send(protocol.call(self.number, self._procedure, mapping))  # 60 bytes, and the buffer is empty
            return False
        return True


def connect(ways: Sequence[Way]) -> socket.socket:
    """Connects, or starts to, to the first address where a process listens; OSError if there is none."""
    missing = OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    for family, target in ways:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(target)  # type: ignore[arg-type]
        except BlockingIOError as error:
            if error.errno == errno.EINPROGRESS:  # tcp(7); a unix socket's full queue is EAGAIN
                return sock
            sock.close()
            raise
        except OSError as error:
            sock.close()
            missing = error
        else:
            return sock
    raise missing
