"""Closing the tap: a listener that lets nobody else in, while its queue is still served.

Clients in the accept queue believe that they are connected, and closing the listener would reset
every one of them. A listener that asks for a hop count of 255, which no packet of an ordinary
sender has left (IP_MINTTL of ip(7), made for RFC 5082), drops new calls in silence instead, and
needs no privilege. A caller calls again after a second: then it is refused, or reaches a successor.
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


def admit(accepted: socket.socket) -> None:
    """Lets packets in for a connection whose handshake was half done when the tap was closed, and so inherited it."""
    _ask(accepted, 0)


def _ask(sock: socket.socket, hops: int) -> None:
    # A dual-stack socket is asked twice. Where the kernel knows no such option, the old way has to do.
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, hops)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, hops)
