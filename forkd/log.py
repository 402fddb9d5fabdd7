"""Log records: one format, one set-up, and reopening.

The standard library's logging carries them, so that what an application logs comes out in the same
place and form. What a peer sent may stand in any of it: no control character reaches the log raw.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from forkd.errors import ForkdError

_LOGGER: Final = logging.getLogger("forkd")
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN: Final = re.compile(r"[^\s\"=\\]+")


def set_up(level: str, form: str, fd: int) -> None:
    """Sends every record of this process from `level` on to descriptor `fd`, as "text" or "json"."""
    logging.raiseExceptions = False
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = _Descriptor(fd)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)


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
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ForkdError(f"cannot open the log file {path}: it is no regular file")
    return fd


def escape(text: str) -> str:
    """The text with every control, line-breaking and direction-changing character written out."""
    return _UNSAFE.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    # Not the unicode_escape codec, which Python loads late: with privileges dropped it may be out of reach.
    character = found[0]
    number = ord(character)
    return _NAMED.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


class _Descriptor(logging.Handler):
    """Writes each record with one write(2), so that those of many processes do not mingle."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # a record that can't be formatted is still told of
            line = f"{record.levelname.lower()} a record from {record.pathname}:{record.lineno} is lost: {error!r}"
        with suppress(OSError):  # a log that can't be written must not end the service
            os.write(self._fd, (line + "\n").encode(errors="backslashreplace"))


class _Text(logging.Formatter):
    """`2026-01-31 12:00:00.000 info what happened key=value`, a traceback's lines indented below."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        when = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")  # as clocks here show
        name = "" if record.name == "forkd" else f"{escape(record.name)}: "
        line = f"{when} {record.levelname.lower()} {name}{escape(record.getMessage())}"
        line += "".join(f" {key}={_value(value)}" for key, value in fields.items() if value is not None)
        lines = _block(record)
        return line + "".join(f"\n    {escape(each)}" for each in lines)


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **({} if record.name == "forkd" else {"logger": record.name}),
            **{key: value for key, value in getattr(record, "fields", {}).items() if value is not None},
        }
        lines = _block(record)
        if lines:
            entry["text"] = "\n".join(lines)
        return json.dumps(entry, default=str)


def _block(record: logging.LogRecord) -> list[str]:
    text: str = getattr(record, "block", "")
    if record.exc_info and record.exc_info[1] is not None:
        text += "".join(traceback.format_exception(*record.exc_info))
    return text.rstrip("\n").split("\n") if text else []


def _value(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) and not _UNSAFE.search(text) else json.dumps(text)


def standard_error() -> int:
    """A new descriptor for standard error, which also a daemon without one has: then what is logged is lost."""
    try:
        return os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        return os.open(os.devnull, os.O_WRONLY)
