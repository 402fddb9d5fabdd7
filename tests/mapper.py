"""A port mapper for tests, on its own unix or TCP socket: it obeys, refuses, hangs, breaks off or lies."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from forkd.sockets.rpcbind.protocol import Procedure
from forkd.sockets.rpcbind.talk import Way

Key = tuple[int, int]
Result = int | bytes | None


class Mapper:
    """A port mapper like rpcbind(8), run in a thread.

    `table` holds its registrations, `asked` the calls it has received, `connections` the sockets they came on.
    A test may replace `obey`, which returns a result, bytes to send unchanged, or None to break off the connection.
    """

    def __init__(self, way: Path | str) -> None:
        self.table: dict[Key, int] = {}
        self.asked: list[tuple[str, Key, int]] = []
        self.obey: Callable[[Procedure, Key, int], Result] = self.answer
        self.hangs = False
        self._way = way
        self._open()

    def _open(self) -> None:
        if isinstance(self._way, Path):
            self._listener = socket.socket(socket.AF_UNIX)
            self._way.unlink(missing_ok=True)
            self._listener.bind(str(self._way))
            self._listener.listen()
        else:
            self._listener = socket.create_server((self._way, 0))
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def way(self) -> Way:
        """Where to reach it: address family and address."""
        return self._listener.family, self._listener.getsockname()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def answer(self, procedure: Procedure, key: Key, port: int) -> Result:
        """Does what rpcbind would do, and returns its result."""
        match procedure:
            case Procedure.SET:
                return self.table.setdefault(key, port) == port
            case Procedure.UNSET:
                return self.table.pop(key, None) is not None
            case Procedure.GETPORT:
                return self.table.get(key, 0)

    def restart(self) -> None:
        """Starts again on the same unix socket, with an empty table."""
        self.close()
        self.table.clear()
        self._open()

    def close(self) -> None:
        for sock in (self._listener, *self.connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close(2) would not
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                with connection:
                    self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while len(call := connection.recv(60, socket.MSG_WAITALL)) == 60:
                mark, number, *_ = words = struct.unpack(">15I", call)
                assert words[1:6] == (number, 0, 2, 100000, 2), words
                assert mark == 0x80000038
                procedure, key, port = Procedure(words[6]), words[11:13], words[14]
                assert words[7:11] == (0, 0, 0, 0)
                assert words[13] == 6
                self.asked.append((procedure.name, key, port))
                result = None if self.hangs else self.obey(procedure, key, port)
                if isinstance(result, bytes):
                    connection.sendall(result)
                elif result is not None:
                    connection.sendall(struct.pack(">8I", 0x8000001C, number, 1, 0, 0, 0, 0, result))
                elif not self.hangs:
                    return
