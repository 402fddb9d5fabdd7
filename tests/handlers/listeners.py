"""Services that report which process imported them and what their worker has loaded."""

import os
import sys

import forkd

IMPORTER = os.getpid()


@forkd.service(forkd.Lines())
def loaded(request: bytes) -> bytes:
    """Returns those of the named modules, separated by blanks, that this worker has loaded."""
    return b" ".join(name for name in request.split() if name.decode() in sys.modules)


@forkd.service(forkd.Lines())
def importer(request: bytes) -> bytes:
    """Returns the PIDs of the process that imported this module and of this worker's parent."""
    return f"{IMPORTER} {os.getppid()}".encode()
