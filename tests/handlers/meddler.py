"""An application that, during its import, sends messages to the master in its fork server's place."""

import os
import socket
from contextlib import suppress

import forkd


def _meddle() -> None:
    for fd in range(3, 64):
        with suppress(OSError):
            sock = socket.socket(fileno=os.dup(fd))
            with sock:
                if sock.type == socket.SOCK_SEQPACKET:
                    for lie in (
                        b'{"forked": 99, "pid": 1}',
                        b'{"gone": 0, "pid": 1, "status": 9}',
                        b"[1]",
                        b'{"x": 1}',
                    ):
                        socket.send_fds(sock, [lie], [1, 1, 1])


_meddle()


@forkd.service(forkd.Lines())
def shout(request: bytes) -> bytes:
    return request.upper()
