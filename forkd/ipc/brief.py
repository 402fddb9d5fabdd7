"""The brief: everything a new fork server and its workers need to know.

It is made of plain values and crosses an exec as JSON, in one message on the fork server's socket.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from forkd.ipc.deadlines import Deadlines
from forkd.kernel.accounts import Identity
from forkd.kernel.address import Address
from forkd.kernel.owned_file import OwnedFile

FORMAT: Final = 2
"""Of this layout of a brief. Briefs without a number are of format 1."""


class Door(NamedTuple):
    """A listener as a worker sees it: its descriptor, where it listens, and whether it was `passed` to forkd.

    Workers do not empty the accept queue of a passed listener at a stop: the process that passed it keeps it.
    """

    fd: int
    address: Address
    passed: bool = False


class LogBrief(NamedTuple):
    """Where log records go, from which level on, and in which format."""

    fd: int
    level: str
    format: str


class Retirement(NamedTuple):
    """After how many requests, seconds or bytes of memory a worker is replaced; 0 means never."""

    requests: int = 0
    seconds: float = 0
    memory: int = 0


class WorkerBrief(NamedTuple):
    """How a service's workers serve.

    `threads` is how many threads run the handlers of an `event` worker. `black_box` keeps the request in hand in the
    scoreboard; `access` logs every connection.
    """

    kind: str
    threads: int
    limits: Deadlines
    retirement: Retirement
    black_box: bool
    access: bool


class Legacy(NamedTuple):
    """What to do if the master dies: which socket and PID files to remove, and how many seconds workers may take."""

    files: tuple[OwnedFile, ...]
    stop_timeout: float


class Brief(NamedTuple):
    """What a fork server learns when it starts. Descriptors are the ones that it inherits."""

    format: int
    version: str
    service: str
    generation: int
    app: str
    path: str
    identity: Identity | None
    fork_check: str
    doors: tuple[Door, ...]
    board: int
    wake: int
    log: LogBrief
    worker: WorkerBrief
    legacy: Legacy

    def descriptors(self) -> set[int]:
        """Every descriptor that the fork server inherits by this brief."""
        return {self.board, self.wake, self.log.fd, *(door.fd for door in self.doors)}

    def encode(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    @staticmethod
    def origin(data: bytes) -> tuple[int, str]:
        """The format of an encoded brief and the version of forkd that wrote it; any version can read these two."""
        brief = json.loads(data)
        return int(brief.get("format", 1)), str(brief["version"])

    @classmethod
    def decode(cls, data: bytes) -> Brief:
        """The brief that `encode` wrote in this FORMAT."""
        brief = cls(**json.loads(data))
        worker = WorkerBrief(*brief.worker)
        files, stop_timeout = brief.legacy
        return brief._replace(
            identity=None if brief.identity is None else _identity(*brief.identity),
            doors=tuple(Door(fd, Address(*address), passed) for fd, address, passed in brief.doors),
            log=LogBrief(*brief.log),
            worker=worker._replace(limits=Deadlines(*worker.limits), retirement=Retirement(*worker.retirement)),
            legacy=Legacy(tuple(OwnedFile(*file) for file in files), stop_timeout),
        )


def _identity(uid: int, gid: int, groups: Any) -> Identity:
    return Identity(uid, gid, tuple(groups))
