"""Messages between the master and a fork server, with descriptors."""

from __future__ import annotations

import array  # noqa: F401  # socket.recv_fds imports it on first use, which may be after privileges are dropped
import json
import os
import socket
from typing import Any, Final

MESSAGE_BYTES: Final = 65536


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Sends one message, with copies of `fds` (unix(7), SCM_RIGHTS)."""
    socket.send_fds(sock, [json.dumps(message).encode()[:MESSAGE_BYTES]], fds)


def receive(sock: socket.socket, fds: int = 0) -> tuple[dict[str, Any], list[int]] | None:
    """Returns the next message and its descriptors; None at the end. Raises BlockingIOError if there is none yet."""
    data, received, _, _ = socket.recv_fds(sock, MESSAGE_BYTES, fds)
    for fd in received:  # recv_fds drops MSG_CMSG_CLOEXEC, and every program started later would inherit them
        os.set_inheritable(fd, False)
    if not data:
        return None
    message: dict[str, Any] = json.loads(data)
    return message, list(received)
