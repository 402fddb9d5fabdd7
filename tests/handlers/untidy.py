"""An application whose import leaves a thread running and a socket open."""

import socket
import threading

import forkd

CLOCK = threading.Thread(target=threading.Event().wait, name="the clock", daemon=True)
CLOCK.start()
LISTENER = socket.create_server(("127.0.0.1", 0))


@forkd.service(forkd.Lines())
def shout(request: bytes) -> bytes:
    return request.upper()
