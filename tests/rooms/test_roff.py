"""Plain text converted to the language of manual pages."""

from __future__ import annotations

import pytest

from docs.tools import roff


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a worker's well-known end", "a worker's well-known end"),
        ("run `forkd run --set a=b`", r"run \fBforkd run \-\-set a=b\fR"),
        ("without --per-connection, -c or -", r"without \fB\-\-per\-connection\fR, \fB\-c\fR or -"),
        ("`--listen` *ADDRESS*, and *TARGET*'s", r"\fB\-\-listen\fR \fIADDRESS\fR, and \fITARGET\fR's"),
        ("`forkd.toml`(5)", r"\fBforkd.toml\fR(5)"),
        (r"`\xHH` and \n", r"\fB\exHH\fR and \en"),
        ('say "it"', r"say \(dqit\(dq"),
        ("`*:7007` or `'x'`", r"\fB*:7007\fR or \fB\(aqx\(aq\fR"),
        ("2 * 3 * 4", "2 * 3 * 4"),
    ],
)
def test_marks_and_strange_characters(text: str, written: str) -> None:
    assert roff.marked(text) == written


def test_no_line_of_text_is_taken_for_a_request() -> None:
    words = "x " * 39
    assert roff.running(f"{words} .so /etc/passwd") == f"{words.strip()}\n\\&.so /etc/passwd"
    assert roff.running("'tis") == r"\&'tis"
    assert roff.example("a\n.b\n  .c") == ".RS 4\n.EX\na\n\\&.b\n  .c\n.EE\n.RE"


def test_paragraphs_and_examples() -> None:
    text = "One.\nStill one.\n\n    forkd run\n\nTwo:\n\n```toml\na = 1\n\nb = 2\n```\n"
    assert roff.prose(text).split("\n.PP\n") == [
        "One. Still one.",
        ".RS 4\n.EX\nforkd run\n.EE\n.RE",
        "Two:",
        ".RS 4\n.EX\na = 1\n\nb = 2\n.EE\n.RE",
    ]


def test_a_page_and_its_parts() -> None:
    parts = [roff.heading("EXIT STATUS"), roff.subheading("forkd load-test"), roff.entry("`0`", "Done.")]
    assert roff.page("x", 1, date="2020-01-01", source="x 1", about="Y", parts=parts).splitlines()[1:] == [
        '.TH X 1 "2020-01-01" "x 1" "Y"',
        ".nh",
        ".ad l",
        '.SH "EXIT STATUS"',
        r'.SS "forkd load\-test"',
        ".TP",
        r"\fB0\fR",
        "Done.",
    ]
