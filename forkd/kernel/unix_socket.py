"""A unix socket at its path: its rights first, a stale one replaced, a live one refused (unix(7))."""

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
    """A bound unix socket whose file appears at `path` with its rights already set.

    It is bound beside its place and renamed there, so that nobody ever meets it with wider
    rights or not yet listening. A stale socket at `path` is replaced, anything else refused; with
    `replace`, what stands there is the caller's.
    """
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:  # it could be renamed there, but nobody could connect
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
                os.unlink(beside)  # noqa: PTH108  # a leaving of an earlier process of our number
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
    """A name for the socket that we have just put at `path`, which stays that socket's.

    Others who may write in the folder could have put a link to another file in its place, for us to give away.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "somebody has put something else in the socket's place")
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _refuse_occupied(path: str) -> None:
    """Raises when `path` is taken by anything but a socket that nobody listens on."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(
            errno.EEXIST, "something that is no socket stands there; remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its queue is full, so it is very much alive
    raise OSError(errno.EADDRINUSE, "another server listens there")
