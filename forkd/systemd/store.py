"""Listening sockets that the service manager kept for us: told by a label from those it passes by itself.

A label (FDNAME= of sd_notify(3)) is made of the address as the settings write it, so that the next run
finds its own; what it then has in hand is looked at again before it is taken. Who hands sockets to the
store, and when, is the affair of `supervision`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Final
from urllib.parse import quote

from forkd.kernel.address import Address

_PREFIX: Final = "forkd="
_PLAIN: Final = "/[]*@"  # what is written as it is, beside letters, digits, "-", ".", "_" and "~"
_LONGEST: Final = 255


def label(address: Address, service: str) -> str:
    """The name under which a listener is stored, as in `forkd=127.0.0.1%3A7007`; empty where it cannot be.

    A name has at most 255 printable ASCII characters and no colon, so the address is percent-encoded. A port of
    the kernel's choice has its service beside it, for an address may ask for several; a unix socket has its
    file's inode, for it is no good without that file.
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
    """Whether a descriptor of this name is one of ours, come back."""
    return name.startswith(_PREFIX)


class Stored:
    """What came back, by label; `misfits` are the labels of what there is no use for: it is closed.

    `works` says whether there is a store at all.
    """

    def __init__(self, found: Iterable[tuple[str, socket.socket]] = ()) -> None:
        self.found = list(found)
        self.misfits: list[str] = []
        self.works = False

    def keep_only(self, wanted: Collection[str]) -> None:
        """Gives up whatever has none of these labels."""
        for name, sock in self.found:
            if name not in wanted:
                sock.close()
                self.misfits.append(name)
        self.found = [(name, sock) for name, sock in self.found if name in wanted]

    def claim(self, name: str, fits: Callable[[socket.socket], bool]) -> socket.socket | None:
        """Takes the first socket of that label that fits, if there is one."""
        for at, (each, sock) in enumerate(self.found):
            if each == name and fits(sock):
                del self.found[at]
                return sock
        return None

    def give_up(self, name: str) -> None:
        """Gives up whatever has this label still: it does not fit, and stands in the way."""
        self.keep_only({each for each, _ in self.found} - {name})
