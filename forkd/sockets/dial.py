"""Dial: an address to a connected socket, and a failure to words.

`connect` tries every address that a name has; `explain` says what an errno means, from a table, so
that every one is tested without a network. What is said over the socket is `client`'s affair.
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
    """A blocking stream socket connected to `address`; a host of `*` means this machine.

    Every address that the host's name has (getaddrinfo(3), which keeps its own time) is tried in
    turn, each for at most `timeout` seconds (None: as long as tcp(7) tries). `source`, for TCP,
    is bound before: "HOST", "HOST:PORT" or "[V6]:PORT"; otherwise the kernel picks, see ip(7).

    Raises what `explain` makes of the errors of getaddrinfo(3), bind(2) and connect(2), one line
    for each address tried, TimedOutError if any of them did not answer; UsageError if the
    address cannot be called at all; AddressError if the source is no address.
    """
    if address.kind == "systemd" or (address.kind == "tcp" and not address.port):
        raise UsageError(f"{address} cannot be called: write HOST:PORT or unix:/PATH")
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
    """The local address that `text` writes as HOST, HOST:PORT or [V6]:PORT; port 0 is the kernel's choice."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if _is_ipv6(bare):
        return parse(f"[{bare}]:0")
    return parse(text if ":" in text else f"{text}:0")


def unix_path(address: Address) -> str:
    """What connect(2) wants to be told of a unix address."""
    return "\0" + address.host[1:] if address.host.startswith("@") else address.host


def _routes(address: Address, source: Address | None) -> list[tuple[int, Any, Any]]:
    """Family, remote and local socket address of each way to try; the local one is None for the kernel's choice."""
    if address.kind == "unix" and source is None:
        return [(socket.AF_UNIX, unix_path(address), None)]
    if address.kind != "tcp" or (source and source.kind != "tcp"):
        raise UsageError(f"{address} cannot be called from {source}: a source is for TCP, on both ends")
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
        raise UsageError(f"{address} cannot be called from {source}: one is IPv4, the other IPv6")
    return routes


def _resolve(address: Address, flags: int = 0) -> list[tuple[int, Any]]:
    # No host is the loopback of both families or, with AI_PASSIVE, every address: getaddrinfo(3).
    # Bytes keep Python's IDNA codec out, which ends in UnicodeError for a label that is too long.
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
    # A port we chose is in TIME_WAIT after the last call from it: only SO_REUSEADDR allows the next one.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(local)
    except OSError as error:
        raise explain_source(error, from_sockaddr(sock.family, local)) from None


def _connect_unix(sock: socket.socket, target: Any, timeout: float | None) -> None:
    # A non-blocking connect would fail at once where a server's queue is full: unix(7) waits only
    # while the socket blocks, and SO_SNDTIMEO is the limit of that (socket(7)).
    unlimited = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, len(timeval(0)))
    if timeout is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(timeout))
    sock.connect(target)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, unlimited)


def _connect_tcp(sock: socket.socket, target: Any, timeout: float | None) -> None:
    # Lines are sent when they are typed, not when the last one is acknowledged (Nagle, RFC 896).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(timeout)
    sock.connect(target)
    sock.settimeout(None)
    # Where nobody listens on a port of the kernel's own range, the kernel may pick it for our end,
    # and the socket is connected to itself (simultaneous open, RFC 9293, 3.5).
    if sock.getsockname() == sock.getpeername():
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _is_ipv6(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return False
    return True
