"""write(2) that does not wait for whoever reads at the other end, and changes nothing for others.

A descriptor such as standard error leads to an open file description that is shared with strangers,
a shell or a supervisor: O_NONBLOCK belongs to that description, and so is not ours to set.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def put(fd: int, data: bytes) -> int:
    """Writes as much as goes at once, and gives how much that was; BlockingIOError when nothing goes.

    Regular files take everything, or fail with the reason; a terminal is waited for, as by everybody.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _send(fd, data)
    if stat.S_ISFIFO(mode) and os.get_blocking(fd):
        return _fill(fd, data)
    return os.write(fd, data)


def open_pipe(fd: int) -> int | None:
    """An open file description of our own for the pipe behind `fd`, which never waits; None where none can be had.

    It takes the rights of whoever made the pipe, so it is to be had before they are dropped, if at all.
    """
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # another user's pipe, one without a reader, no /proc
        pass
    return None


def _send(fd: int, data: bytes) -> int:
    # By libc: a socket object would, if an application has set a default timeout, set O_NONBLOCK.
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    sent = int(_LIBC.send(fd, data, ctypes.c_size_t(len(data)), flags))
    if sent < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return sent


def _fill(fd: int, data: bytes) -> int:
    """Writes into a pipe that could not be opened anew."""
    try:
        return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    # Linux before 6.5 writes so to no pipe, and later ones to none that splice(2) was used on. But
    # splice itself can be told not to wait; only it takes a page of the pipe for the shortest line.
    source, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        moved = os.splice(source, fd, os.write(into, data), flags=os.SPLICE_F_NONBLOCK)
    finally:
        os.close(source)
        os.close(into)
    if not moved:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return moved
