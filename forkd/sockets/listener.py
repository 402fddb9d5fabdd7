"""Opens, describes, hands on and closes listening sockets. Nothing accepts here.

All workers of all generations share one socket. It is never shut down, which would end it for all of them, and is
non-blocking from the start, because O_NONBLOCK belongs to the shared open file description.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec import Struct

from forkd.errors import ForkdError, ListenError
from forkd.kernel import tap
from forkd.kernel.accounts import identity
from forkd.kernel.address import WILDCARD, Address, from_sockaddr
from forkd.kernel.owned_file import OwnedFile
from forkd.kernel.sockopts import timeval
from forkd.kernel.unix_socket import bind_unix
from forkd.settings.schema import Listen
from forkd.systemd import store
from forkd.systemd.passed import Passed

# What a machine without IPv6 answers to ::1. Its hosts(5) may still list that for localhost; the name's other
# addresses are enough then.
_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class Listener(Struct):
    """A listening socket: what the settings ask for, and where it really listens.

    `file` is a unix socket's file, ours to remove. A socket `passed` in by systemd stays systemd's. `stored` is the
    label of a socket of ours that the service manager keeps for us as well.
    """

    wanted: Listen
    bound: Address
    socket: socket.socket
    file: OwnedFile | None = None
    passed: bool = False
    stored: str = ""

    def takes_ipv4(self) -> bool:
        """Whether IPv4 clients reach it."""
        if self.socket.family != socket.AF_INET6:
            return self.socket.family == socket.AF_INET
        only = self.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return not only and ("." in self.bound.host or self.bound.host in (WILDCARD, "::"))  # mapped IPv4 (RFC 4291)

    def close_tap(self) -> None:
        """Lets no new client in; those in the accept queue are still to be served."""
        if self.passed:
            return
        if self.file is not None:
            self.file.remove()
        tap.close(self.socket)

    def mend(self, backlog: int) -> None:
        """Listens again on a socket that was shut down, which ends it for all that share it (shutdown(2))."""
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return
        with suppress(OSError):  # a port of our choice is still bound; one that the kernel chose is not
            self.socket.bind(self.socket.getsockname())
        with suppress(OSError):
            self.socket.listen(backlog)

    def hand_down(self, idle_timeout: float, write_timeout: float) -> None:
        """Sets the timeouts that accepted TCP sockets inherit from the listener (tcp(7)): no system call for each."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(idle_timeout))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(write_timeout))

    def close(self) -> None:
        """Closes our descriptor and removes our socket file, if it is still ours."""
        if self.file is not None:
            self.file.remove()
        self.socket.close()


def make_way(listener: Listener) -> socket.socket | None:
    """Returns a new unix socket for new clients while ours keeps its accept queue; None if that fails.

    It replaces the file at the path, with the same rights, so that clients always find one of the two.
    """
    file = listener.file
    if file is None or not file.stands():
        return None
    try:
        found = os.lstat(file.path)
        mode = stat.S_IMODE(found.st_mode)
        return bind_unix(file.path, mode, lambda path: os.chown(path, found.st_uid, found.st_gid), replace=True)
    except OSError:
        return None


def open_listeners(wanted: Listen, backlog: int, passed: Passed, service: str) -> list[Listener]:
    """Opens what an entry of `listen` asks for: one socket for each address of its name, usually one.

    Takes sockets stored for the entry from the store. Raises ListenError with a sentence that names the
    address and what to do.
    """
    address = wanted.address
    label = store.label(address, service)
    if address.kind == "unix":
        return [_take_unix(wanted, backlog, passed, label) or _open_unix(wanted, backlog)]
    if address.kind == "systemd":
        return [_adopt(wanted, sock) for sock in passed.take(address.host)]
    opened: list[Listener] = []
    absent: list[ListenError] = []
    for family, sockaddr, both in _resolve(address):
        try:
            kept = passed.stored.claim(label, partial(_is_bound, family=family, sockaddr=sockaddr, both=both))
            sock = _bound_tcp(family, sockaddr, both, backlog) if kept is None else _go_on(kept, backlog)
        except OSError as error:
            why = ListenError(f"cannot listen on {address}: {_why_tcp(error, address)}", error.errno or 0)
            if error.errno in _ABSENT:
                absent.append(why)
                continue
            for listener in opened:
                listener.close()
            passed.stored.give_up(label)  # a stored one that is bound differently may block the address
            raise why from None
        opened.append(Listener(wanted, _real_address(address, sock), sock, stored=label if kept is not None else ""))
    if not opened:
        raise absent[0]
    return opened


def _take_unix(wanted: Listen, backlog: int, passed: Passed, label: str) -> Listener | None:
    """Returns the unix socket that was stored for us, its file given the rights of the settings; None if none."""
    path = wanted.address.host
    kept = passed.stored.claim(label, lambda sock: sock.family == socket.AF_UNIX)
    if kept is None:
        return None
    try:
        file = None if path.startswith("@") else _with_rights(wanted, path)
        return Listener(wanted, wanted.address, _go_on(kept, backlog), file, stored=label)
    except (OSError, ForkdError) as error:
        kept.close()
        raise _unix_error(wanted.address, error) from None


def _with_rights(wanted: Listen, path: str) -> OwnedFile:
    """Gives an existing socket file the rights of the settings; returns its identity."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        there = f"/proc/self/fd/{fd}"  # a link put there in between is not followed
        if wanted.mode is not None:
            os.chmod(there, wanted.mode)  # noqa: PTH101
        _own(wanted, there)
        found = os.fstat(fd)
        return OwnedFile(path, found.st_dev, found.st_ino)
    finally:
        os.close(fd)


def _own(wanted: Listen, path: str) -> None:
    """Gives a socket's file to the user and group that the settings name."""
    if wanted.user is not None or wanted.group is not None:
        who = identity(wanted.user, wanted.group)
        assert who is not None
        uid = who.uid if wanted.user is not None else -1
        os.chown(path, uid, who.gid if wanted.group is not None else -1)


def _open_unix(wanted: Listen, backlog: int) -> Listener:
    address = wanted.address
    path = address.host
    try:
        if path.startswith("@"):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.bind("\0" + path[1:])
            file = None
        else:
            sock = bind_unix(path, wanted.mode, partial(_own, wanted))
            file = OwnedFile.at(path)
        sock.listen(backlog)
    except (OSError, ForkdError) as error:
        raise _unix_error(address, error) from None
    return Listener(wanted, address, sock, file)


def _unix_error(address: Address, error: OSError | ForkdError) -> ListenError:
    if isinstance(error, OSError):
        return ListenError(f"cannot listen on {address}: {_why_unix(error, address.host)}", error.errno or 0)
    return ListenError(f"cannot listen on {address}: {error}", error.cause)


def _why_unix(error: OSError, path: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"another server listens there (ss -xlp | grep {path} shows which)"
        case errno.ENOENT:
            return f"there is no folder {Path(path).parent}; create it or choose another path"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{error.strerror}: this user may not create a socket in {Path(path).parent} or change its owner"
        case _:
            return f"{error.strerror or error}"


def _resolve(address: Address) -> list[tuple[socket.AddressFamily, tuple[object, ...], bool]]:
    """Returns the families and socket addresses to bind, and whether an IPv6 one includes IPv4."""
    if address.host == WILDCARD:
        if socket.has_ipv6 and _ipv6_works():
            return [(socket.AF_INET6, ("::", address.port), True)]
        return [(socket.AF_INET, ("0.0.0.0", address.port), False)]
    # Bytes, because Python's IDNA codec raises UnicodeError for a label that is too long.
    host, flags = address.host.encode(), socket.AI_PASSIVE | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {address}: the name has no address: {error.strerror}") from None
    return list(dict.fromkeys((family, tuple(sockaddr), False) for family, _, _, _, sockaddr in found))


def _ipv6_works() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _bound_tcp(family: socket.AddressFamily, sockaddr: tuple[object, ...], both: bool, backlog: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind(sockaddr)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _is_bound(sock: socket.socket, *, family: socket.AddressFamily, sockaddr: tuple[object, ...], both: bool) -> bool:
    """Whether a stored socket is what `_bound_tcp` would make; if the kernel is to choose the port, any will do."""
    if sock.family != family:
        return False
    if family == socket.AF_INET6 and both == bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)):
        return False
    bound = sock.getsockname()
    return bound[0] == sockaddr[0] and sockaddr[1] in (0, bound[1]) and sockaddr[2:] in ((), bound[2:])


def _go_on(kept: socket.socket, backlog: int) -> socket.socket:
    """Listens again on a stored socket, whose tap may still be closed."""
    kept.setblocking(False)
    kept.listen(backlog)
    tap.reopen(kept)
    return kept


def _why_tcp(error: OSError, address: Address) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"another process listens there (ss -ltnp 'sport = :{address.port}' shows which)"
        case errno.EADDRNOTAVAIL:
            return f"{address.host} is not an address of this machine (ip address lists its addresses)"
        case errno.EACCES:
            return f"port {address.port} needs root or CAP_NET_BIND_SERVICE; ports from 1024 do not"
        case _:
            return f"{error.strerror or error}"


def _real_address(address: Address, sock: socket.socket) -> Address:
    """Returns the address with the port that the kernel chose; a wildcard stays one."""
    real = from_sockaddr(sock.family, sock.getsockname())
    return address._replace(port=real.port) if address.host == WILDCARD else real


def _adopt(wanted: Listen, passed: socket.socket) -> Listener:
    sock = passed.dup()  # the original stays, for a reload that uses it again
    sock.setblocking(False)
    return Listener(wanted, from_sockaddr(sock.family, sock.getsockname()), sock, passed=True)
