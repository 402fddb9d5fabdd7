"""Connects to an address.

`connect` tries every address of a name, and `sockets.explain` puts its failures into words. The caller decides
what to send.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from forkd.errors import ForkdError, TimedOutError, UsageError
from forkd.kernel.address import WILDCARD, Address, from_sockaddr, parse
from forkd.kernel.sockopts import timeval
from forkd.sockets.explain import explain, explain_source


def connect(address: Address, *, timeout: float | None = 5.0, source: Address | str | None = None) -> socket.socket:
    """Returns a blocking stream socket connected to `address`; the host `*` means this machine.

    Tries every address of the host's name in turn (getaddrinfo(3), which has its own timeouts), each for at most
    `timeout` seconds (None: as long as tcp(7) tries). For TCP, `source` is the local address to bind first, "HOST",
    "HOST:PORT" or "[V6]:PORT"; without it the kernel chooses, see ip(7).

    If all fail, raises what `explain` makes of the errors of getaddrinfo(3), bind(2) and connect(2), with one line
    for each address tried: TimedOutError if any of them did not answer. Raises UsageError if the address cannot be
    connected to at all, AddressError if the source is not an address.
    """
    if address.kind == "systemd" or (address.kind == "tcp" and not address.port):
        raise UsageError(f"cannot connect to {address}: write HOST:PORT or unix:/PATH")
    if isinstance(source, str):
        source = parse_source(source)
    failures: list[ForkdError] = []
    for family, target, local in _routes(address, source):
        try:
            return _open(family, target, local, timeout)
        except OSError as error:
            tried = address if family == socket.AF_UNIX else from_sockaddr(family, target)
            failures.append(explain(error, tried, name=str(address), timeout=timeout))
    worst = next((failure for failure in failures if isinstance(failure, TimedOutError)), failures[0])
    raise type(worst)("\n".join(str(failure) for failure in failures))


def parse_source(text: str) -> Address:
    """Parses a local address: HOST, HOST:PORT or [V6]:PORT. With port 0 the kernel chooses."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if _is_ipv6(bare):
        return parse(f"[{bare}]:0")
    return parse(text if ":" in text else f"{text}:0")


def unix_path(address: Address) -> str:
    """Returns a unix address in the form that connect(2) takes."""
    return "\0" + address.host[1:] if address.host.startswith("@") else address.host


def _routes(address: Address, source: Address | None) -> list[tuple[int, Any, Any]]:
    """Returns family, remote and local socket address of each attempt; the kernel chooses a local one that is None."""
    if address.kind == "unix" and source is None:
        return [(socket.AF_UNIX, unix_path(address), None)]
    if address.kind != "tcp" or (source and source.kind != "tcp"):
        raise UsageError(f"cannot connect to {address} from {source}: a source address works only with TCP")
    try:
        targets = _resolve(address)
    except OSError as error:
        raise explain(error, address) from None
    if source is None:
        return [(family, target, None) for family, target in targets]
    try:
        sources = dict(reversed(_resolve(source, socket.AI_PASSIVE)))
    except OSError as error:
        raise explain_source(error, source) from None
    routes = [(family, target, sources[family]) for family, target in targets if family in sources]
    if not routes:
        raise UsageError(f"cannot connect to {address} from {source}: one is IPv4, the other IPv6")
    return routes


def _resolve(address: Address, flags: int = 0) -> list[tuple[int, Any]]:
    # No host means the loopback of both families or, with AI_PASSIVE, every address: getaddrinfo(3).
    # Bytes, because Python's IDNA codec raises UnicodeError for a label that is too long.
    host = None if address.host == WILDCARD else address.host.encode()
    found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def _open(family: int, target: Any, local: Any, timeout: float | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if local:
            _bind(sock, local)
        if family == socket.AF_UNIX:
            _connect_unix(sock, target, timeout)
        else:
            _connect_tcp(sock, target, timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, local: Any) -> None:
    # A port of our choice is in TIME_WAIT after its last connection: only SO_REUSEADDR allows the next one.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(local)
    except OSError as error:
        raise explain_source(error, from_sockaddr(sock.family, local)) from None


def _connect_unix(sock: socket.socket, target: Any, timeout: float | None) -> None:
    # A non-blocking connect fails at once if the server's queue is full: unix(7) waits only on a blocking
    # socket, for at most SO_SNDTIMEO (socket(7)).
    unlimited = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, len(timeval(0)))
    if timeout is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(timeout))
    sock.connect(target)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, unlimited)


def _connect_tcp(sock: socket.socket, target: Any, timeout: float | None) -> None:
    # Send lines when they are typed, not when the last one is acknowledged (Nagle, RFC 896).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(timeout)
    sock.connect(target)
    sock.settimeout(None)
    # If no process listens on a port of the kernel's own range, the kernel may choose that port for our end
    # and connect the socket to itself (simultaneous open, RFC 9293, 3.5).
    if sock.getsockname() == sock.getpeername():
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _is_ipv6(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return False
    return True
