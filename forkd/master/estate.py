"""The estate: everything a master leaves to the program that replaces it, as bytes and file descriptors.

The other rooms provide plain values; this one encodes and decodes them. A socket is encoded as its descriptor,
which survives execve(2). A new version may add fields with defaults. A change that old fork servers or workers
would not understand (messages, rows of the scoreboard) needs a new FORMAT: an upgrade then refuses, and a
restart is needed.
"""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from forkd.errors import ForkdError
from forkd.lifecycle.clock import MasterClock
from forkd.lifecycle.pool import Pool
from forkd.lifecycle.server import Phase
from forkd.master.own_files import OwnFilesEstate
from forkd.master.roster import RosterEstate
from forkd.master.site import Site
from forkd.settings.config import Source

FORMAT: Final = 1

T = TypeVar("T")


class Head(Struct):
    """The part of an estate that any version can read."""

    format: int
    version: str


class Estate(Struct):
    """A running master between two events, with no reload under way; times are monotonic, in seconds.

    `signals` have arrived but have not been obeyed yet.
    """

    format: int
    version: str
    started: float
    attention: MasterClock
    source: Source
    site: Site
    passed: list[tuple[str, socket.socket]]
    phase: Phase
    pools: dict[str, Pool]
    roster: RosterEstate
    premises: OwnFilesEstate
    signals: list[int]

    def descriptors(self) -> list[int]:
        """Every file descriptor that the next program inherits."""
        listeners = [each.socket.fileno() for found in self.site.listeners.values() for each in found]
        passed = [sock.fileno() for _, sock in self.passed]
        return [*listeners, *passed, *self.roster.descriptors(), *self.premises.descriptors()]


def encode(value: Any) -> bytes:
    """Encodes plain values and sockets; a random generator is left out."""
    return msgspec.msgpack.encode(value, enc_hook=_written)


def decode(kind: type[T], data: bytes, jitter: random.Random, *, dry: bool = False) -> T:
    """Decodes a value of this kind that `encode` wrote, with `jitter` as its random generator.

    With `dry`, it gets new sockets instead of those whose descriptors are in the data. Raises
    msgspec.MsgspecError if the data is of another kind.
    """

    def built(kind: type, value: Any) -> Any:
        if kind is random.Random:
            return jitter
        if kind is socket.socket:
            return socket.socket() if dry else socket.socket(fileno=value)
        return kind(value)

    return msgspec.msgpack.decode(data, type=kind, dec_hook=built)


def read(data: bytes, jitter: random.Random, *, dry: bool = False) -> Estate:
    """Returns the estate in `data`. Raises ForkdError if this version cannot take it over."""
    try:
        head = decode(Head, data, jitter)
        if head.format != FORMAT:
            raise ForkdError(f"it cannot take over from forkd {head.version}: restart forkd instead")
        return decode(Estate, data, jitter, dry=dry)
    except msgspec.MsgspecError as error:
        raise ForkdError(f"it cannot read what the master leaves ({error}): restart forkd instead") from None


def to_memory(data: bytes) -> int:
    """Returns a memfd that holds `data`, positioned at its beginning."""
    fd = os.memfd_create("forkd-estate")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def from_memory(fd: int) -> bytes:
    """Returns what `to_memory` wrote, and closes the descriptor."""
    with os.fdopen(fd, "rb") as file:
        return file.read()


def _written(value: Any) -> Any:
    if isinstance(value, random.Random):
        return None
    if isinstance(value, socket.socket):
        return value.fileno()
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"an estate has no {type(value).__name__}")
