"""Threads and sockets that an import leaves behind are found and named."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from forkd.workers.fork_check import left_behind


def open_now() -> set[int]:
    found = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return {fd for fd in found if os.path.lexists(f"/proc/self/fd/{fd}")}  # without the descriptor that listed them


@contextmanager
def thread(name: str) -> Iterator[None]:
    over = threading.Event()
    running = threading.Thread(target=over.wait, name=name)
    running.start()
    try:
        yield
    finally:
        over.set()
        running.join()


def test_nothing_is_left_behind() -> None:
    assert [each for each in left_behind(open_now()) if "thread" not in each] == []


def test_a_thread_is_named() -> None:
    with thread("poller of prices"):
        assert "the thread 'poller of prices' runs" in left_behind(open_now())
    assert not any("poller" in each for each in left_behind(open_now()))


def test_a_thread_that_python_did_not_start_is_found() -> None:
    sem = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.sem_init(sem, 0, 0)
    handle = ctypes.c_ulong()
    # A C thread that waits in sem_wait(3), and that Python does not know about.
    assert libc.pthread_create(ctypes.byref(handle), None, libc.sem_wait, sem) == 0
    found = [each for each in left_behind(open_now()) if each.startswith("a native thread")]
    libc.sem_post(sem)
    libc.pthread_join(handle, None)
    assert found


def test_open_sockets_are_told_with_their_ends_unless_they_are_our_own() -> None:
    own = open_now()
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = opened.enter_context(socket.create_connection(listener.getsockname()))
        ours, theirs = socket.socketpair()
        opened.enter_context(ours)
        opened.enter_context(theirs)
        port = listener.getsockname()[1]
        found = [each for each in left_behind(own) if "socket" in each]
        assert f"a socket at 127.0.0.1:{port} is open (descriptor {listener.fileno()})" in found
        assert f"a socket to 127.0.0.1:{port} is open (descriptor {client.fileno()})" in found
        assert f"a socket is open (descriptor {ours.fileno()})" in found
        assert not any("socket" in each for each in left_behind(open_now()))
