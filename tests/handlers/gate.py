"""An import that returns only when the test opens the gate: a FIFO in the working folder."""

from pathlib import Path

import forkd

Path("gate").read_bytes()


@forkd.service(forkd.Lines())
def shout(request: bytes) -> bytes:
    return request.upper()
