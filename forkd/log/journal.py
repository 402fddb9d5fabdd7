"""systemd's journal: detects a descriptor that leads there, and speaks the native protocol.

See systemd.io/JOURNAL_NATIVE_PROTOCOL. An entry is one datagram, so its lines stay together and its fields can be
searched (`journalctl FORKD_PEER=...`). Sending never waits; if it fails, the caller can still write to the stream that
systemd connected to standard error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Final

_SOCKET: Final = "/run/systemd/journal/socket"
_LENGTH: Final = struct.Struct("<Q")
_FD: Final = struct.Struct("i")
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_TOO_LONG: Final = {errno.EMSGSIZE, errno.ENOBUFS}


def found() -> Journal | None:
    """Returns the journal that systemd announces to what it starts (systemd.exec(5), JOURNAL_STREAM), or None."""
    numbers = re.fullmatch(r"(\d+):(\d+)", os.environ.get("JOURNAL_STREAM", ""))
    return None if numbers is None else Journal(int(numbers[1]), int(numbers[2]))


class Journal:
    """The journal whose stream is inode `inode` on device `device` and whose socket is at `path`."""

    def __init__(self, device: int, inode: int, path: str = _SOCKET) -> None:
        self._stream = (device, inode)
        self._path = path

    def is_at(self, fd: int) -> bool:
        """Whether writing to `fd` goes to the journal. The answer changes when the log is redirected."""
        file = os.fstat(fd)
        return (file.st_dev, file.st_ino) == self._stream

    def send(self, entry: Mapping[str, str]) -> None:
        """Sends an entry. Raises OSError (such as BlockingIOError) if it cannot be sent at once."""
        data = datagram(entry)
        # A new socket each time: the journal may be restarted, and an application that closes descriptors it does
        # not know could close one that we kept, whose number may then be reused.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(data, self._path)
            except OSError as error:
                if error.errno not in _TOO_LONG:
                    raise
                self._send_file(sock, data)

    def _send_file(self, sock: socket.socket, data: bytes) -> None:
        """Sends an entry that is too long for a datagram, as a sealed memfd."""
        memfd = os.memfd_create("forkd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(memfd, rest) :]
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(memfd))
            sock.sendmsg([], [rights], 0, self._path)  # not send_fds, which forgets the address
        finally:
            os.close(memfd)


def datagram(entry: Mapping[str, str]) -> bytes:
    """Encodes an entry: `NAME=value`, or name, length and value if the value has several lines."""
    parts = bytearray()
    for name, value in entry.items():
        data = value.encode(errors="backslashreplace")
        if b"\n" in data:
            parts += name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"
        else:
            parts += name.encode() + b"=" + data + b"\n"
    return bytes(parts)
