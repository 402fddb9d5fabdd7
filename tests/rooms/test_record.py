"""What a log record looks like, and that a peer can send nothing that changes this."""

from __future__ import annotations

import json
import logging
import re
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkd.log.record import Json, Text, as_entry, escape, own, prefixed, priority, stand_in

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ")
NASTY = "\x1b[2J\r\x07\x08 \x85 \u2028\u202e\u200f \x9b31m fake=1"
WRITTEN_OUT = r"\x1b[2J\r\x07\x08 \x85 \u2028\u202e\u200f \x9b31m fake=1"


def a_record(
    message: str = "it happened",
    *,
    level: int = logging.INFO,
    name: str = "forkd",
    fields: Any = None,
    error: BaseException | None = None,
    block: str = "",
) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord(name, level, "shop.py", 12, message, None, exc_info)
    record.fields = {} if fields is None else fields
    record.block = block
    return record


def text(record: logging.LogRecord) -> str:
    line = Text().format(record)
    assert STAMP.match(line)
    return STAMP.sub("", line, count=1)


def raised(error: BaseException) -> BaseException:
    """Returns the error with a traceback."""
    try:
        raise error
    except BaseException as found:
        return found


def test_text_is_the_message_and_the_facts_beside_it() -> None:
    facts = {"service": "echo", "worker": 0, "seconds": 0.0123456789, "peer": None, "detail": 'two words, "quoted"'}
    told = r'info it happened service=echo worker=0 seconds=0.0123457 detail="two words, \"quoted\""'
    assert text(a_record(fields=facts)) == told
    assert text(a_record("%d%% of it", name="shop")) == "info shop: %d%% of it"


def test_json_is_the_same_by_name() -> None:
    line = Json().format(a_record(name="shop", fields={"worker": 0, "peer": None}, block="one\ntwo\n"))
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", found.pop("time"))
    assert found == {"level": "info", "message": "it happened", "logger": "shop", "worker": 0, "text": "one\ntwo"}


def test_an_entry_has_what_the_text_says_and_each_fact_alone() -> None:
    facts = {
        "service": "echo",
        "worker": 3,
        "gen": 2,
        "peer": "127.0.0.1:5",
        "bytes_in": 10,
        "odd key": "x",
        "no": None,
    }
    assert as_entry(a_record(fields=facts)) == {
        "MESSAGE": 'it happened service=echo worker=3 gen=2 peer=127.0.0.1:5 bytes_in=10 "odd key"=x',
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "forkd",
        "FORKD_SERVICE": "echo",
        "FORKD_SLOT": "3",
        "FORKD_GENERATION": "2",
        "FORKD_PEER": "127.0.0.1:5",
        "FORKD_BYTES_IN": "10",
        "FORKD_ODD_KEY": "x",
    }
    assert as_entry(a_record(name="shop"))["FORKD_LOGGER"] == "shop"


def test_an_entry_keeps_a_traceback_in_its_message() -> None:
    entry = as_entry(a_record("it failed", level=logging.ERROR, error=raised(ValueError("no\nsuch"))))
    first, *rest = entry["MESSAGE"].split("\n")
    assert (first, rest[0], rest[-2:]) == (
        "it failed",
        "    Traceback (most recent call last):",
        ["    ValueError: no", "    such"],
    )
    assert entry["PRIORITY"] == "3"


@pytest.mark.parametrize(("level", "number"), [(0, 7), (10, 7), (20, 6), (25, 6), (30, 4), (40, 3), (50, 2), (99, 2)])
def test_levels_have_the_priorities_of_syslog(level: int, number: int) -> None:
    assert priority(level) == number


def test_each_line_has_its_priority_before_it() -> None:
    assert prefixed("one\n    two", 3) == "<3>one\n<3>    two"


def test_fields_that_are_an_applications_own_are_none_of_ours() -> None:
    assert text(a_record(fields=["a", "list"])) == "info it happened"


class Unprintable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("nobody may know")


def test_a_record_that_cannot_be_formatted_is_told_of() -> None:
    stands_in = stand_in(a_record(level=logging.ERROR), ValueError("no\x1b"))
    assert text(stands_in) == r"error a record from shop.py:12 cannot be written: ValueError('no\x1b')"
    assert text(stand_in(a_record(), Unprintable())) == "info a record from shop.py:12 cannot be written: Unprintable"
    assert text(own(logging.WARNING, "own", {"pid": 1})) == "warning own pid=1"


def test_what_is_unsafe_is_written_out() -> None:
    assert escape(NASTY) == WRITTEN_OUT
    unsafe = {chr(number) for number in range(sys.maxunicode + 1) if is_unsafe(chr(number))}
    assert {each for each in map(chr, range(sys.maxunicode + 1)) if escape(each) != each} == unsafe


# A peer's text may appear in any part of a record.

BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
MARKS = {"\u061c", "\u200e", "\u200f"}


def is_unsafe(character: str) -> bool:
    """True for controls, line separators and characters that change the direction of text, by Unicode's own tables."""
    return (
        unicodedata.category(character) in ("Cc", "Zl", "Zp")
        or unicodedata.bidirectional(character) in BIDI_CONTROLS
        or character in MARKS
    )


CONTROLS = ("\n", "\r\n", "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x85", "\u2028", "\u202e", "\u2066", "\x7f", "\0")
FORGERIES = (
    "\n2026-01-31 12:00:00.000 error forged",
    "<0>",
    "\n<0>",
    "\nMESSAGE=forged\n",
    '"}\n{"',
    "\udc9b",
    '="\\ ',
)
HOSTILE = st.sampled_from(CONTROLS + FORGERIES)
PEERS = st.lists(HOSTILE | st.text(st.characters(), max_size=8), max_size=6).map("".join)


class Custom(Exception):
    """An exception that shows its argument unchanged."""

    def __str__(self) -> str:
        return str(self.args[0])

    __repr__ = __str__


@st.composite
def errors(draw: st.DrawFn) -> BaseException:
    """Returns exceptions that carry a peer's text in every place that a traceback shows."""
    error: BaseException = draw(st.sampled_from([ValueError, KeyError, SyntaxError, Custom, OSError]))(draw(PEERS))
    if draw(st.booleans()):
        error.add_note(draw(PEERS))
    if draw(st.booleans()):
        error.__cause__ = draw(st.sampled_from([ValueError, Custom]))(draw(PEERS))
    if draw(st.booleans()):
        error = ExceptionGroup(draw(PEERS), [error]) if isinstance(error, Exception) else error
    return raised(error) if draw(st.booleans()) else error


@st.composite
def records(draw: st.DrawFn) -> logging.LogRecord:
    fields = draw(
        st.dictionaries(PEERS, PEERS | st.integers() | st.floats() | st.binary(max_size=9) | st.none(), max_size=3)
    )
    return a_record(
        draw(PEERS),
        level=draw(st.sampled_from([10, 20, 30, 40, 50])),
        name=draw(st.just("forkd") | PEERS),
        fields=fields,
        error=draw(st.none() | errors()),
        block=draw(PEERS),
    )


def lines_of(written: str) -> list[str]:
    """Yields the lines as a file or a terminal receives them. None of them may contain anything unsafe."""
    lines = written.encode(errors="backslashreplace").decode().split("\n")
    assert not [each for line in lines for each in line if is_unsafe(each)]
    return lines


@given(records())
def test_a_text_record_is_one_line_and_what_is_indented_below(record: logging.LogRecord) -> None:
    first, *rest = lines_of(Text().format(record))
    assert STAMP.match(first)
    assert all(line.startswith("    ") for line in rest)


@given(records())
def test_a_json_record_is_one_line_of_ascii(record: logging.LogRecord) -> None:
    (line,) = lines_of(Json().format(record))
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert isinstance(found, Mapping)
    known = {"time", "level", "message", "logger", "text"}
    if not known & {str(key) for key in record.fields}:  # type: ignore[attr-defined]
        assert found["message"] == record.getMessage()


@given(records())
def test_an_entry_of_the_journal_has_no_field_that_a_peer_has_made(record: logging.LogRecord) -> None:
    entry = as_entry(record)
    assert all(re.fullmatch(r"MESSAGE|PRIORITY|SYSLOG_IDENTIFIER|FORKD_[A-Z0-9_]{0,58}", name) for name in entry)
    for name, value in entry.items():
        _, *rest = lines_of(value)
        assert all(line.startswith("    ") for line in rest) if name == "MESSAGE" else not rest
    assert all(re.match(r"<[2-7]>", line) for line in prefixed(entry["MESSAGE"], int(entry["PRIORITY"])).split("\n"))
