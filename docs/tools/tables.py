"""Rewrites the tables of signals and exit statuses in the reference from the program's own lists.

`python -m docs.tools.tables` does it. The rest of each page is written by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from forkd import errors
from forkd.master import commands

REFERENCE: Final = Path(__file__).parents[1] / "reference"


def tables() -> dict[Path, tuple[str, list[tuple[str, str]]]]:
    """Returns the header and the rows of each table, by its page."""
    signals = [
        (f"`{number.name.removeprefix('SIG')}`", commands.MEANINGS[command])
        for number, command in commands.COMMANDS.items()
    ]
    statuses = [(str(each.value), errors.MEANINGS[each]) for each in sorted(errors.Exit)]
    return {
        REFERENCE / "signals.md": ("| signal to the master | meaning |", signals),
        REFERENCE / "exit-status.md": ("| status | meaning |", statuses),
    }


def replaced(page: str, header: str, rows: Sequence[tuple[str, ...]]) -> str:
    """Returns the page with these rows in the table that has this header; ValueError if there is none."""
    lines = page.splitlines()
    first = lines.index(header) + 2
    last = first
    while last < len(lines) and lines[last].startswith("|"):
        last += 1
    lines[first:last] = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path, (header, rows) in tables().items():
        path.write_text(replaced(path.read_text(), header, rows))
