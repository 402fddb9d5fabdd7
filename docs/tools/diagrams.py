"""Draws the Mermaid state diagrams of the pages as SVG, so that the site needs no script from another host.

It understands what `docs.tools.states` writes: lines "ONE --> OTHER", with "[*]" for the start and the end. mkdocs.yml
names `fence` as the function that renders blocks marked `mermaid`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any, Final

from docs.tools.layers import Arrow, Box, Picture, Size, curve, layout

_MARGIN: Final = 8
_LOOP: Final = 26
_BEGIN: Final = "(begin)"
_END: Final = "(end)"


def fence(source: str, *_: Any, **__: Any) -> str:
    """Returns a block of a page as HTML (pymdownx.superfences, custom fences)."""
    return f'<div class="diagram">{drawn(moves(source))}</div>'


def moves(source: str) -> list[tuple[str, str]]:
    """Returns the arrows of a state diagram. Raises ValueError for anything else that Mermaid can draw."""
    title, *lines = (line.strip() for line in source.splitlines() if line.strip())
    if title != "stateDiagram-v2":
        raise ValueError(f"the site draws Mermaid's state diagrams only, not {title!r}")
    found = []
    for line in lines:
        arrow = re.fullmatch(r"(\[\*\]|\w+) --> (\[\*\]|\w+)", line)
        if arrow is None:
            raise ValueError(f"the site cannot draw {line!r}")
        begin, end = arrow.groups()
        found.append((_BEGIN if begin == "[*]" else begin, _END if end == "[*]" else end))
    return found


def drawn(arrows: list[tuple[str, str]]) -> str:
    """Returns the arrows as SVG. Classes name its parts for the style sheet."""
    graph: dict[str, list[str]] = {}
    for begin, end in arrows:
        graph.setdefault(begin, []).append(end)
        graph.setdefault(end, [])
    sizes = {node: Size(16, 16) if node in (_BEGIN, _END) else Size(9 * len(node) + 26, 34) for node in graph}
    picture = layout(sizes, graph, gap=36, between=24)
    loops = [begin for begin, end in arrows if begin == end]
    both = [(begin, end) for begin, end in arrows if (end, begin) in arrows and begin < end]
    width, height = (round(each) + 2 * _MARGIN for each in picture.size)
    width += _LOOP if loops else 0
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" viewBox="0 0 {width} {height}" role="img">',
            '<defs><marker id="diagram-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"',
            ' orient="auto-start-reverse"><path class="head" d="M0 0.5 L8 4 L0 7.5 Z"/></marker></defs>',
            f'<g transform="translate({_MARGIN} {_MARGIN})">',
            *_lines(picture, loops, both),
            *(_node(node, box) for node, box in picture.boxes.items()),
            "</g></svg>",
        ]
    )


def _lines(picture: Picture, loops: list[str], both: list[tuple[str, str]]) -> Iterator[str]:
    for arrow in picture.arrows:
        yield f'<path d="{curve(arrow.points)}"{_heads(arrow, both)}/>'
    for node in loops:
        box = picture.boxes[node]
        right, middle = box.x + box.size.width / 2, box.top + box.size.height / 2
        bend = f"C{right + _LOOP} {middle - 20} {right + _LOOP} {middle + 20} {right} {middle + 7}"
        yield f'<path d="M{right} {middle - 7}{bend}" marker-end="url(#diagram-head)"/>'


def _heads(arrow: Arrow, both: list[tuple[str, str]]) -> str:
    ends = {"start"} if arrow.reversed else {"end"}
    if (arrow.begin, arrow.end) in both or (arrow.end, arrow.begin) in both:
        ends = {"start", "end"}
    return "".join(f' marker-{end}="url(#diagram-head)"' for end in sorted(ends))


def _node(node: str, box: Box) -> str:
    left, (width, height) = box.x - box.size.width / 2, box.size
    if node == _BEGIN:
        return f'<circle class="dot" cx="{box.x}" cy="{box.top + 8}" r="7"/>'
    if node == _END:
        ring = f'<circle class="ring" cx="{box.x}" cy="{box.top + 8}" r="7"/>'
        return f'{ring}<circle class="dot" cx="{box.x}" cy="{box.top + 8}" r="4"/>'
    rect = f'<rect x="{left}" y="{box.top}" width="{width}" height="{height}" rx="8"/>'
    return f'{rect}<text x="{box.x}" y="{box.top + 22}">{escape(node)}</text>'
