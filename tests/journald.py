"""A stand-in for systemd's journal: its socket, and the entries that it would read."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from pathlib import Path
from types import TracebackType

_CREDENTIALS = struct.Struct("iII")
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Journald:
    """Listens at `path`. `sealed` is true if the last entry came in sealed memory, which no one can change."""

    def __init__(self, path: Path, *, timeout: float = 10.0) -> None:
        self.path = path
        self.sealed = False
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.settimeout(timeout)
        self._sock.bind(str(path))

    def __enter__(self) -> Journald:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def entry(self) -> dict[str, str]:
        """Returns the next entry, with the sender's `_PID`, which comes from the kernel."""
        data, ancillary, _, _ = self._sock.recvmsg(1 << 20, 256)
        pid = 0
        for _, kind, content in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                pid, _, _ = _CREDENTIALS.unpack(content)
            else:
                (memfd,) = array.array("i", content)
                self.sealed = fcntl.fcntl(memfd, fcntl.F_GET_SEALS) == _SEALS
                data = os.pread(memfd, os.fstat(memfd).st_size, 0)
                os.close(memfd)
        return read(data) | {"_PID": str(pid)}


def read(data: bytes) -> dict[str, str]:
    """Returns the fields of an entry, as systemd's description of the native journal protocol defines them."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, is_line, value = line.partition(b"=")
        if not is_line:
            (length,) = struct.unpack_from("<Q", data)
            value, end, data = data[8 : 8 + length], data[8 + length : 9 + length], data[9 + length :]
            assert (len(value), end) == (length, b"\n")
        assert name.decode() not in found
        found[name.decode()] = value.decode()
    return found
