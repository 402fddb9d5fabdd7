"""Finds what an application's import left behind that a fork would break: running threads and open sockets.

A thread does not exist in a forked process, but the locks that it holds do, locked for ever (fork(2),
pthread_atfork(3)). A socket does exist there, so all workers would talk on the same connection. Each find is named, so
that its owner can move it into the service's lifespan.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Set
from contextlib import suppress

from forkd.kernel.address import from_sockaddr

REMEDY = "start threads and open sockets in the service's lifespan, which begins in each worker after the fork"


def left_behind(own: Set[int]) -> list[str]:
    """Returns a sentence for each thread but the main one, and for each open socket that is not in `own`."""
    return [*_threads(), *_sockets(own)]


def _threads() -> list[str]:
    named = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    for task in sorted(int(name) for name in os.listdir("/proc/self/task")):  # noqa: PTH208
        if task == os.getpid():
            continue
        name = named.get(task)
        found.append(f"the thread {name!r} runs" if name else f"a native thread{_command(task)} runs")
    return found


def _command(task: int) -> str:
    """Returns the kernel's name of a thread that Python did not start; nothing if it has just ended."""
    with suppress(OSError), open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as comm:  # noqa: PTH123
        return f" {comm.read().strip()!r}"
    return ""


def _sockets(own: Set[int]) -> list[str]:
    found = []
    for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208
        with suppress(OSError):
            if fd not in own and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):  # noqa: PTH115
                found.append(f"a socket{_ends(fd)} is open (descriptor {fd})")
    return found


def _ends(fd: int) -> str:
    """Returns where a socket leads, or else where it listens."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        for word, name in ((" to", sock.getpeername), (" at", sock.getsockname)):
            with suppress(OSError):
                end = name()
                if end:
                    known = sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
                    return f"{word} {from_sockaddr(sock.family, end) if known else end}"
    return ""
