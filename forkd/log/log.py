"""Log records on their way: one set-up, and reopening. What a record looks like is the affair of `record`.

The standard library's logging carries them, so that what an application logs comes out in the same place
and form. Nobody waits for the log, and no record is lost in silence: what could not be written is counted, and told.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Final, TypeVar

from forkd.errors import ForkdError
from forkd.log import journal
from forkd.log.journal import Journal
from forkd.log.record import Json, Text, as_entry, own, prefixed, priority, stand_in
from forkd.log.write import open_pipe, put

_T = TypeVar("_T")

_LOGGER: Final = logging.getLogger("forkd")
STANDARD_ERROR: Final = 2
_REST_SECONDS: Final = 0.1  # for what is left of a record longer than there was room for


def set_up(level: str, form: str, fd: int, *, to: Journal | None = None) -> logging.Handler:
    """Sends every record of this process from `level` on to descriptor `fd`, as "text" or "json".

    Text becomes an entry of the journal `to`, or the one that systemd tells of, while `fd` leads there. Gives what
    takes them there, for records that are to go nowhere else.
    """
    logging.raiseExceptions = False
    root = logging.getLogger()
    # A second set-up goes on with the first one's handler: it may have lost records still to be told of.
    handler = next((each for each in root.handlers if isinstance(each, _Descriptor)), None) or _Descriptor(fd)
    handler.fd = fd
    handler.journal = None if form == "json" else to or journal.found()
    handler.setFormatter(Json() if form == "json" else Text())
    for each in list(root.handlers):
        root.removeHandler(each)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    return handler


def say(
    level: str,
    message: str,
    fields: Mapping[str, object] | None = None,
    *,
    error: BaseException | None = None,
    block: str = "",
) -> None:
    """One record: what happened, the facts beside it, and below it an error's traceback or a block of text."""
    number = logging.getLevelNamesMapping()[level.upper()]
    if _LOGGER.isEnabledFor(number):
        exc_info = None if error is None else (type(error), error, error.__traceback__)
        _LOGGER.log(number, message, exc_info=exc_info, extra={"fields": fields or {}, "block": block})


def open_file(path: str) -> int:
    """A new descriptor for what `master.log.file` names: a file to append to (a link is not followed), or "-"."""
    if path == "-":
        return standard_error()
    # Without O_NONBLOCK, opening a FIFO that somebody put there would wait for its reader, for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        why = error.strerror
        if error.errno == errno.ELOOP:
            why = 'it is a symbolic link, and none is followed; write the path it leads to ("-" is standard error)'
        raise ForkdError(f"cannot open the log file {path}: {why}") from None
    found = os.fstat(fd)
    why = "" if stat.S_ISREG(found.st_mode) else "it is no regular file"
    if os.geteuid() == 0 and found.st_nlink > 1:  # whoever may write in its folder could have us write where root may
        why = "it has another name, too (ln), and could be any file of this machine; remove it, and a new one is made"
    if why:
        os.close(fd)
        raise ForkdError(f"cannot open the log file {path}: {why}")
    return fd


def standard_error() -> int:
    """A new descriptor for standard error, which also a daemon without one has: then what is logged is lost.

    A pipe is opened anew, so that a write to it never waits and its other users notice nothing.
    """
    try:
        return open_pipe(STANDARD_ERROR) or os.dup(STANDARD_ERROR)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def own_up() -> None:
    """Tells how many records this process has lost, if there are any and the log takes records by now."""
    for handler in logging.getLogger().handlers:
        handler.acquire()
        try:
            handler.flush()
        finally:
            handler.release()


def marked(level: str, text: str) -> str:
    """The text as it is to stand on standard error: each line with its priority, where the journal reads it."""
    to = journal.found()
    with suppress(OSError):
        if to is not None and to.is_at(STANDARD_ERROR):
            return prefixed(text, priority(logging.getLevelNamesMapping()[level.upper()]))
    return text


def tell(line: str) -> None:
    """A line on standard error, as it is, for whoever started us; it is lost if it can't go at once."""
    with suppress(OSError):
        fd = standard_error()
        try:
            put(fd, f"{line}\n".encode(errors="backslashreplace"))
        finally:
            os.close(fd)


class _Descriptor(logging.Handler):
    """Writes each record with one write(2), so that those of many processes do not mingle.

    A record that can't be written must neither end the service nor hold it up: it is counted, and
    how many were lost stands before the next one that can be.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.journal: Journal | None = None
        self._pid = os.getpid()
        self._lost = 0
        self._why = ""
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        self.flush()
        if self._lost or not self._write(record):
            self._lost += 1

    def flush(self) -> None:
        """Tells how many records were lost, if the log takes it by now; at a program's exit, logging asks for it."""
        if self._pid != os.getpid():  # what was lost before a fork is the parent's to tell
            self._pid, self._lost, self._torn = os.getpid(), 0, False
        if self._lost and self._write(_report(logging.WARNING, f"{_records(self._lost)} lost: {self._why}")):
            self._lost = 0
            self._mark(0)

    def _write(self, record: logging.LogRecord) -> bool:
        """Whether the record has gone, all of it."""
        try:
            if self.journal is not None and self.journal.is_at(self.fd):
                self._send(self.journal, record)
            else:
                self._write_line(_safely(self.format, record))
        except OSError as error:
            slow = isinstance(error, BlockingIOError)
            self._why = "nobody read the log, or not fast enough" if slow else error.strerror or str(error)
            self._tell_elsewhere()
            return False
        return True

    def _send(self, journal: Journal, record: logging.LogRecord) -> None:
        entry = _safely(as_entry, record)
        try:
            journal.send(entry)
        except OSError:  # its stream may still take the text
            self._write_line(prefixed(entry["MESSAGE"], int(entry["PRIORITY"])))

    def _write_line(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        self._put_all(b"\n" + data if self._torn else data)

    def _put_all(self, data: bytes) -> None:
        over = None
        while True:
            written = put(self.fd, data)
            self._torn = data[written - 1 : written] != b"\n"
            data = data[written:]
            if not data:
                return
            # A short write: a disk is full, which the next one says, or the record is longer than
            # there is room in a pipe. A reader that is at work makes room for the rest at once.
            over = over or monotonic() + _REST_SECONDS
            if (left := over - monotonic()) <= 0:
                raise BlockingIOError
            room = select.poll()
            room.register(self.fd, select.POLLOUT)
            room.poll(left * 1000)

    def _tell_elsewhere(self) -> None:
        """Says on standard error, once for all our processes, why nothing comes into a log that is a file."""
        with suppress(OSError):
            if self._has_other_way() and not fcntl.fcntl(self.fd, fcntl.F_GETOWN):
                path = os.readlink(f"/proc/self/fd/{self.fd}")  # noqa: PTH115
                why = f"records are lost: the log file {path} cannot be written: {self._why}"
                line = self.format(_report(logging.ERROR, why))
                put(STANDARD_ERROR, f"{line}\n".encode(errors="backslashreplace"))
                self._mark(os.getpid())

    def _has_other_way(self) -> bool:
        file = os.fstat(self.fd)
        return stat.S_ISREG(file.st_mode) and not os.path.samestat(file, os.fstat(STANDARD_ERROR))

    def _mark(self, pid: int) -> None:
        """Notes which process has told, 0 for none, where all that inherited the log file find it.

        Its owner (fcntl(2), F_SETOWN) is such a place: no signal ever comes of a regular file.
        """
        with suppress(OSError):
            if self._has_other_way():
                fcntl.fcntl(self.fd, fcntl.F_SETOWN, pid)


def _report(level: int, message: str) -> logging.LogRecord:
    """A record of the log's own."""
    return own(level, message, {"pid": os.getpid()})


def _safely(form: Callable[[logging.LogRecord], _T], record: logging.LogRecord) -> _T:
    """The record in a form; what is told of one that can't be had in it."""
    try:
        return form(record)
    except Exception as error:
        return form(stand_in(record, error))


def _records(count: int) -> str:
    return f"{count} record was" if count == 1 else f"{count} records were"
