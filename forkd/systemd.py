"""What systemd hands a service, and what it wants to hear: sd_listen_fds(3) and sd_notify(3).

Without systemd's environment variables every function here does nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from time import monotonic_ns

from forkd.errors import ListenError

_FIRST_FD = 3


class Passed:
    """The listening sockets passed in, by name (FileDescriptorName=) and by position, from 0."""

    def __init__(self, sockets: Sequence[tuple[str, socket.socket]] = ()) -> None:
        self.sockets = list(sockets)
        if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
            return
        count = os.environ.pop("LISTEN_FDS", "0")
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        for at in range(int(count) if count.isdecimal() else 0):
            name = names[at] if at < len(names) and names[at] else "unknown"
            self.sockets.append((name, _listening(_FIRST_FD + at, name)))

    def take(self, name: str) -> list[socket.socket]:
        """The sockets of that name, or the one at that position when the name is a number."""
        found = [sock for each, sock in self.sockets if each == name]
        if not found and name.isdecimal() and int(name) < len(self.sockets):
            found = [self.sockets[int(name)][1]]
        if not found:
            names = ", ".join(sorted({each for each, _ in self.sockets})) or "none"
            raise ListenError(
                f"systemd passed no socket named {name!r} (it passed: {names}); "
                f"set FileDescriptorName={name} in the .socket unit and start that unit"
            )
        return found


def notify(*lines: str) -> None:
    """Tells the service manager, if there is one; a manager that does not listen is no reason to fail."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect(address)
            sock.send("\n".join(lines).encode())
    except OSError:
        return


def reloading() -> None:
    """RELOADING=1, with the time that systemd asks for beside it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")


def _listening(fd: int, name: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(f"descriptor {fd} ({name}) passed by systemd is no socket: {error.strerror}") from None
    if not listening or sock.type != socket.SOCK_STREAM:
        raise ListenError(f"descriptor {fd} ({name}) passed by systemd is not a listening stream socket (Accept=no)")
    sock.set_inheritable(False)
    return sock
