"""The PID file: a number for others to read, and a lock that tells forkd itself whose file it is.

The number in a file may be stale, or belong to another program; nothing here trusts it. The lock belongs to
a process (fcntl(2), F_SETLK): the kernel releases it when the process ends, however it ends, keeps it across
an execve(2), and reports its holder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from forkd.errors import ForkdError, RunsAlreadyError
from forkd.kernel.owned_file import OwnedFile

_FLOCK: Final = "hhqqi0q"  # struct flock: type, whence, start, length, pid, padding
_NUMBER: Final = re.compile(rb"[\s\0]*\d*[\s\0]*")
_OPEN: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # opening a FIFO must not wait


class Pidfile:
    """The PID file of this process. `fd` holds its lock and must stay open; `leaving` is the file to remove at the end.

    Closing any other descriptor of the same file would release the lock, so it is never opened twice.
    """

    def __init__(self, path: str, fd: int, leaving: OwnedFile) -> None:
        self.path = path
        self.fd = fd
        self.leaving = leaving

    def remake(self) -> OwnedFile:
        """Creates the file again after its removal. Raises OSError, also if another file has taken its place."""
        fd, self.leaving = _write(self.path, os.link)
        os.close(self.fd)
        self.fd = fd
        return self.leaving

    def remove(self) -> None:
        """Removes the file, if it is still ours, and then releases its lock."""
        self.leaving.remove()
        os.close(self.fd)


def claim(path: Path) -> Pidfile:
    """Writes the PID file of this process, replacing one whose process is gone.

    RunsAlreadyError names the process that holds it; ForkdError says why it cannot be written.
    """
    try:
        return Pidfile(str(path), *_write(str(path), _place))
    except OSError as error:
        raise ForkdError(f"cannot write the PID file {path}: {error.strerror}") from None


def holder(path: Path) -> int | None:
    """Returns the PID of the process that holds the PID file at `path`.

    None if there is no such process, 0 if it is in a PID namespace that we cannot see. The holder itself must
    not call this (see Pidfile).
    """
    try:
        with _opened(str(path), os.O_RDONLY) as fd:
            return _writer(fd)
    except OSError:
        return None


def _write(path: str, place: Callable[[str, str], None]) -> tuple[int, OwnedFile]:
    """Writes and locks the file beside its place, then moves it there, so that no link at `path` is followed."""
    beside = f"{path}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(beside)  # noqa: PTH108  # left by an earlier process with our PID
    # 0600 until it is locked: no one else may open it and lock it first.
    fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, f"{os.getpid()}\n".encode())
        os.fchmod(fd, 0o644)
        leaving = OwnedFile.at(beside)._replace(path=path)
        place(beside, path)
    except BaseException:
        os.close(fd)
        raise
    finally:
        with suppress(OSError):
            os.unlink(beside)  # noqa: PTH108
    return fd, leaving


def _place(beside: str, path: str) -> None:
    """Puts the file where there is none, or a stale one. If many try at once, one succeeds."""
    while True:
        with suppress(FileExistsError):
            os.link(beside, path)
            return
        with suppress(FileNotFoundError):  # it was removed in between
            if _replace_stale(beside, path):
                return


def _replace_stale(beside: str, path: str) -> bool:
    """Replaces a file whose process is gone, holding its lock; False when another process was quicker."""
    with _opened(path, os.O_RDWR) as fd:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if (pid := _writer(fd)) is not None:
                raise RunsAlreadyError(pid, f"it holds the PID file {path}") from None
            if (pid := _reader(fd)) is not None:
                raise OSError(errno.EBUSY, f"process {pid} has locked it") from None
            return False
        # Only the holder of the lock replaces the file, so what is there now stays.
        if not os.path.samestat(os.lstat(path), os.fstat(fd)):
            return False
        if not _NUMBER.fullmatch(os.read(fd, 64)):
            raise OSError(errno.EEXIST, "the file there is not a PID file; remove it or choose another path")
        os.rename(beside, path)  # noqa: PTH104
        return True


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags | _OPEN)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = (
                "it is a symbolic link, which forkd does not follow; name the file itself, or remove the link"
            )
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EEXIST, "it is not a regular file")
        yield fd
    finally:
        os.close(fd)


def _writer(fd: int) -> int | None:
    """Returns the process that has locked the file for writing, which takes permission to write to it."""
    return _blocks(fd, fcntl.F_RDLCK)


def _reader(fd: int) -> int | None:
    """Returns the process that has locked the file in any way."""
    return _blocks(fd, fcntl.F_WRLCK)


def _blocks(fd: int, lock: int) -> int | None:
    """Returns the process that keeps us from such a lock (fcntl(2), F_GETLK); 0 if it is in another PID namespace."""
    asked = struct.pack(_FLOCK, lock, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(int(pid), 0)
