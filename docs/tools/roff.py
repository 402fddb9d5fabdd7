"""Plain text to the language of manual pages: man(7) with groff's .EX, as mandoc and man-db read it.

Text is written as in the Markdown pages: paragraphs, `code`, *what stands for something else*, and
blocks of code. What it says is not known here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Final

_WIDTH: Final = 79
# Characters that roff would print as others, and the one that begins an escape.
_GLYPHS: Final = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
# Code and placeholders as they are marked, and options, which need no mark.
_MARKED: Final = re.compile(r"`([^`]+)`|(?<![\w*])\*(\w+)\*(?![\w*])|(?<![\w-])(--?[a-z][\w-]*)")
_FENCED: Final = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page(name: str, section: int, *, date: str, source: str, about: str, parts: Iterable[str]) -> str:
    """A whole page: its head, its name, and `parts` made by the functions below."""
    head = f'.TH {name.upper()} {section} "{date}" "{source}" "{about}"'
    made = r'.\" Made from the program by "make reference"; changes belong there.'
    # No hyphens in names that a person may copy, and no wide gaps between long ones.
    return "\n".join([made, head, ".nh", ".ad l", *parts]) + "\n"


def heading(title: str) -> str:
    """The title of a section."""
    return f'.SH "{_code(title)}"'


def subheading(title: str) -> str:
    """The title of a part of a section."""
    return f'.SS "{_code(title)}"'


def prose(text: str) -> str:
    """Paragraphs; a fenced block, or a paragraph that is indented, is an example."""
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
    """One paragraph, in lines as an editor would break them."""
    lines = textwrap.wrap(marked(text), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(_no_request, lines))


def example(text: str) -> str:
    """Lines that stand as they are, indented."""
    lines = [_no_request(_code(line)) for line in text.strip("\n").split("\n")]
    return "\n".join([".RS 4", ".EX", *lines, ".EE", ".RE"])


def entry(tag: str, text: str) -> str:
    """Something with what is said of it; `tag` is marked as text is."""
    return "\n".join([".TP", marked(tag), running(text)])


def marked(text: str) -> str:
    """Text on one line, with its marks as changes of the font."""
    pieces: list[str] = []
    last = 0
    for match in _MARKED.finditer(text):
        code, placeholder, option = match.groups()
        pieces.append(_plain(text[last : match.start()]))
        pieces.append(rf"\fI{_code(placeholder)}\fR" if placeholder else rf"\fB{_code(code or option)}\fR")
        last = match.end()
    return "".join([*pieces, _plain(text[last:])])


def _no_request(line: str) -> str:
    """A line that begins with a dot or an apostrophe would be taken for an order to the formatter."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def _plain(text: str) -> str:
    r"""Prose: a hyphen and an apostrophe stay what they are."""
    return "".join(_GLYPHS[each] if each in '\\`^~"' else each for each in text)


def _code(text: str) -> str:
    """What a person may copy, to the letter."""
    return "".join(_GLYPHS.get(each, each) for each in text)
