"""Socket options as the kernel takes and gives them."""

from __future__ import annotations

import socket
import struct
from typing import Final

# A timeout of 0 means for ever. It is set as ten years, for only a socket with a timeout has its
# calls interrupted by a signal whatever SA_RESTART says (signal(7)), which is how `hurry` works.
FOR_EVER: Final = 315_360_000.0


def timeval(seconds: float) -> bytes:
    """A struct timeval for SO_RCVTIMEO and SO_SNDTIMEO; at least a microsecond, for 0 would mean no limit."""
    microseconds = max(1, round((seconds or FOR_EVER) * 1_000_000))
    return struct.pack("ll", *divmod(microseconds, 1_000_000))


def plain(sock: socket.socket) -> socket.socket:
    """The same socket, which blocks and has no timeout of Python's, also after socket.setdefaulttimeout().

    An application may call that for clients of its own. A socket of ours would then not block, be waited for with a
    poll(2) before each call, and raise TimeoutError where the deadlines of `connection` are to be kept.
    """
    if sock.gettimeout() is not None:
        sock.setblocking(True)
    return sock


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """The process at the other end, and its user (unix(7), SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid
