"""Sockets as the kernel has them, whatever an application has told Python of all new ones."""

from __future__ import annotations

import socket


def plain(sock: socket.socket) -> socket.socket:
    """The same socket, which blocks and has no timeout of Python's, also after socket.setdefaulttimeout().

    An application may call that for clients of its own. A socket of ours would then not block, be waited for with a
    poll(2) before each call, and raise TimeoutError where the deadlines of `connection` are to be kept.
    """
    if sock.gettimeout() is not None:
        sock.setblocking(True)
    return sock
