"""Binding a unix socket to its path: rights are set first, a stale socket is replaced, a live one refused (unix(7))."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forkd.kernel.address import UNIX_PATH_BYTES


def bind_unix(
    path: str, mode: int | None, own: Callable[[str], None] = lambda path: None, *, replace: bool = False
) -> socket.socket:
    """Returns a listening unix socket whose file appears at `path` with its mode already set.

    It is bound beside its place and renamed there, so that no one ever finds it with wider rights or not yet
    listening. `own` is called with a path to the file, to change its owner. A stale socket at `path` is replaced,
    anything else refused; `replace` says that the file there is the caller's own. Raises OSError.
    """
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:  # it could be renamed there, but no one could connect
        raise OSError(errno.ENAMETOOLONG, f"the path is longer than the {UNIX_PATH_BYTES} bytes that unix(7) allows")
    if not replace:
        _refuse_occupied(path)
    beside = f"{path}.{os.getpid()}"
    if len(os.fsencode(beside)) > UNIX_PATH_BYTES:
        beside = str(Path(path).parent / f".{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        umask = os.umask(0o177)
        try:
            with suppress(FileNotFoundError):
                os.unlink(beside)  # noqa: PTH108  # left by an earlier process with our PID
            sock.bind(beside)
        finally:
            os.umask(umask)
        with _held(beside) as held:
            os.chmod(held, 0o777 & ~umask if mode is None else mode)  # noqa: PTH101
            own(held)
        sock.listen(socket.SOMAXCONN)
        os.rename(beside, path)  # noqa: PTH104
    except BaseException:
        sock.close()
        with suppress(OSError):
            os.unlink(beside)  # noqa: PTH108
        raise
    return sock


@contextmanager
def _held(path: str) -> Iterator[str]:
    """Yields a path that leads to the socket that we have just bound at `path`, and to nothing else.

    Other users who may write in the folder could have put a link to another file in its place, to make us change
    that file's owner.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "another user has put something else in the socket's place")
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _refuse_occupied(path: str) -> None:
    """Raises OSError if there is anything at `path` but a socket that no process listens on."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "the file there is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its accept queue is full, so a server is alive
    raise OSError(errno.EADDRINUSE, "another server listens there")
