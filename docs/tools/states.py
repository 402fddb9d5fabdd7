"""Draws the states of forkd's master, fork servers and workers from the tables of their legal moves.

`python -m docs.tools.states` writes the diagrams into ARCHITECTURE.md; a test says when they are out of date.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

from forkd.lifecycle.server import PHASE_MOVES
from forkd.lifecycle.states import FORK_SERVER_MOVES, WORKER_MOVES

State = TypeVar("State", bound=Enum)

PAGE: Final = Path(__file__).parents[2] / "ARCHITECTURE.md"
BEGIN: Final = "<!-- the states begin: python -m docs.tools.states writes them -->\n"
END: Final = "<!-- the states end -->\n"


def pictures() -> str:
    """Returns the three state machines as Markdown."""
    return "\n".join(
        f"{title}:\n\n```mermaid\n{diagram(moves)}\n```\n"
        for title, moves in (
            ("The master's phases", PHASE_MOVES),
            ("A fork server", FORK_SERVER_MOVES),
            ("A worker", WORKER_MOVES),
        )
    )


def diagram(moves: Mapping[State, Set[State]]) -> str:
    """Returns a table of moves as a Mermaid state diagram. The first state is the start; one without moves, an end."""
    order = list(moves)
    lines = ["stateDiagram-v2", f"    [*] --> {order[0].value}"]
    for state, following in moves.items():
        lines += [f"    {state.value} --> {after.value}" for after in sorted(following, key=order.index)]
        lines += [] if following else [f"    {state.value} --> [*]"]
    return "\n".join(lines)


def drawn(page: str) -> str:
    """Returns the page with the diagrams of the present tables."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{pictures()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
