"""The service of forkd_lines in an application of 50 MB, a size that must not slow down a worker's start."""

import forkd

# Many objects, not one block, because a careless fork would touch every object.
ballast = [{"number": number, "name": f"entry {number}"} for number in range(160_000)]


@forkd.service(forkd.Lines())
def lines(request: bytes) -> bytes:
    return request
