"""What forkd serves in the trials: the line, back."""

import forkd


@forkd.service(forkd.Lines())
def lines(request: bytes) -> bytes:
    return request
