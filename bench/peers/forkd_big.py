"""The same by an application that weighs 50 MB: what a worker's start must not depend on."""

import forkd

# Many objects rather than one block: it is the objects that a careless fork would touch.
ballast = [{"number": number, "name": f"entry {number}"} for number in range(160_000)]


@forkd.service(forkd.Lines())
def lines(request: bytes) -> bytes:
    return request
