"""Turns what an application prints into log records.

Otherwise a handler that prints what a peer sent, or a thread that ends with an exception, would write it unescaped if
the log is standard error, and not to the log at all if that is a file. Standard output is left to the application,
unless it leads to the same place. Programs that an application starts, and code that bypasses Python, write where
they always did.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Final

from forkd.log import log

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_LONGEST: Final = 65536  # bytes of an unfinished line after which it becomes a record


def lead_to_log(service: str, handler: logging.Handler) -> None:
    """Makes each printed line a record for `handler`, in this process and its children.

    Lines of `sys.stderr` have level warning; those of `sys.stdout`, if it leads to the same place, level info. The
    exception that ends a thread is one record, not one for each line of its traceback.
    """
    sys.stderr = _stream("stderr", 2, logging.WARNING, service, handler)
    if os.path.samestat(os.fstat(1), os.fstat(2)):
        sys.stdout = _stream("stdout", 1, logging.INFO, service, handler)
    threading.excepthook = lambda last: _thread_failed(last, service)


def _stream(name: str, fd: int, level: int, service: str, handler: logging.Handler) -> io.TextIOWrapper:
    logger = logging.getLogger(name)
    # Bypasses the root logger: a handler that an application added there may itself print, without end.
    logger.propagate = False
    logger.handlers = [handler]
    return io.TextIOWrapper(_LoggedLines(fd, logger, level, service), "utf-8", "backslashreplace", write_through=True)


def _thread_failed(last: threading.ExceptHookArgs, service: str) -> None:
    if last.exc_type is not SystemExit and last.exc_value is not None:
        name = "" if last.thread is None else f" {last.thread.name!r}"
        facts = {"service": service, "pid": os.getpid()}
        log.say("error", f"the thread{name} ended with an exception", facts, error=last.exc_value)


class _LoggedLines(io.RawIOBase):
    """A byte stream that logs each line as a record."""

    def __init__(self, fd: int, logger: logging.Logger, level: int, service: str) -> None:
        self.name = f"<{logger.name}>"
        self._fd = fd
        self._logger = logger
        self._level = level
        self._service = service
        self._begun = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd  # for code that needs a descriptor, such as one that starts a program

    def write(self, data: ReadableBuffer, /) -> int:
        *lines, self._begun = (self._begun + bytes(data)).split(b"\n")
        if len(self._begun) > _LONGEST:
            lines, self._begun = [*lines, self._begun], b""
        for line in lines:
            self._say(line)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Logs an unfinished line as well: a fork would duplicate it, and an exit would lose it."""
        line, self._begun = self._begun, b""
        self._say(line)

    def _say(self, line: bytes) -> None:
        if text := line.decode(errors="backslashreplace").rstrip():
            facts = {"service": self._service, "pid": os.getpid()}
            self._logger.log(self._level, "%s", text, extra={"fields": facts})
