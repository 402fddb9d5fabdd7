"""The same by a coroutine."""

import forkd


@forkd.service(forkd.Lines())
async def lines(request: bytes) -> bytes:
    return request
