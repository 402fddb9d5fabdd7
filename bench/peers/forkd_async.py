"""The service of forkd_lines as a coroutine."""

import forkd


@forkd.service(forkd.Lines())
async def lines(request: bytes) -> bytes:
    return request
