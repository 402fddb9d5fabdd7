"""Takes the sockets that systemd passes to a service: sd_listen_fds(3).

Sockets of a .socket unit stay systemd's; those that we asked it to keep come back among them, recognized by their
names. Without systemd's environment variables there are none. Messages to systemd are sent by `notify`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from forkd.errors import ListenError
from forkd.systemd import store
from forkd.systemd.store import Stored

_FIRST_FD = 3


class Passed:
    """The listening sockets passed in, by name (FileDescriptorName=) or position from 0, and those `stored` for us."""

    def __init__(self, sockets: Sequence[tuple[str, socket.socket]] = ()) -> None:
        self.sockets = list(sockets)
        self.stored = Stored()
        if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
            return
        count = os.environ.pop("LISTEN_FDS", "0")
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        for at in range(int(count) if count.isdecimal() else 0):
            name = names[at] if at < len(names) and names[at] else "unknown"
            if store.is_label(name):
                try:
                    self.stored.found.append((name, _listening(_FIRST_FD + at, name)))
                except ListenError:  # it broke while it was stored; a new one is made
                    self.stored.misfits.append(name)
            else:
                self.sockets.append((name, _listening(_FIRST_FD + at, name)))

    def take(self, name: str) -> list[socket.socket]:
        """Returns the sockets of that name, or the one at that position if the name is a number. Raises ListenError."""
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


def _listening(fd: int, name: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(f"descriptor {fd} ({name}) passed by systemd is not a socket: {error.strerror}") from None
    if not listening or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise ListenError(f"descriptor {fd} ({name}) passed by systemd is not a listening stream socket (Accept=no)")
    sock.set_inheritable(False)
    return sock
