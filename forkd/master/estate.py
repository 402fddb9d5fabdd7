"""What a master leaves to the program that takes its place: everything that it knows, as bytes and descriptors.

The rooms tell what they have as plain values; here they are written down and read. A socket is written
as its descriptor, which goes along through execve(2). Fields may be added with a default from one version
to the next; what an old fork server or worker would not understand of a new master (messages, rows of the
scoreboard) is a new FORMAT, which an upgrade refuses and a restart takes.
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
    """What every version can read of every other's estate."""

    format: int
    version: str


class Estate(Struct):
    """A running master between two events, with no reload under way; times are monotonic, in seconds.

    `signals` have come and were not obeyed yet.
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
        """Every descriptor that goes along."""
        listeners = [each.socket.fileno() for found in self.site.listeners.values() for each in found]
        passed = [sock.fileno() for _, sock in self.passed]
        return [*listeners, *passed, *self.roster.descriptors(), *self.premises.descriptors()]


def encode(value: Any) -> bytes:
    """Plain values, and sockets, as bytes; chance is left out."""
    return msgspec.msgpack.encode(value, enc_hook=_written)


def decode(kind: type[T], data: bytes, jitter: random.Random, *, dry: bool = False) -> T:
    """The value of this kind that `encode` wrote, with chance of its own.

    A `dry` one has new sockets instead of those whose descriptors are written there. Raises
    msgspec.MsgspecError when it is of another kind.
    """

    def built(kind: type, value: Any) -> Any:
        if kind is random.Random:
            return jitter
        if kind is socket.socket:
            return socket.socket() if dry else socket.socket(fileno=value)
        return kind(value)

    return msgspec.msgpack.decode(data, type=kind, dec_hook=built)


def read(data: bytes, jitter: random.Random, *, dry: bool = False) -> Estate:
    """The estate in `data`; ForkdError when this version cannot take it over."""
    try:
        head = decode(Head, data, jitter)
        if head.format != FORMAT:
            raise ForkdError(f"it cannot take over from forkd {head.version}: restart forkd instead")
        return decode(Estate, data, jitter, dry=dry)
    except msgspec.MsgspecError as error:
        raise ForkdError(f"it cannot take over what is there ({error}): restart forkd instead") from None


def to_memory(data: bytes) -> int:
    """A memfd that holds `data`, at its beginning."""
    fd = os.memfd_create("forkd-estate")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def from_memory(fd: int) -> bytes:
    """What `to_memory` wrote; the descriptor is closed."""
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
