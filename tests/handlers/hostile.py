"""An application that turns on the server it runs in."""

import os
from contextlib import suppress
from pathlib import Path

import forkd


@forkd.service(forkd.Lines())
def evil(request: bytes) -> bytes:
    """`cut` and `scribble` are done to every memfd in reach; anything else is echoed."""
    if request not in (b"cut", b"scribble"):
        return request
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "memfd" in str(link.readlink()):
                if request == b"cut":
                    os.ftruncate(int(link.name), 0)
                else:
                    os.pwrite(int(link.name), b"\xff" * 65536, 0)
    return b"done"
