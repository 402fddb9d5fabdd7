"""A log record as text for people, as JSON for machines, and as an entry of systemd's journal.

What a peer sent may stand in any part of it, by way of an exception, a name or what an application says: no
control character reaches a log raw, and no line but a record's first begins at the margin. Where a
record goes is the affair of `log`.
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
# Controls of ASCII and Latin-1, the line separators, and what changes the direction of a text (Unicode, Bidi_Control).
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN: Final = re.compile(r"[^\s\"=\\]+")
_INDENT: Final = "    "
_NO_JOURNAL_NAME: Final = re.compile(r"[^A-Z0-9_]")
_JOURNAL_NAME_CHARACTERS: Final = 64
_GLOSSARY: Final = {"worker": "SLOT", "gen": "GENERATION"}
# The priorities of syslog(3), each from this level on.
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY: Final = 7

Entry = dict[str, str]
"""An entry of the journal: its fields by name (systemd.journal-fields(7)), MESSAGE and PRIORITY among them."""


def escape(text: str) -> str:
    """The text with every control, line-breaking and direction-changing character written out."""
    return _UNSAFE.sub(_written_out, text)


def own(level: int, message: str, fields: Mapping[str, object]) -> logging.LogRecord:
    """A record that forkd makes without a logger."""
    record = logging.LogRecord(_OWN, level, "", 0, message, None, None)
    record.fields = fields
    return record


def stand_in(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """What is told instead of a record that cannot be formatted."""
    why = type(error).__name__
    with suppress(Exception):
        why = repr(error)
    where = f"{record.pathname}:{record.lineno}"
    return own(record.levelno, f"a record from {where} cannot be written: {why}", {})


class Text(logging.Formatter):
    """`2026-01-31 12:00:00.000 info what happened key=value`, a traceback's lines indented below."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")  # as clocks here show
        return f"{when} {escape(record.levelname.lower())} {_told(record)}"


class Json(logging.Formatter):
    """One JSON object a line."""

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
        return json.dumps(entry, default=str)  # in ASCII, so that nothing in it is raw


def as_entry(record: logging.LogRecord) -> Entry:
    """The record for the journal: what the text says, without what the journal notes by itself, and each fact alone."""
    found = {"MESSAGE": _told(record), "PRIORITY": str(priority(record.levelno)), "SYSLOG_IDENTIFIER": _OWN}
    if record.name != _OWN:
        found["FORKD_LOGGER"] = escape(record.name)
    for key, value in _facts(record):
        name = "FORKD_" + _NO_JOURNAL_NAME.sub("_", _GLOSSARY.get(key, key.upper()))
        found[name[:_JOURNAL_NAME_CHARACTERS]] = escape(_plain(value))
    return found


def priority(level: int) -> int:
    """What syslog(3) calls a level of logging."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


def prefixed(text: str, number: int) -> str:
    """The text with its priority before each line, as sd-daemon(3) has it on standard error."""
    return "\n".join(f"<{number}>{line}" for line in text.split("\n"))


def _told(record: logging.LogRecord) -> str:
    name = "" if record.name == _OWN else f"{escape(record.name)}: "
    facts = "".join(f" {_value(key)}={_value(value)}" for key, value in _facts(record))
    lines = "".join(f"\n{_INDENT}{escape(each)}" for each in _block(record))
    return f"{name}{escape(record.getMessage())}{facts}{lines}"


def _facts(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    fields = getattr(record, "fields", None)
    if isinstance(fields, Mapping):  # else it is an application's own, which happens to have the name
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
    # Not the unicode_escape codec, which Python loads late: with privileges dropped it may be out of reach.
    character = found[0]
    number = ord(character)
    return _NAMED.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
