"""A service manager for the tests: it reads messages, stores the descriptors it gets, and answers barriers.

It treats each message as systemd does (sd_notify(3)), and fails the test where systemd would complain.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.server import FORKD, LIMIT, Server, running

_LONGEST = 4096
_NAME = re.compile(r"[ -9;-~]{1,255}")  # printable ASCII without a colon

# Becomes forkd, with descriptors passed the way systemd does it: from 3 on, addressed to this PID.
_PASS = """
import os, sys
fds, names, *program = sys.argv[1:]
given = [int(fd) for fd in fds.split(",")]
high = [os.dup2(fd, 200 + at, False) for at, fd in enumerate(given)]
for fd in given:
    os.close(fd)
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names}
os.execvp(program[0], program)
"""


class Manager:
    """Listens at `address` in a thread; `room` is the size of its store (FileDescriptorStoreMax=).

    `messages` holds the messages received, except barriers; `senders` the PIDs that sent them; `store` pairs of name
    and descriptor.
    """

    def __init__(self, address: str, *, room: int = 64) -> None:
        self.address = address
        self.room = room
        self.messages: list[list[str]] = []
        self.senders: list[int] = []
        self.store: list[tuple[str, int]] = []
        self.wrong: list[str] = []
        self.barriers = 0
        self._heard = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it; fails if any message was wrong."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", "\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self._thread.join(LIMIT)
        self._socket.close()
        self.empty()
        assert self.wrong == []

    def empty(self) -> None:
        """Empties the store, as systemd does after a stop."""
        for _, fd in self.store:
            os.close(fd)
        self.store = []

    def said(self, pattern: str, count: int = 1, limit: float = LIMIT) -> list[re.Match[str]]:
        """Waits until `count` whole lines of messages match, and returns all matches so far."""

        def found() -> list[re.Match[str]]:
            lines = [line for message in self.messages for line in message]
            return [match for line in lines if (match := re.fullmatch(pattern, line))]

        with self._heard:
            if not self._heard.wait_for(lambda: len(found()) >= count, limit):
                raise AssertionError(f"not received: {pattern!r} {count} times: {self.messages}")
            return found()

    def names(self) -> list[str]:
        with self._heard:
            return sorted(name for name, _ in self.store)

    def stored(self, *names: str) -> None:
        """Waits until exactly these names are stored."""
        with self._heard:
            if not self._heard.wait_for(lambda: sorted(name for name, _ in self.store) == sorted(names), LIMIT):
                raise AssertionError(f"not {sorted(names)}: {self.store}, after {self.messages}")

    def given(self, pattern: str, count: int = 1) -> bool:
        """Whether sockets with matching names were given to the store at least `count` times."""
        with self._heard:
            names = [message[1].removeprefix("FDNAME=") for message in self.messages if message[0] == "FDSTORE=1"]
            return sum(bool(re.fullmatch(pattern, name)) for name in names) >= count

    def forget(self) -> None:
        """Forgets the messages received so far."""
        with self._heard:
            self.messages.clear()
            self.senders.clear()

    def _read(self) -> None:
        while True:
            data, ancillary, flags, _ = self._socket.recvmsg(_LONGEST, 4096)
            if not data:
                return
            fds: list[int] = []
            sender = 0
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds += array("i", value)
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    sender, _, _ = struct.unpack("iii", value)
            with self._heard:
                if flags & socket.MSG_TRUNC:
                    self.wrong.append(f"too long: {data!r}")
                self._take(data.decode().split("\n"), sender, fds)
                self._heard.notify_all()

    def _take(self, lines: list[str], sender: int, fds: list[int]) -> None:
        said = dict(line.split("=", 1) for line in lines)
        name = said.get("FDNAME", "")
        if ("FDSTORE" in said or "FDSTOREREMOVE" in said) and not _NAME.fullmatch(name):
            self.wrong.append(f"no name: {name!r}")
        if "BARRIER" in said:
            self.barriers += 1
            if len(said) > 1 or len(fds) != 1:
                self.wrong.append(f"no barrier: {lines}, {fds}")
        else:
            self.messages.append(lines)
            self.senders.append(sender)
        if "FDSTORE" in said:
            for fd in fds:
                if len(self.store) < self.room and not any(os.path.sameopenfile(fd, each) for _, each in self.store):
                    self.store.append((name, os.dup(fd)))
        if "FDSTOREREMOVE" in said:
            for each, fd in self.store:
                if each == name:
                    os.close(fd)
            self.store = [(each, fd) for each, fd in self.store if each != name]
        for fd in fds:
            os.close(fd)


@contextmanager
def environment() -> Iterator[None]:
    """Restores the variables that a service manager sets, after the block.

    It touches no others, because setproctitle relies on where the environment was when Python started.
    """
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ |= before


@contextmanager
def managed(
    manager: Manager, folder: Path, *, passed: Sequence[tuple[str, int]] = (), **variables: str
) -> Iterator[Server]:
    """Runs `forkd run forkd.toml` in `folder` as the manager would: it passes `passed`, then what is in the store."""
    command = ["env", f"NOTIFY_SOCKET={manager.address}", *(f"{name}={value}" for name, value in variables.items())]
    given = [*passed, *manager.store]
    fds = [fd for _, fd in given]
    if given:
        names = ":".join(name for name, _ in given)
        command += [sys.executable, "-c", _PASS, ",".join(str(fd) for fd in fds), names]
    with running(["forkd.toml"], folder, program=[*command, *FORKD], fds=fds) as server:
        yield server
