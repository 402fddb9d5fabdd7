"""The kernel's records of a process and of this network: descriptors, memory, processor time, listeners."""

from __future__ import annotations

import os
import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.server import LIMIT, open_files, until

_NUMBERS = re.compile(r"\d+")


def descriptors(pid: int) -> Counter[str]:
    """Counts a process's open descriptors by kind: `socket:[123]` and `socket:[456]` are the same here."""
    return Counter(_NUMBERS.sub("N", each) for each in open_files(pid))


def descriptors_at_rest(pid: int) -> Counter[str]:
    """Returns the same once it has not changed for 0.1 s, since the last command's descriptors may still be open."""
    pause = threading.Event()
    before: list[Counter[str]] = [Counter()]

    def at_rest() -> bool:
        before.append(descriptors(pid))
        pause.wait(0.1)
        return before[-1] == before[-2]

    until(at_rest, "descriptors at rest")
    return before[-1]


def lowest_free_descriptor(pid: int) -> int:
    """Returns the number that a process's next descriptor would get."""
    used = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(len(used) + 1) if number not in used)


def private_memory(pid: int) -> int:
    """Returns a process's private memory in KiB (proc(5), smaps_rollup)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Private_Dirty:", "Swap:")))


def processor_seconds(pids: Iterable[int]) -> float:
    """Returns the processor time of processes in seconds (proc(5), schedstat: nanoseconds, whereas stat has ticks)."""
    total = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return total / 1e9


def listener(address: str) -> str:
    """Returns the inode of the socket that listens on the IPv4 address (proc(5), net/tcp); "" if none does."""
    port = int(address.rpartition(":")[2])
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].partition(":")[2], 16) == port:
            return fields[9]
    return ""


def free_port() -> int:
    """Returns a free port; it stays free, because this network namespace is ours alone."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def may_bind(address: str) -> bool:
    """Whether a new server could bind the IPv4 address because no one listens on it."""
    host, _, port = address.rpartition(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, int(port)))
        except OSError:
            return False
        return True


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


class Obituaries:
    """Records to the microsecond when processes end, by watching their pidfds (pidfd_open(2))."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._poll = select.poll()
        self._watched: dict[int, int] = {}
        for pid in pids:
            with suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                self._watched[fd] = pid
                self._poll.register(fd, select.POLLIN)
        self.ended: dict[int, float] = {}

    def wait(self, limit: float = LIMIT) -> dict[int, float]:
        """Waits until all have ended; returns, by PID, when each did, in seconds on the monotonic clock."""
        deadline = time.monotonic() + limit
        while self._watched:
            for fd, _ in self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self.ended[self._watched.pop(fd)] = time.monotonic()
                self._poll.unregister(fd)
                os.close(fd)
            if time.monotonic() > deadline:
                raise AssertionError(f"still there after {limit:g} s: {sorted(self._watched.values())}")
        return self.ended

    def close(self) -> None:
        for fd in self._watched:
            os.close(fd)


@contextmanager
def watched(pids: Iterable[int]) -> Iterator[Obituaries]:
    obituaries = Obituaries(pids)
    try:
        yield obituaries
    finally:
        obituaries.close()
