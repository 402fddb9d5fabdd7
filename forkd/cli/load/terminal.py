"""How tables look on a terminal and in a pipe. It needs rich, so it is loaded late."""

from __future__ import annotations

from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH: Final = 1000


def plain_console() -> Console:
    """Returns a console for standard output that prints text as it is, as wide as its longest line in a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH  # rich would assume 80 columns and cut the tables to fit
    return console


def plain_table(gap: int) -> Table:
    """Returns a table without columns yet, `gap` spaces between them and a line under its head."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0))
