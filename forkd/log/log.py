"""Sets up and opens the log, and writes records to it. `record` decides what a record looks like.

Records travel through the standard library's logging, so what an application logs comes out in the same place
and form. Nothing waits for the log, and no record is lost silently: lost records are counted and reported.
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
_REST_SECONDS: Final = 0.1  # for the rest of a record that did not fit at once


def set_up(level: str, form: str, fd: int, *, to: Journal | None = None) -> logging.Handler:
    """Sends this process's records of `level` and above to descriptor `fd`, as "text" or "json".

    While `fd` leads to the journal (`to`, or the one that systemd announces), text becomes a journal entry. Returns
    the handler, for records that must go nowhere else.
    """
    logging.raiseExceptions = False
    root = logging.getLogger()
    # A second set-up keeps the first one's handler, which may still have lost records to report.
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
    """Logs one record: what happened, its fields, and below it an error's traceback or a block of text."""
    number = logging.getLevelNamesMapping()[level.upper()]
    if _LOGGER.isEnabledFor(number):
        exc_info = None if error is None else (type(error), error, error.__traceback__)
        _LOGGER.log(number, message, exc_info=exc_info, extra={"fields": fields or {}, "block": block})


def open_file(path: str) -> int:
    """Opens what `master.log.file` names, a file to append to or "-"; links are not followed. Returns a descriptor."""
    if path == "-":
        return standard_error()
    # Without O_NONBLOCK, opening a FIFO would wait for its reader, possibly for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        why = error.strerror
        if error.errno == errno.ELOOP:
            why = 'it is a symbolic link, which forkd does not follow; name the file itself ("-" is standard error)'
        raise ForkdError(f"cannot open the log file {path}: {why}") from None
    found = os.fstat(fd)
    why = "" if stat.S_ISREG(found.st_mode) else "it is not a regular file"
    if os.geteuid() == 0 and found.st_nlink > 1:  # a user who can write in its folder could redirect root's writes
        why = (
            "it has another name, too (ln), and could be any file on this machine; remove it, and forkd makes a new one"
        )
    if why:
        os.close(fd)
        raise ForkdError(f"cannot open the log file {path}: {why}")
    return fd


def standard_error() -> int:
    """Returns a new descriptor for standard error, or for /dev/null in a daemon that has none: its records are lost.

    A pipe is opened a second time, so that our writes never wait and its other users notice nothing.
    """
    try:
        return open_pipe(STANDARD_ERROR) or os.dup(STANDARD_ERROR)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def own_up() -> None:
    """Reports how many records this process has lost, if any, and if the log accepts records again."""
    for handler in logging.getLogger().handlers:
        handler.acquire()
        try:
            handler.flush()
        finally:
            handler.release()


def marked(level: str, text: str) -> str:
    """Returns the text for standard error: with a priority on each line if the journal reads it."""
    to = journal.found()
    with suppress(OSError):
        if to is not None and to.is_at(STANDARD_ERROR):
            return prefixed(text, priority(logging.getLevelNamesMapping()[level.upper()]))
    return text


def tell(line: str) -> None:
    """Writes a plain line to standard error, for the person who started us. Lost if it cannot be written at once."""
    with suppress(OSError):
        fd = standard_error()
        try:
            put(fd, f"{line}\n".encode(errors="backslashreplace"))
        finally:
            os.close(fd)


class _Descriptor(logging.Handler):
    """Writes each record with one write(2), so that the records of many processes do not mix.

    A record that cannot be written must neither end the service nor hold it up: it is counted, and the
    count is logged before the next record that can be written.
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
        """Logs how many records were lost, if the log accepts records again. logging also calls this at exit."""
        if self._pid != os.getpid():  # the parent reports what it lost before the fork
            self._pid, self._lost, self._torn = os.getpid(), 0, False
        if self._lost and self._write(_report(logging.WARNING, f"{_records(self._lost)} lost: {self._why}")):
            self._lost = 0
            self._mark(0)

    def _write(self, record: logging.LogRecord) -> bool:
        """Writes a record; False if not all of it could be written."""
        try:
            if self.journal is not None and self.journal.is_at(self.fd):
                self._send(self.journal, record)
            else:
                self._write_line(_safely(self.format, record))
        except OSError as error:
            slow = isinstance(error, BlockingIOError)
            self._why = "the log's reader is gone or too slow" if slow else error.strerror or str(error)
            self._tell_elsewhere()
            return False
        return True

    def _send(self, journal: Journal, record: logging.LogRecord) -> None:
        entry = _safely(as_entry, record)
        try:
            journal.send(entry)
        except OSError:  # its stream may still accept the text
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
            # A short write: either the disk is full, and the next write says so, or the record did not fit in a
            # pipe. A reader that is still reading soon makes room for the rest.
            over = over or monotonic() + _REST_SECONDS
            if (left := over - monotonic()) <= 0:
                raise BlockingIOError
            room = select.poll()
            room.register(self.fd, select.POLLOUT)
            room.poll(left * 1000)

    def _tell_elsewhere(self) -> None:
        """Reports on standard error, once for all our processes, why a log file cannot be written."""
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
        """Notes in the log file's open file description which process has reported the loss; 0 for none.

        Every process of ours writes to the same full disk, and one report is enough. They share no memory for such
        a note, and a file or a lock could fail just as the log does. But all of them inherited one open file
        description, and the kernel keeps a PID in it, its owner (fcntl(2), F_SETOWN): the process that gets SIGIO.
        A regular file never raises SIGIO, so that field is free for our use. Once the process that reported has
        ended, the kernel returns 0 for it (since Linux 5.12), and if the loss lasts, another process reports it. A
        process clears the note when it has lost records and can write again; a newly opened log file has none.
        """
        with suppress(OSError):
            if self._has_other_way():
                fcntl.fcntl(self.fd, fcntl.F_SETOWN, pid)


def _report(level: int, message: str) -> logging.LogRecord:
    """Returns a record of the log's own."""
    return own(level, message, {"pid": os.getpid()})


def _safely(form: Callable[[logging.LogRecord], _T], record: logging.LogRecord) -> _T:
    """Formats the record, or a stand-in for it if that fails."""
    try:
        return form(record)
    except Exception as error:
        return form(stand_in(record, error))


def _records(count: int) -> str:
    return f"{count} record was" if count == 1 else f"{count} records were"
