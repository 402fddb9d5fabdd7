"""PORT: gevent's StreamServer, with a greenlet for each connection."""

import sys
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

from gevent.server import StreamServer


def serve(sock: Any, _: Any) -> None:
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    with sock.makefile(mode="rb") as lines:
        while line := lines.readline():
            sock.sendall(line)


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), serve, backlog=1024).serve_forever()
