"""Closing the tap: a listener that lets nobody else in, while its queue is still served.

Clients in the accept queue believe that they are connected, and closing the listener would reset
every one of them. A listener that asks for a hop count of 255, which no packet of an ordinary
sender has left (IP_MINTTL of ip(7), made for RFC 5082), drops new calls in silence instead, and
needs no privilege. A caller calls again after a second: then it is refused, or reaches a successor,
which opens the tap again where it was left the very socket.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

_IP_MINTTL: Final = 21
_IPV6_MINHOPCOUNT: Final = 73
_NEAREST: Final = 255


def close(listener: socket.socket) -> None:
    """Drops new calls to a TCP listener; its queue stays."""
    _ask(listener, _NEAREST)


def reopen(listener: socket.socket) -> None:
    """Lets callers in again; those that are in the queue already are still to be admitted, each by itself."""
    _ask(listener, 0)


def admit(accepted: socket.socket) -> None:
    """Lets packets in for a connection whose handshake was half done when the tap was closed, and so inherited it."""
    _ask(accepted, 0)


def is_closed(sock: socket.socket) -> bool:
    """Whether the tap of a listener is closed, or was when a connection came to be."""
    # A kernel that knows one of the options not, or a socket of another family, has nothing closed.
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            return sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT) > 0
        if sock.family == socket.AF_INET:
            return sock.getsockopt(socket.IPPROTO_IP, _IP_MINTTL) > 0
    return False


def _ask(sock: socket.socket, hops: int) -> None:
    # A dual-stack socket is asked twice. Where the kernel knows no such option, the old way has to do.
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, hops)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, hops)
