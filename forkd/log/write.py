"""Writes without waiting for the reader, and without changing anything for other users of the descriptor.

A descriptor such as standard error leads to an open file description that is shared with other programs, such
as a shell or a supervisor. O_NONBLOCK belongs to that description, so it is not ours to set.
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
    """Writes as much as possible at once; returns the number of bytes. Raises BlockingIOError if that is none.

    A regular file takes everything or fails with the reason; a terminal may make us wait, as any program.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _send(fd, data)
    if stat.S_ISFIFO(mode) and os.get_blocking(fd):
        return _fill(fd, data)
    return os.write(fd, data)


def open_pipe(fd: int) -> int | None:
    """Opens the pipe behind `fd` again, non-blocking, as an open file description of our own; None if that fails.

    It takes the rights of the user who made the pipe, so call it before dropping privileges.
    """
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # another user's pipe, a pipe without a reader, or no /proc
        pass
    return None


def _send(fd: int, data: bytes) -> int:
    # Through libc: a Python socket would set O_NONBLOCK if an application has set a default timeout.
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    sent = int(_LIBC.send(fd, data, ctypes.c_size_t(len(data)), flags))
    if sent < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return sent


def _fill(fd: int, data: bytes) -> int:
    """Writes to a pipe that could not be opened again."""
    try:
        return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    # RWF_NOWAIT does not work on pipes before Linux 6.5, and later not on a pipe that splice(2) was used on. But
    # splice itself has a flag not to wait; its cost is that even the shortest line takes a page of the pipe.
    source, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        moved = os.splice(source, fd, os.write(into, data), flags=os.SPLICE_F_NONBLOCK)
    finally:
        os.close(source)
        os.close(into)
    if not moved:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return moved
