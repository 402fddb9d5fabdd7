"""A Protocol served on asyncio's own loop or on uvloop's, by the command line PORT LOOP."""

import asyncio
import sys
from collections.abc import Callable


def run(protocol: Callable[[], asyncio.Protocol]) -> None:
    if sys.argv[2] == "uvloop":
        import uvloop

        uvloop.run(_serve(protocol, int(sys.argv[1])))
    else:
        asyncio.run(_serve(protocol, int(sys.argv[1])))


async def _serve(protocol: Callable[[], asyncio.Protocol], port: int) -> None:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()
