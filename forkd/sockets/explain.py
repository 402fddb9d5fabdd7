"""Puts the errno of a failed connection into words.

The words come from tables, so every errno can be tested without a network.
"""

from __future__ import annotations

import errno
import socket
from typing import Final, TypeAlias

from forkd.errors import BrokenOffError, ForkdError, TimedOutError, UnreachableError
from forkd.kernel.address import Address

_Meanings: TypeAlias = dict[int, str]

# The meaning of an errno at each step. EAI_ numbers are negative, so they can share a table with errno(3).
LOOKUP: Final[_Meanings] = dict.fromkeys(
    (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY), "no such host; check the name (getent ahosts HOST)"
) | dict.fromkeys(
    (socket.EAI_AGAIN, socket.EAI_FAIL), "the host is unknown because no name server answers; check /etc/resolv.conf"
)

_TCP: Final[_Meanings] = LOOKUP | {
    errno.ECONNREFUSED: "no process listens there; is the server running (ss -ltn), is the port right?",
    errno.ETIMEDOUT: "no answer {within}; is it the right host, and does a firewall drop the packets?",
    errno.EHOSTUNREACH: "host unreachable: it is down or a router refuses; look at ip neigh",
    errno.ENETUNREACH: "network unreachable: there is no route to it; look at ip route get",
    errno.ENETDOWN: "network unreachable: the network interface is down; look at ip link",
    errno.EACCES: "a route or a firewall prohibits it; look at ip route get and nft list ruleset",
    errno.EPERM: "a firewall or a security policy prohibits it; look at nft list ruleset",
    errno.EINVAL: "the route is a black hole, or a link-local address lacks its %interface; look at ip route get",
    errno.EADDRNOTAVAIL: "no local address or port is free; look at ss -tan and ip addr",
    errno.EADDRINUSE: "another connection uses the local port; look at ss -tan",
    errno.EAFNOSUPPORT: "this machine does not support that kind of address; is IPv6 switched off?",
    errno.ENOPROTOOPT: "the host refuses TCP itself; look at its firewall",
    errno.ECONNRESET: "the server closed the connection at once; look at its log",
}

_UNIX: Final[_Meanings] = {
    errno.ECONNREFUSED: "no process listens there, and a socket file would be stale; is the server running (ss -lx)?",
    errno.ENOENT: "no such socket; is the server running (ss -lx), is the path right?",
    errno.ENOTDIR: "no such socket: its folder is a file; is the path right?",
    errno.ENOTSOCK: "the file is not a socket; is the path right?",
    errno.EPROTOTYPE: "the socket is not a stream socket; is the path right?",
    errno.EACCES: "you may not write to the socket or enter its folder; look at namei -l",
    errno.EPERM: "a security policy prohibits it; look at the kernel's log",
    # A unix listener's full accept queue blocks connect(2) until the socket's send timeout.
    errno.EAGAIN: "the server's accept queue is full and it accepted no one {within}; is it stuck?",
}

_SOURCE: Final[_Meanings] = LOOKUP | {
    errno.EADDRNOTAVAIL: "this machine has no such address; look at ip addr",
    errno.EADDRINUSE: "the port is already in use; look at ss -tan, or let the kernel choose",
    errno.EACCES: "only root may use a port below 1024; let the kernel choose",
    errno.EPERM: "a security policy prohibits it; look at the kernel's log",
}

# Any other errno is UnreachableError.
_CLASSES: Final[dict[int, type[ForkdError]]] = {
    errno.ETIMEDOUT: TimedOutError,
    errno.EAGAIN: TimedOutError,
    errno.ECONNRESET: BrokenOffError,
}


def explain(error: OSError, address: Address, *, name: str = "", timeout: float | None = None) -> ForkdError:
    """Makes the error to raise for a failed getaddrinfo(3) or connect(2) to `address`.

    `name` is what the user wrote, shown if it differs; `timeout`, in seconds, is the limit that was set. Pure: the
    errno alone decides the class, and an errno without an entry here is shown by its name.
    """
    shown = f"{address} ({name})" if name not in ("", str(address)) else str(address)
    return explained(error, f"cannot connect to {shown}", _UNIX if address.kind == "unix" else _TCP, timeout)


def explain_source(error: OSError, source: Address) -> ForkdError:
    """Makes the error to raise for a failed bind(2) to the local address `source`."""
    return explained(error, f"cannot connect from {source}", _SOURCE, None)


def explained(error: OSError, what: str, meanings: _Meanings, timeout: float | None) -> ForkdError:
    number, name = error.errno or 0, errno_name(error)
    if isinstance(error, TimeoutError):  # without an errno, our own limit ended the wait
        number, name = errno.ETIMEDOUT, "ETIMEDOUT"
    kernel_gave_up = timeout is None or error.errno == errno.ETIMEDOUT
    within = "until the kernel gave up" if kernel_gave_up else f"within {timeout:g} s"
    words = meanings.get(number, str(error.strerror or error)).replace("{within}", within)
    why, semicolon, hint = words.partition(";")
    return _CLASSES.get(number, UnreachableError)(f"{what}: {why} ({name}){semicolon}{hint}")


def errno_name(error: OSError) -> str:
    """Returns the symbol of an error, such as ECONNREFUSED, for people to look up."""
    if isinstance(error, socket.gaierror):
        names = (name for name in dir(socket) if name.startswith("EAI_") and getattr(socket, name) == error.errno)
        return next(names, f"EAI {error.errno}")
    return errno.errorcode.get(error.errno or 0, f"errno {error.errno}")
