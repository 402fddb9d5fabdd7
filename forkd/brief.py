"""What a fork server is told at its birth, and the messages between it and the master.

Plain values that cross an exec as JSON, over a SOCK_SEQPACKET pair which keeps messages apart.
"""

from __future__ import annotations

import array  # noqa: F401  # socket.recv_fds imports it late, which may be after privileges are dropped
import json
import os
import socket
from typing import Any, Final, NamedTuple

from forkd.address import Address
from forkd.leaving import Leaving
from forkd.limits import Limits
from forkd.privileges import Identity
from forkd.retirement import Retirement

MESSAGE_BYTES: Final = 65536


class Door(NamedTuple):
    """A listener as a worker sees it: its descriptor, where it listens, and whether it was `passed` to forkd.

    The queue of a passed one is not for us to empty at a stop: whoever passed it keeps it.
    """

    fd: int
    address: Address
    passed: bool = False


class Brief(NamedTuple):
    """Everything that a fork server and its workers need to know; descriptors are those they inherit.

    `leavings` are the socket and pid files to be removed should the master die, and `stop_timeout`
    is how long the workers may then take to go.
    """

    version: str
    service: str
    generation: int
    app: str
    path: str
    limits: Limits
    doors: tuple[Door, ...]
    board: int
    wake: int
    log: int
    log_level: str
    log_format: str
    identity: Identity | None
    exclusive: bool
    leavings: tuple[Leaving, ...]
    stop_timeout: float
    retirement: Retirement
    black_box: bool
    fork_check: str
    access: bool = False
    worker: str = "sync"
    threads: int = 0

    def encode(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    @staticmethod
    def version_of(data: bytes) -> str:
        """Which forkd wrote the brief: what every version can read of every other's."""
        return str(json.loads(data)["version"])

    @classmethod
    def decode(cls, data: bytes) -> Brief:
        """The brief that `encode` wrote."""
        brief = cls(**json.loads(data))
        return brief._replace(
            limits=Limits(*brief.limits),
            retirement=Retirement(*brief.retirement),
            doors=tuple(Door(fd, Address(*address), passed) for fd, address, passed in brief.doors),
            identity=None if brief.identity is None else _identity(*brief.identity),
            leavings=tuple(Leaving(*leaving) for leaving in brief.leavings),
        )


def _identity(uid: int, gid: int, groups: Any) -> Identity:
    return Identity(uid, gid, tuple(groups))


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Sends one message, with copies of `fds` (unix(7), SCM_RIGHTS)."""
    socket.send_fds(sock, [json.dumps(message).encode()[:MESSAGE_BYTES]], fds)


def receive(sock: socket.socket, fds: int = 0) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors; None at the end. Raises BlockingIOError when there is none yet."""
    data, received, _, _ = socket.recv_fds(sock, MESSAGE_BYTES, fds)
    for fd in received:  # or every program that is started from now on inherits it; recv_fds drops MSG_CMSG_CLOEXEC
        os.set_inheritable(fd, False)
    if not data:
        return None
    message: dict[str, Any] = json.loads(data)
    return message, list(received)
