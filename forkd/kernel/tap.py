"""Closing the tap: a listener lets no new client in while its accept queue is still served.

Clients in the accept queue believe that they are connected; closing the listener would reset them all.
Instead, the listener demands a hop count of 255, which no packet from an ordinary sender has (IP_MINTTL of
ip(7), meant for RFC 5082). The kernel then silently drops new connections; this needs no privilege. Clients
try again after a second, and are refused or reach a successor, which opens the tap of a socket that it took over.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

_IP_MINTTL: Final = 21
_IPV6_MINHOPCOUNT: Final = 73
_NEAREST: Final = 255


def close(listener: socket.socket) -> None:
    """Drops new connections to a TCP listener; its queue stays."""
    _ask(listener, _NEAREST)


def reopen(listener: socket.socket) -> None:
    """Lets clients in again. Connections that are already in the queue still need `admit`, one by one."""
    _ask(listener, 0)


def admit(accepted: socket.socket) -> None:
    """Lets packets in for a connection that inherited the closed tap, because its handshake was half done then."""
    _ask(accepted, 0)


def is_closed(sock: socket.socket) -> bool:
    """Whether the tap of a listener is closed, or was when a connection was made."""
    # Without these options, or for a socket of another family, nothing is ever closed.
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            return sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT) > 0
        if sock.family == socket.AF_INET:
            return sock.getsockopt(socket.IPPROTO_IP, _IP_MINTTL) > 0
    return False


def _ask(sock: socket.socket, hops: int) -> None:
    # A dual-stack socket needs both options. Without them, the tap simply stays open.
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, hops)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, hops)
