"""Addresses as people write them, parsed and formatted, for listeners, peers and the client.

Pure: opens nothing and looks nothing up. `sockets.listener` and `sockets.dial` turn an address into
sockets; `settings.reading` only checks that a text is one.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Final, Literal, NamedTuple

from forkd.errors import AddressError

Kind = Literal["tcp", "unix", "systemd"]

WILDCARD = "*"
"""The host that stands for every IPv4 and IPv6 address of the machine."""

UNIX_PATH_BYTES: Final = 107
"""The longest path of a unix socket: sun_path of unix(7) without the NUL at its end."""

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
_FORMS = "HOST:PORT, [IPV6]:PORT, *:PORT, unix:/PATH, unix:@NAME or systemd:NAME"


class Address(NamedTuple):
    """One end of a connection, or the place where a service listens.

    `host` is a name or an IP address without brackets for kind "tcp", a path (or `@name` for an
    abstract socket) for "unix", and a descriptor's name for "systemd"; `port` is 0 to 65535.
    """

    host: str
    port: int = 0
    kind: Kind = "tcp"

    def __str__(self) -> str:
        if self.kind != "tcp":
            return f"{self.kind}:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Parses `text`; AddressError says what is wrong with it."""
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("systemd:"):
        name = text.removeprefix("systemd:")
        if not name:
            raise AddressError(f"{text!r} names no descriptor: write systemd:NAME, as in FileDescriptorName=")
        return Address(name, 0, "systemd")
    host, colon, port = text.rpartition(":")
    if not colon:
        raise AddressError(f"{text!r} has no port: write {_FORMS}")
    return Address(_parse_host(text, host), _parse_port(text, port))


def from_sockaddr(family: int, sockaddr: object) -> Address:
    """Converts a socket address of `family`, as the kernel reports it, to the form that people write.

    The kernel shows an IPv4 peer of a dual-stack socket as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2);
    here it becomes plain IPv4 again.
    """
    if family == socket.AF_UNIX:
        if isinstance(sockaddr, bytes):
            return Address("@" + sockaddr[1:].decode(errors="backslashreplace"), 0, "unix")
        # A path may hold any bytes, but logs and terminals need text.
        return Address(os.fsencode(str(sockaddr)).decode(errors="backslashreplace"), 0, "unix")
    assert isinstance(sockaddr, tuple)
    host = str(sockaddr[0])
    if family == socket.AF_INET6 and host.startswith("::ffff:") and "." in host:
        host = host.removeprefix("::ffff:")
    return Address(host, int(sockaddr[1]))


def _parse_unix(text: str) -> Address:
    path = text.removeprefix("unix:")
    if not (path.startswith("/") and path != "/") and not (path.startswith("@") and path != "@"):
        raise AddressError(f"{text!r} is not a unix address: write unix:/PATH (an absolute path) or unix:@NAME")
    if "\0" in path:
        raise AddressError(f"{text!r} contains a NUL character")
    if len(path.encode(errors="surrogateescape")) > UNIX_PATH_BYTES:
        raise AddressError(f"{text!r} is longer than the {UNIX_PATH_BYTES} bytes that unix(7) allows")
    return Address(path, 0, "unix")


def _parse_host(text: str, host: str) -> str:
    if host == WILDCARD:
        return host
    if host.startswith("[") and host.endswith("]"):
        return _parse_ipv6(text, host[1:-1])
    if ":" in host:
        raise AddressError(f"{text!r}: an IPv6 address needs brackets, as in [::1]:7007")
    if not host:
        raise AddressError(f"{text!r} has no host: write *:PORT for all addresses of this machine")
    if re.fullmatch(r"[0-9.]+", host):
        return _parse_ipv4(text, host)
    if not _HOST.fullmatch(host) or len(host) > 253:
        raise AddressError(f"{text!r}: {host!r} is not a host name: write {_FORMS}")
    return host


def _parse_ipv6(text: str, host: str) -> str:
    number, percent, scope = host.partition("%")  # the scope (RFC 4007): an interface's name or number
    try:
        socket.inet_pton(socket.AF_INET6, number)
        if percent and not re.fullmatch(r"[^\s/%\[\]:]{1,15}", scope):
            raise ValueError
    except (OSError, ValueError):
        raise AddressError(f"{text!r}: {host!r} is not an IPv6 address") from None
    return host


def _parse_ipv4(text: str, host: str) -> str:
    numbers = host.split(".")
    if len(numbers) != 4 or not all(n and len(n) <= 3 and int(n) <= 255 and str(int(n)) == n for n in numbers):
        raise AddressError(f"{text!r}: {host!r} is not an IPv4 address: four numbers from 0 to 255 with dots")
    return host


def _parse_port(text: str, port: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise AddressError(f"{text!r}: {port!r} is not a port: a number from 0 to 65535")
    return int(port)
