"""A service whose worker does to the shared listener what nobody should."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import forkd


@forkd.service(forkd.Lines())
def shut(request: bytes) -> bytes:
    """`shut` shuts every listening socket in reach down; anything else is echoed."""
    if request == b"shut":
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError), socket.socket(fileno=os.dup(int(link.name))) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    sock.shutdown(socket.SHUT_RDWR)
    return request
