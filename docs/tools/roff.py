"""Turns plain text into the language of manual pages: man(7) with groff's .EX, as mandoc and man-db read it.

The text is written as in Markdown: paragraphs, `code`, *placeholders* and blocks of code.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Final

_WIDTH: Final = 79
# Characters that roff would print differently, and the one that begins an escape.
_GLYPHS: Final = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
# Marked code and placeholders, and options, which need no mark.
_MARKED: Final = re.compile(r"`([^`]+)`|(?<![\w*])\*(\w+)\*(?![\w*])|(?<![\w-])(--?[a-z][\w-]*)")
_FENCED: Final = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page(name: str, section: int, *, date: str, source: str, about: str, parts: Iterable[str]) -> str:
    """Returns a whole page: its head, then `parts` made by the functions below."""
    head = f'.TH {name.upper()} {section} "{date}" "{source}" "{about}"'
    made = r'.\" Generated from the program by "make reference"; do not edit.'
    # Do not hyphenate names that people may copy, nor stretch the gaps between long ones.
    return "\n".join([made, head, ".nh", ".ad l", *parts]) + "\n"


def heading(title: str) -> str:
    """Returns the title of a section."""
    return f'.SH "{_code(title)}"'


def subheading(title: str) -> str:
    """Returns the title of a subsection."""
    return f'.SS "{_code(title)}"'


def prose(text: str) -> str:
    """Returns paragraphs; a fenced block or an indented paragraph becomes an example."""
    found: list[str] = []
    for place, piece in enumerate(_FENCED.split(text)):
        if place % 2:
            found.append(example(piece))
            continue
        found.extend(
            example(textwrap.dedent(paragraph)) if paragraph.startswith(" ") else running(paragraph)
            for paragraph in re.split(r"\n\s*\n", piece.strip("\n"))
            if paragraph
        )
    return "\n.PP\n".join(found)


def running(text: str) -> str:
    """Returns one paragraph, wrapped."""
    lines = textwrap.wrap(marked(text), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(_no_request, lines))


def example(text: str) -> str:
    """Returns lines kept as they are, indented."""
    lines = [_no_request(_code(line)) for line in text.strip("\n").split("\n")]
    return "\n".join([".RS 4", ".EX", *lines, ".EE", ".RE"])


def entry(tag: str, text: str) -> str:
    """Returns a term and its description; `tag` may have the same marks as text."""
    return "\n".join([".TP", marked(tag), running(text)])


def marked(text: str) -> str:
    """Returns text on one line, with its marks turned into font changes."""
    pieces: list[str] = []
    last = 0
    for match in _MARKED.finditer(text):
        code, placeholder, option = match.groups()
        pieces.append(_plain(text[last : match.start()]))
        pieces.append(rf"\fI{_code(placeholder)}\fR" if placeholder else rf"\fB{_code(code or option)}\fR")
        last = match.end()
    return "".join([*pieces, _plain(text[last:])])


def _no_request(line: str) -> str:
    """Protects a line that begins with a dot or an apostrophe, which roff would take for a request."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def _plain(text: str) -> str:
    r"""Escapes prose, in which hyphens and apostrophes stay as they are."""
    return "".join(_GLYPHS[each] if each in '\\`^~"' else each for each in text)


def _code(text: str) -> str:
    """Escapes text that people may copy, so that it is printed exactly."""
    return "".join(_GLYPHS.get(each, each) for each in text)
