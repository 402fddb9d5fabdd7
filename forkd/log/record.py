"""Formats a log record: text for people, JSON for machines, an entry for systemd's journal.

Bytes from a peer may get into any part of a record, through an exception, a name or what an application logs. So no
control character reaches a log unescaped, and only a record's first line starts at the margin. `log` decides
where a record goes.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

_OWN: Final = "forkd"
# Control characters of ASCII and Latin-1, line separators, and Unicode's Bidi_Control, which changes text direction.
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN: Final = re.compile(r"[^\s\"=\\]+")
_INDENT: Final = "    "
_NO_JOURNAL_NAME: Final = re.compile(r"[^A-Z0-9_]")
_JOURNAL_NAME_CHARACTERS: Final = 64
_GLOSSARY: Final = {"worker": "SLOT", "gen": "GENERATION"}
# The priorities of syslog(3), each with the lowest level that has it.
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY: Final = 7

Entry = dict[str, str]
"""A journal entry: its fields by name (systemd.journal-fields(7)), including MESSAGE and PRIORITY."""


def escape(text: str) -> str:
    """Escapes every character that controls a terminal, breaks a line or changes the text's direction."""
    return _UNSAFE.sub(_written_out, text)


def own(level: int, message: str, fields: Mapping[str, object]) -> logging.LogRecord:
    """Makes a record of forkd's own, without a logger."""
    record = logging.LogRecord(_OWN, level, "", 0, message, None, None)
    record.fields = fields
    return record


def stand_in(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Makes the record that replaces one that cannot be formatted."""
    why = type(error).__name__
    with suppress(Exception):
        why = repr(error)
    where = f"{record.pathname}:{record.lineno}"
    return own(record.levelno, f"a record from {where} cannot be written: {why}", {})


class Text(logging.Formatter):
    """`2026-01-31 12:00:00.000 info what happened key=value`, with the lines of a traceback indented below."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")  # local time
        return f"{when} {escape(record.levelname.lower())} {_told(record)}"


class Json(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **({} if record.name == _OWN else {"logger": record.name}),
            **dict(_facts(record)),
        }
        lines = _block(record)
        if lines:
            entry["text"] = "\n".join(lines)
        return json.dumps(entry, default=str)  # ASCII only, so everything is escaped


def as_entry(record: logging.LogRecord) -> Entry:
    """Makes a journal entry: the text without time and level, which the journal keeps itself, and each field."""
    found = {"MESSAGE": _told(record), "PRIORITY": str(priority(record.levelno)), "SYSLOG_IDENTIFIER": _OWN}
    if record.name != _OWN:
        found["FORKD_LOGGER"] = escape(record.name)
    for key, value in _facts(record):
        name = "FORKD_" + _NO_JOURNAL_NAME.sub("_", _GLOSSARY.get(key, key.upper()))
        found[name[:_JOURNAL_NAME_CHARACTERS]] = escape(_plain(value))
    return found


def priority(level: int) -> int:
    """Returns the syslog(3) priority of a logging level."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


def prefixed(text: str, number: int) -> str:
    """Puts the priority before each line, as sd-daemon(3) defines it for standard error."""
    return "\n".join(f"<{number}>{line}" for line in text.split("\n"))


def _told(record: logging.LogRecord) -> str:
    name = "" if record.name == _OWN else f"{escape(record.name)}: "
    facts = "".join(f" {_value(key)}={_value(value)}" for key, value in _facts(record))
    lines = "".join(f"\n{_INDENT}{escape(each)}" for each in _block(record))
    return f"{name}{escape(record.getMessage())}{facts}{lines}"


def _facts(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    fields = getattr(record, "fields", None)
    if isinstance(fields, Mapping):  # otherwise it is an attribute of the application's that happens to have this name
        yield from ((str(key), value) for key, value in fields.items() if value is not None)


def _block(record: logging.LogRecord) -> list[str]:
    text = str(getattr(record, "block", ""))
    if record.exc_info and record.exc_info[1] is not None:
        text += "".join(traceback.format_exception(*record.exc_info))
    return text.rstrip("\n").split("\n") if text else []


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(value: object) -> str:
    text = _plain(value)
    return text if _PLAIN.fullmatch(text) and not _UNSAFE.search(text) else json.dumps(text)


def _written_out(found: re.Match[str]) -> str:
    # Not the unicode_escape codec: Python loads it late, and after the drop of privileges it may be unreadable.
    character = found[0]
    number = ord(character)
    return _NAMED.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
