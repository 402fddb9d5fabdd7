"""The pid file: a number for others to read, and a lock by which forkd itself knows whose it is.

A number that stands in a file may be a stale one, or by now another program's; nothing here believes it.
The lock is one of a process (fcntl(2), F_SETLK): the kernel gives it up with the process, however that
ends, keeps it over an execve(2), and tells who has it.
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

_FLOCK: Final = "hhqqi0q"  # struct flock: type, whence, start, length, pid; and the padding at its end
_NUMBER: Final = re.compile(rb"[\s\0]*\d*[\s\0]*")
_OPEN: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO that somebody put there is not waited for


class Pidfile:
    """The pid file of this process; `fd` holds its lock and has to stay open, `leaving` is what stands there.

    Any other descriptor of the same file, once closed, would give the lock up: so it is never opened a second time.
    """

    def __init__(self, path: str, fd: int, leaving: OwnedFile) -> None:
        self.path = path
        self.fd = fd
        self.leaving = leaving

    def remake(self) -> OwnedFile:
        """Puts it there once more, but not in place of anything that somebody else has put there. May raise OSError."""
        fd, self.leaving = _write(self.path, os.link)
        os.close(self.fd)
        self.fd = fd
        return self.leaving

    def remove(self) -> None:
        """Removes the file, if it is still ours, before its lock goes."""
        self.leaving.remove()
        os.close(self.fd)


def claim(path: Path) -> Pidfile:
    """Writes the pid file of this process, in place of one whose process is gone.

    RunsAlreadyError names the process that has it; ForkdError says why it cannot be had.
    """
    try:
        return Pidfile(str(path), *_write(str(path), _place))
    except OSError as error:
        raise ForkdError(f"cannot write the pid file {path}: {error.strerror}") from None


def holder(path: Path) -> int | None:
    """The process whose pid file stands at `path`, None if it is gone; 0 for one that cannot be seen from here.

    Not to be called by the process that has it (see Pidfile).
    """
    try:
        with _opened(str(path), os.O_RDONLY) as fd:
            return _writer(fd)
    except OSError:
        return None


def _write(path: str, place: Callable[[str, str], None]) -> tuple[int, OwnedFile]:
    """Written and locked beside its place and then put there, so that no link that stands there is followed."""
    beside = f"{path}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(beside)  # noqa: PTH108  # a leaving of an earlier process of our number
    # Until it is locked, nobody else may open it, and so lock it.
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
    """Puts the file where none is, or a stale one. Of many who try at once, one is left."""
    while True:
        with suppress(FileExistsError):
            os.link(beside, path)
            return
        with suppress(FileNotFoundError):  # somebody took it away meanwhile
            if _replace_stale(beside, path):
                return


def _replace_stale(beside: str, path: str) -> bool:
    """Takes the place of a file whose process is gone, under its lock; False when another one was quicker."""
    with _opened(path, os.O_RDWR) as fd:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if (pid := _writer(fd)) is not None:
                raise RunsAlreadyError(pid, f"it has the pid file {path}") from None
            if (pid := _reader(fd)) is not None:
                raise OSError(errno.EBUSY, f"process {pid} has locked it") from None
            return False
        # Who replaces the file holds its lock: so what stands there now stays.
        if not os.path.samestat(os.lstat(path), os.fstat(fd)):
            return False
        if not _NUMBER.fullmatch(os.read(fd, 64)):
            raise OSError(errno.EEXIST, "what stands there is no pid file; remove it, or choose another path")
        os.rename(beside, path)  # noqa: PTH104
        return True


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags | _OPEN)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "it is a symbolic link, and none is followed; write the path it leads to, or remove it"
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EEXIST, "what stands there is no regular file")
        yield fd
    finally:
        os.close(fd)


def _writer(fd: int) -> int | None:
    """Who has locked the file for writing, as only somebody can who may write to it."""
    return _blocks(fd, fcntl.F_RDLCK)


def _reader(fd: int) -> int | None:
    """Who has locked the file in any way."""
    return _blocks(fd, fcntl.F_WRLCK)


def _blocks(fd: int, lock: int) -> int | None:
    """The process that keeps us from such a lock (fcntl(2), F_GETLK); 0 for one of another pid namespace."""
    asked = struct.pack(_FLOCK, lock, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(int(pid), 0)
