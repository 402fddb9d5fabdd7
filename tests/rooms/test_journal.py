"""The native protocol of systemd's journal: as bytes, and parsed the way journald does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forkd.log.journal import datagram
from tests.journald import read

NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True)


def test_a_line_is_text_and_more_has_its_length() -> None:
    entry = {"MESSAGE": "one\ntwo", "PRIORITY": "6", "EMPTY": "", "FORKD_SERVICE": "écho"}
    assert datagram(entry) == (
        b"MESSAGE\n\x07\0\0\0\0\0\0\0one\ntwo\nPRIORITY=6\nEMPTY=\nFORKD_SERVICE=" + "écho".encode() + b"\n"
    )


def test_what_is_no_text_is_written_out() -> None:
    assert read(datagram({"MESSAGE": "\udc80"})) == {"MESSAGE": r"\udc80"}


@given(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]))))
def test_the_same_entry_is_read(entry: dict[str, str]) -> None:
    assert read(datagram(entry)) == entry
