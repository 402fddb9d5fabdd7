"""Returns each length-prefixed message: a cost that grows with size is forkd's or the kernel's."""

import forkd

_FRAMING = forkd.LengthPrefixed(4)


@forkd.service(_FRAMING)
def sized(request: bytes) -> bytes:
    return request


@forkd.service(_FRAMING)
async def sized_async(request: bytes) -> bytes:
    return request
