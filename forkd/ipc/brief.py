"""What a fork server is told at its birth, and the messages between it and the master.

Plain values that cross an exec as JSON, over a SOCK_SEQPACKET pair which keeps messages apart.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from forkd.ipc.deadlines import Deadlines
from forkd.kernel.accounts import Identity
from forkd.kernel.address import Address
from forkd.kernel.owned_file import OwnedFile


class Door(NamedTuple):
    """A listener as a worker sees it: its descriptor, where it listens, and whether it was `passed` to forkd.

    The queue of a passed one is not for us to empty at a stop: whoever passed it keeps it.
    """

    fd: int
    address: Address
    passed: bool = False


class Retirement(NamedTuple):
    """After how many requests, seconds or bytes of memory a worker is replaced; 0: never."""

    requests: int = 0
    seconds: float = 0
    memory: int = 0


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
    limits: Deadlines
    doors: tuple[Door, ...]
    board: int
    wake: int
    log: int
    log_level: str
    log_format: str
    identity: Identity | None
    exclusive: bool
    leavings: tuple[OwnedFile, ...]
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
            limits=Deadlines(*brief.limits),
            retirement=Retirement(*brief.retirement),
            doors=tuple(Door(fd, Address(*address), passed) for fd, address, passed in brief.doors),
            identity=None if brief.identity is None else _identity(*brief.identity),
            leavings=tuple(OwnedFile(*leaving) for leaving in brief.leavings),
        )


def _identity(uid: int, gid: int, groups: Any) -> Identity:
    return Identity(uid, gid, tuple(groups))
