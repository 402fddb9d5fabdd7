"""Draws the architecture: the wings of the package as boxes in layers, and their imports as arrows.

`python -m docs.tools.picture` writes docs/explanation/architecture.svg; a test says when it is out of date.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Final

from docs.tools.imports import rooms_below, used_wings, wing_of, wings_below
from docs.tools.layers import Arrow, Box, Size, curve, layout

ROOT: Final = Path(__file__).parents[2]
FILE: Final = ROOT / "docs/explanation/architecture.svg"

# Top-level modules that are not part of the structure: an entry point, and names of an earlier release.
_LEFT_OUT: Final = {"__main__", "forkserver", "successor"}
_MARGIN: Final = 14
_GAP: Final = 42.0
_BETWEEN: Final = 14.0
_LINE: Final = 15.0
_CHARACTERS: Final = 17

_STYLE: Final = """\
text { font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; text-anchor: middle }
.name { font-size: 14px; font-weight: 600; fill: #10233f }
.room { font-size: 11.5px; fill: #44546a }
rect { fill: #eef3fb; stroke: #5b7db1; stroke-width: 1.2 }
.page { fill: #fff; stroke: none }
path { fill: none; stroke: #6f7d92; stroke-width: 1.3 }
marker path { fill: #6f7d92; stroke: none }"""


def picture(rooms: Mapping[str, str], wings: set[str]) -> str:
    """Returns the SVG document."""
    graph = {wing: others - _LEFT_OUT for wing, others in used_wings(rooms, wings).items() if wing not in _LEFT_OUT}
    inside = {wing: _lines([each for each in rooms if wing_of(each, wings) == wing != each]) for wing in graph}
    inside["__init__"] = ["the public names"]
    sizes = {wing: _size(_title(wing), inside[wing]) for wing in sorted(graph)}
    drawn = layout(sizes, {wing: sorted(others) for wing, others in reduced(graph).items()}, _GAP, _BETWEEN)
    wide, high = (round(each) + 2 * _MARGIN for each in drawn.size)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}">',
            "<title>The wings of forkd and what each imports</title>",
            f"<style>\n{_STYLE}\n</style>",
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
            '<path d="M0 0.5 L8 4 L0 7.5 Z"/></marker>',
            f'<rect class="page" width="{wide}" height="{high}" rx="6"/>',
            f'<g transform="translate({_MARGIN} {_MARGIN})">',
            *(_path(each) for each in drawn.arrows),
            *(line for wing, box in drawn.boxes.items() for line in _box(_title(wing), inside[wing], box)),
            "</g>",
            "</svg>\n",
        ]
    )


def reduced(graph: Mapping[str, Set[str]]) -> dict[str, set[str]]:
    """Returns the graph without the arrows that a path over other nodes implies."""

    def reached(node: str) -> set[str]:
        return {each for other in graph[node] for each in (other, *reached(other))}

    return {
        node: {other for other in others if not any(other in reached(each) for each in others - {other})}
        for node, others in graph.items()
    }


def _title(wing: str) -> str:
    return "forkd" if wing == "__init__" else wing


def _lines(rooms: list[str]) -> list[str]:
    return wrap(", ".join(sorted(room.rpartition(".")[2] for room in rooms)), _CHARACTERS)


def _size(title: str, lines: list[str]) -> Size:
    widest = max([8.0 * len(title), *(6.4 * len(line) for line in lines)])
    return Size(max(64.0, widest + 16), 32 + (_LINE * len(lines) + 5 if lines else 0))


def _path(arrow: Arrow) -> str:
    return f'<path d="{curve(arrow.points)}" marker-end="url(#head)"/>'


def _box(title: str, lines: list[str], box: Box) -> list[str]:
    left, (width, height) = box.x - box.size.width / 2, box.size
    return [
        f'<rect x="{left:.1f}" y="{box.top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5"/>',
        f'<text class="name" x="{box.x:.1f}" y="{box.top + 21:.1f}">{escape(title)}</text>',
        *(
            f'<text class="room" x="{box.x:.1f}" y="{box.top + 39 + _LINE * at:.1f}">{escape(line)}</text>'
            for at, line in enumerate(lines)
        ),
    ]


def current() -> str:
    """Returns the picture of the present code."""
    package = ROOT / "forkd"
    return picture(rooms_below(package), wings_below(package))


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(current())
