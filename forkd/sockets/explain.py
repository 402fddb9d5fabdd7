"""What an errno means when connecting, in words."""

from __future__ import annotations

import errno
import socket
from typing import Final, TypeAlias

from forkd.errors import BrokenOffError, ForkdError, TimedOutError, UnreachableError
from forkd.kernel.address import Address

_Meanings: TypeAlias = dict[int, str]

# What an errno means at each step. EAI_ numbers are negative, so getaddrinfo(3)'s share a table with errno(3)'s.
LOOKUP: Final[_Meanings] = dict.fromkeys(
    (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY), "no such host; check the name (getent ahosts HOST)"
) | dict.fromkeys(
    (socket.EAI_AGAIN, socket.EAI_FAIL), "no such host is known, for no name server answers; check /etc/resolv.conf"
)

_TCP: Final[_Meanings] = LOOKUP | {
    errno.ECONNREFUSED: "no process listens there; is the server up (ss -ltn), is the port right?",
    errno.ETIMEDOUT: "nobody answered {within}; is it the right host, and does a firewall drop the packets?",
    errno.EHOSTUNREACH: "no way there: the host is down or a router refuses; look at ip neigh",
    errno.ENETUNREACH: "no way there: no route to its network; look at ip route get",
    errno.ENETDOWN: "no way there: the network interface is down; look at ip link",
    errno.EACCES: "a route or a firewall prohibits it; look at ip route get and nft list ruleset",
    errno.EPERM: "a firewall or a security policy prohibits it; look at nft list ruleset",
    errno.EINVAL: "the route is a black hole, or a link-local address lacks its %interface; look at ip route get",
    errno.EADDRNOTAVAIL: "no local address or port is free to call from; look at ss -tan and ip addr",
    errno.EADDRINUSE: "the local port is taken by another connection; look at ss -tan",
    errno.EAFNOSUPPORT: "this machine does not speak that kind of address; is IPv6 switched off?",
    errno.ENOPROTOOPT: "the host refuses TCP itself; look at its firewall",
    errno.ECONNRESET: "the server broke the connection off at once; look at its log",
}

_UNIX: Final[_Meanings] = {
    errno.ECONNREFUSED: "no process listens there, a file would be a left-over; is the server up (ss -lx)?",
    errno.ENOENT: "no such socket; is the server up (ss -lx), is the path right?",
    errno.ENOTDIR: "no such socket, for its folder is a file; is the path right?",
    errno.ENOTSOCK: "the file is no socket; is the path right?",
    errno.EPROTOTYPE: "the socket is no stream socket; is the path right?",
    errno.EACCES: "you may not write to the socket or not enter its folder; look at namei -l",
    errno.EPERM: "a security policy prohibits it; look at the kernel's log",
    # A full queue of a unix listener blocks connect(2), and the socket's send timeout ends that.
    errno.EAGAIN: "the server's queue is full and nobody was accepted {within}; is the server stuck?",
}

_SOURCE: Final[_Meanings] = LOOKUP | {
    errno.EADDRNOTAVAIL: "this machine has no such address; look at ip addr",
    errno.EADDRINUSE: "the port is taken already; look at ss -tan, or leave the port to the kernel",
    errno.EACCES: "only root may call from a port below 1024; leave the port to the kernel",
    errno.EPERM: "a security policy prohibits it; look at the kernel's log",
}

# What is not here is UnreachableError.
_CLASSES: Final[dict[int, type[ForkdError]]] = {
    errno.ETIMEDOUT: TimedOutError,
    errno.EAGAIN: TimedOutError,
    errno.ECONNRESET: BrokenOffError,
}


def explain(error: OSError, address: Address, *, name: str = "", timeout: float | None = None) -> ForkdError:
    """What a failed getaddrinfo(3) or connect(2) to `address` means, as an error to raise.

    `name` is what the user wrote, told where it differs; `timeout`, in seconds, is the limit that
    was set. Pure: the errno alone decides the class, and an errno unknown here is told by its name.
    """
    shown = f"{address} ({name})" if name not in ("", str(address)) else str(address)
    return explained(error, f"cannot connect to {shown}", _UNIX if address.kind == "unix" else _TCP, timeout)


def explain_source(error: OSError, source: Address) -> ForkdError:
    """The same for a failed bind(2) to the local address `source`."""
    return explained(error, f"cannot call from {source}", _SOURCE, None)


def explained(error: OSError, what: str, meanings: _Meanings, timeout: float | None) -> ForkdError:
    number, name = error.errno or 0, errno_name(error)
    if isinstance(error, TimeoutError):  # without an errno, it is our own limit that ended the wait
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
