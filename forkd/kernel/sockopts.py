"""Socket options in the form that the kernel takes and returns them."""

from __future__ import annotations

import socket
import struct
from typing import Final

# A timeout of 0 means no limit. It is set as ten years, because only on a socket with a timeout does a signal
# interrupt calls whatever SA_RESTART says (signal(7)), which `Connection.hurry` depends on.
FOR_EVER: Final = 315_360_000.0


def timeval(seconds: float) -> bytes:
    """Returns a struct timeval for SO_RCVTIMEO and SO_SNDTIMEO. At least a microsecond: 0 would mean no limit."""
    microseconds = max(1, round((seconds or FOR_EVER) * 1_000_000))
    return struct.pack("ll", *divmod(microseconds, 1_000_000))


def plain(sock: socket.socket) -> socket.socket:
    """Returns the same socket, made blocking and without Python's timeout, even after socket.setdefaulttimeout().

    An application may set that default for its own clients. Our sockets would then be non-blocking, cost a poll(2)
    before each call, and raise TimeoutError in place of the deadlines that `serving.connection` keeps.
    """
    if sock.gettimeout() is not None:
        sock.setblocking(True)
    return sock


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """Returns the PID and the uid of the process at the other end (unix(7), SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid
