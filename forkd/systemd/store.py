"""Listening sockets that the service manager keeps for us. Labels tell them from those of .socket units.

A label (FDNAME= of sd_notify(3)) is made from the address as the settings write it, so that the next run
finds its own sockets; each is checked again before it is used. `master.service_manager` decides which sockets
go into the store, and when.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Final
from urllib.parse import quote

from forkd.kernel.address import Address

_PREFIX: Final = "forkd="
_PLAIN: Final = "/[]*@"  # not encoded, like letters, digits, "-", ".", "_" and "~"
_LONGEST: Final = 255


def label(address: Address, service: str) -> str:
    """Returns the name under which a listener is stored, such as `forkd=127.0.0.1%3A7007`; empty if it cannot be.

    A name has at most 255 printable ASCII characters and no colon, so the address is percent-encoded. If the kernel
    chooses the port, the service's name is added, because several services may use that address; a unix socket gets
    its file's inode, because it is useless without that file.
    """
    mark = ""
    if address.kind == "tcp" and address.port == 0:
        mark = f"={service}"
    elif address.kind == "unix" and not address.host.startswith("@"):
        try:
            mark = f"={os.lstat(address.host).st_ino}"
        except OSError:
            return ""
    made = f"{_PREFIX}{quote(os.fsencode(str(address)), safe=_PLAIN)}{mark}"
    return made if len(made) <= _LONGEST and address.kind != "systemd" else ""


def is_label(name: str) -> bool:
    """Whether a descriptor of this name is one that we had stored."""
    return name.startswith(_PREFIX)


class Stored:
    """The sockets that came back, by label. `misfits` are the labels of those we could not use and have closed.

    `works` says whether the manager has a store at all.
    """

    def __init__(self, found: Iterable[tuple[str, socket.socket]] = ()) -> None:
        self.found = list(found)
        self.misfits: list[str] = []
        self.works = False

    def keep_only(self, wanted: Collection[str]) -> None:
        """Closes every socket that has none of these labels."""
        for name, sock in self.found:
            if name not in wanted:
                sock.close()
                self.misfits.append(name)
        self.found = [(name, sock) for name, sock in self.found if name in wanted]

    def claim(self, name: str, fits: Callable[[socket.socket], bool]) -> socket.socket | None:
        """Takes the first socket with that label that fits; None if there is none."""
        for at, (each, sock) in enumerate(self.found):
            if each == name and fits(sock):
                del self.found[at]
                return sock
        return None

    def give_up(self, name: str) -> None:
        """Closes the remaining sockets with this label: they do not fit and may block the address."""
        self.keep_only({each for each, _ in self.found} - {name})
