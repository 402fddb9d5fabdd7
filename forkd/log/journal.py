"""systemd's journal: whether a descriptor leads there, and its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

An entry is one datagram, so that its lines stay together and its facts can be asked for (`journalctl FORKD_PEER=...`).
Sending never waits; whoever could not send may still write to the stream that systemd has made of standard error.
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
    """The journal, as systemd tells of it to what it starts (systemd.exec(5), JOURNAL_STREAM)."""
    numbers = re.fullmatch(r"(\d+):(\d+)", os.environ.get("JOURNAL_STREAM", ""))
    return None if numbers is None else Journal(int(numbers[1]), int(numbers[2]))


class Journal:
    """The journal whose stream is inode `inode` of device `device`, and that takes entries at socket `path`."""

    def __init__(self, device: int, inode: int, path: str = _SOCKET) -> None:
        self._stream = (device, inode)
        self._path = path

    def is_at(self, fd: int) -> bool:
        """Whether what is written to `fd` goes to the journal, which may change whenever a log is led elsewhere."""
        file = os.fstat(fd)
        return (file.st_dev, file.st_ino) == self._stream

    def send(self, entry: Mapping[str, str]) -> None:
        """Sends an entry; OSError when it can't go at once, BlockingIOError among them."""
        data = datagram(entry)
        # A socket anew for each: the journal may be started again, and one that was kept could be closed by an
        # application which closes all that it does not know, and its number be another's by then.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(data, self._path)
            except OSError as error:
                if error.errno not in _TOO_LONG:
                    raise
                self._send_file(sock, data)

    def _send_file(self, sock: socket.socket, data: bytes) -> None:
        """Hands over what is too long for a datagram in a memfd that nobody can change any more."""
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
    """An entry in the native protocol: `NAME=value`, or, for more than a line, the name, the length and the value."""
    parts = bytearray()
    for name, value in entry.items():
        data = value.encode(errors="backslashreplace")
        if b"\n" in data:
            parts += name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"
        else:
            parts += name.encode() + b"=" + data + b"\n"
    return bytes(parts)
