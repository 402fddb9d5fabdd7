"""What forkd serves in the trials: it returns each line."""

import forkd


@forkd.service(forkd.Lines())
def lines(request: bytes) -> bytes:
    return request
