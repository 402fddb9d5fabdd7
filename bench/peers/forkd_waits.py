"""A handler that waits, as if for a database: 10 ms on average, exponentially distributed."""

import random
import time
from collections.abc import Iterator

import forkd

MEAN = 0.01


@forkd.service(forkd.Lines())
def waits(request: bytes, connection: forkd.Connection) -> bytes:
    time.sleep(connection.resources.expovariate(1 / MEAN))
    return request


@waits.lifespan
def chance() -> Iterator[random.Random]:
    yield random.Random()  # after the fork, or all workers would draw the same numbers
