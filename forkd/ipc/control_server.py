"""The control socket: commands to a running forkd, one JSON object per line, served in the master's own wait.

A request is `{"command": NAME, ...}`, an answer `{"ok": true, "result": ...}` or
`{"ok": false, "error": TEXT, "status": EXIT}`. The master performs the command; its answer may come later, and
other callers are served until then. Only root and the master's own user are accepted.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from msgspec import Struct

from forkd.errors import Exit
from forkd.kernel import procfs
from forkd.kernel.owned_file import OwnedFile
from forkd.kernel.poller import Poller
from forkd.kernel.sockopts import peer_credentials
from forkd.kernel.unix_socket import bind_unix

LINE_BYTES: Final = 65536
CLIENTS: Final = 32

Answer = Callable[[dict[str, Any]], None]
Obey = Callable[[dict[str, Any], Answer], None]


class CallerEstate(Struct):
    """A caller as it is handed on: the line it has begun, what is still to be sent to it, and whether it waits."""

    socket: socket.socket
    said: bytes
    untold: bytes
    waits: bool


class ControlEstate(Struct):
    """A control socket as one program passes it to the next."""

    path: str
    socket: socket.socket
    leaving: OwnedFile
    callers: list[CallerEstate]

    def descriptors(self) -> list[int]:
        return [self.socket.fileno(), *(caller.socket.fileno() for caller in self.callers)]


def success(result: Any = None) -> dict[str, Any]:
    return {"ok": True, "result": result}


def failure(error: str, status: int = Exit.FAILED) -> dict[str, Any]:
    return {"ok": False, "error": error, "status": int(status)}


class ControlServer:
    """The listening end. `obey` is called with each command and the function that answers it."""

    def __init__(self, path: str, poller: Poller, obey: Obey, left: ControlEstate | None = None) -> None:
        self.socket = bind_unix(path, 0o600) if left is None else left.socket
        self.leaving = OwnedFile.at(path) if left is None else left.leaving
        self._path = path
        self._poller = poller
        self._obey = obey
        self._clients: set[_Caller] = set()
        self._reserve = os.open(os.devnull, os.O_RDONLY)
        self.socket.setblocking(False)
        poller.watch(self.socket.fileno(), self._accept)
        self.waiting: list[Answer] = []
        for caller in left.callers if left is not None else []:
            client = _Caller(caller.socket, poller, obey, self._clients, caller)
            if caller.waits:
                self.waiting.append(client.answer)

    def leave(self, waiting: Sequence[Answer]) -> ControlEstate:
        """Hands everything to the program that takes our place; callers in `waiting` still need an answer."""
        callers = [client.leave(waits=client.answer in waiting) for client in self._clients]
        return ControlEstate(self._path, self.socket, self.leaving, callers)

    def reopen(self) -> OwnedFile:
        """Replaces a socket whose file is gone; callers keep their connections. On OSError nothing has changed."""
        fresh = bind_unix(self._path, 0o600)
        self.leaving = OwnedFile.at(self._path)
        while self._let_in():
            pass  # they connected before the file was removed
        self._poller.unwatch(self.socket.fileno())
        self.socket.close()
        self.socket = fresh
        self._poller.watch(fresh.fileno(), self._accept)
        return self.leaving

    def close(self) -> None:
        """Closes every connection and removes the socket's file."""
        for client in list(self._clients):
            client.close()
        self._poller.unwatch(self.socket.fileno())
        self.leaving.remove()
        self.socket.close()
        os.close(self._reserve)

    def _accept(self) -> None:
        self._let_in()

    def _let_in(self) -> bool:
        """Accepts one caller; False if there is none, or no descriptor for it."""
        try:
            sock, _ = self.socket.accept()
        except BlockingIOError:
            return False
        except OSError:
            self._turn_away()
            return False
        if len(self._clients) >= CLIENTS or not _trusted(sock):
            sock.close()
        else:
            _Caller(sock, self._poller, self._obey, self._clients)
        return True

    def _turn_away(self) -> None:
        """Accepts a caller with the reserve descriptor and closes it: left in the queue, it would keep waking us."""
        os.close(self._reserve)
        with suppress(OSError):
            sock, _ = self.socket.accept()
            sock.close()
        self._reserve = os.open(os.devnull, os.O_RDONLY)


class _Caller:
    """One caller: the lines it sends, and the answers that it has not read yet."""

    def __init__(
        self,
        sock: socket.socket,
        poller: Poller,
        obey: Obey,
        all_of_them: set[_Caller],
        left: CallerEstate | None = None,
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._poller = poller
        self._obey = obey
        self._all = all_of_them
        self._in = bytearray(b"" if left is None else left.said)
        self._out = bytearray(b"" if left is None else left.untold)
        self._open = True
        all_of_them.add(self)
        poller.watch(sock.fileno(), self._ready, writing=bool(self._out))

    def leave(self, *, waits: bool) -> CallerEstate:
        return CallerEstate(self._socket, bytes(self._in), bytes(self._out), waits)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._all.discard(self)
            self._poller.unwatch(self._socket.fileno())
            self._socket.close()

    def _ready(self) -> None:
        self._write()
        if not self._open:
            return
        try:
            data = self._socket.recv(LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._in += data
        if not data or len(self._in) > LINE_BYTES:
            self.close()
            return
        while b"\n" in self._in and self._open:
            line, _, rest = bytes(self._in).partition(b"\n")
            self._in = bytearray(rest)
            self._handle(line)

    def _handle(self, line: bytes) -> None:
        try:
            command = json.loads(line)
        except (ValueError, RecursionError):
            command = None
        if isinstance(command, dict) and all(isinstance(value, str | int) for value in command.values()):
            self._obey(command, self.answer)
        else:
            self.answer(failure("a command is one JSON object per line, of strings and numbers", Exit.USAGE))

    def answer(self, answer: dict[str, Any]) -> None:
        if self._open:
            self._out += json.dumps(answer).encode() + b"\n"
            self._write()

    def _write(self) -> None:
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._poller.watch(self._socket.fileno(), self._ready, writing=bool(self._out))


def _trusted(sock: socket.socket) -> bool:
    """Whether the caller is root, or our own user and not a process of an application that runs as the same user."""
    pid, uid = peer_credentials(sock)
    return uid == 0 or (uid == os.geteuid() and not procfs.may_descend(pid))
