"""Services that tell which process imported them and what it has loaded."""

import os
import sys

import forkd

IMPORTER = os.getpid()


@forkd.service(forkd.Lines())
def loaded(request: bytes) -> bytes:
    """Which of the modules named, with blanks between them, this worker has loaded."""
    return b" ".join(name for name in request.split() if name.decode() in sys.modules)


@forkd.service(forkd.Lines())
def importer(request: bytes) -> bytes:
    """The process that imported this module, and this worker's parent."""
    return f"{IMPORTER} {os.getppid()}".encode()
