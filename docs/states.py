"""Draws the states of forkd's master, fork servers and workers from the tables of their legal moves.

`python docs/states.py > docs/states.md` writes the page anew; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import Enum
from typing import TypeVar

from forkd.generation import FORK_SERVER_MOVES, WORKER_MOVES
from forkd.lifecycle import PHASE_MOVES

State = TypeVar("State", bound=Enum)

_START = """\
# States

This page is made from the tables of legal moves in `forkd/lifecycle.py` and `forkd/generation.py`; what is not drawn
here is refused. An arrow from a state to itself is an order, or a kill, once more.
"""


def page() -> str:
    """The page, as Markdown."""
    return "\n".join(
        [
            _START,
            _section("The master's phases", PHASE_MOVES),
            _section("A fork server", FORK_SERVER_MOVES),
            _section("A worker", WORKER_MOVES),
        ]
    )


def diagram(moves: Mapping[State, Set[State]]) -> str:
    """A table of moves as a Mermaid state diagram; its first state is where it begins, one without moves an end."""
    order = list(moves)
    lines = ["stateDiagram-v2", f"    [*] --> {order[0].value}"]
    for state, following in moves.items():
        lines += [f"    {state.value} --> {after.value}" for after in sorted(following, key=order.index)]
        lines += [] if following else [f"    {state.value} --> [*]"]
    return "\n".join(lines)


def _section(title: str, moves: Mapping[State, Set[State]]) -> str:
    return f"## {title}\n\n```mermaid\n{diagram(moves)}\n```\n"


if __name__ == "__main__":
    print(page(), end="")
