"""Lays out a graph in layers, with every arrow pointing down unless it closes a ring.

The method is that of Sugiyama, Tagawa and Toda (1981): assign layers by the longest path, add a bend where an arrow
passes a layer, order each layer for few crossings, and place each node near its neighbors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

_SWEEPS: Final = 100
# How strongly two bends of one arrow attract each other, compared with a bend and a box: long arrows stay straight.
_STRAIGHT: Final = 8

Edge = tuple[str, str]
Graph = Mapping[str, Iterable[str]]


class Size(NamedTuple):
    width: float
    height: float


class Box(NamedTuple):
    """A node's place: its horizontal middle, its top, and its size."""

    x: float
    top: float
    size: Size

    @property
    def bottom(self) -> float:
        return self.top + self.size.height


class Arrow(NamedTuple):
    """The points of an arrow from top to bottom. A `reversed` one points up."""

    begin: str
    end: str
    points: tuple[tuple[float, float], ...]
    reversed: bool


class Picture(NamedTuple):
    size: Size
    boxes: dict[str, Box]
    arrows: list[Arrow]


def layout(sizes: Mapping[str, Size], graph: Graph, gap: float, between: float) -> Picture:
    """Places the nodes of `graph`, whose sizes are given: `gap` between layers, `between` within one.

    An arrow from a node to itself is left out.
    """
    edges, back = _without_rings({node: [each for each in graph.get(node, ()) if each != node] for node in sizes})
    ranks = _ranks(sizes, edges)
    chains = [_chain(edge, ranks) for edge in edges]
    layers = _ordered(_layers(ranks, chains), [pair for chain in chains for pair in pairwise(chain)])
    widths = {node: sizes[node].width if node in sizes else 0.0 for layer in layers for node in layer}
    across = _places(layers, [pair for chain in chains for pair in pairwise(chain)], widths, between)
    left = min(x - widths[node] / 2 for node, x in across.items())
    boxes: dict[str, Box] = {}
    top = 0.0
    for layer in layers:
        height = max(sizes[node].height for node in layer if node in sizes)
        for node in layer:
            size = sizes.get(node, Size(0, height))
            boxes[node] = Box(across[node] - left, top + (height - size.height) / 2, size)
        top += height + gap
    width = max(box.x + box.size.width / 2 for box in boxes.values())
    arrows = _arrows(edges, back, chains, boxes)
    return Picture(Size(width, top - gap), {node: boxes[node] for node in sizes}, arrows)


def _without_rings(graph: Mapping[str, Sequence[str]]) -> tuple[list[Edge], set[Edge]]:
    """Returns the edges, with those that close a ring turned around, and the set of those."""
    edges: list[Edge] = []
    back: set[Edge] = set()
    state: dict[str, int] = {}

    def visit(node: str) -> None:
        state[node] = 1
        for other in graph[node]:
            if state.get(other) == 1:
                back.add((other, node))
                if node not in graph[other]:
                    edges.append((other, node))
            else:
                edges.append((node, other))
                if other not in state:
                    visit(other)
        state[node] = 2

    for node in graph:
        if node not in state:
            visit(node)
    return edges, back


def _ranks(nodes: Iterable[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Returns the layer of each node, 0 at the top: just above what it points to, or higher for shorter arrows."""
    below: dict[str, list[str]] = {node: [] for node in nodes}
    above: dict[str, list[str]] = {node: [] for node in below}
    for begin, end in edges:
        below[begin].append(end)
        above[end].append(begin)
    height: dict[str, int] = {}

    def climb(node: str) -> int:
        if node not in height:
            height[node] = 1 + max((climb(each) for each in below[node]), default=-1)
        return height[node]

    for node in below:
        climb(node)
    for node in sorted(height, key=lambda each: -height[each]):
        if above[node] and len(above[node]) >= len(below[node]):
            height[node] = min(height[each] for each in above[node]) - 1
    top = max(height.values())
    return {node: top - each for node, each in height.items()}


def _chain(edge: Edge, ranks: Mapping[str, int]) -> list[str]:
    """Returns the edge's nodes, with a named bend between them for each layer that it passes."""
    begin, end = edge
    bends = [f"{begin} {rank} {end}" for rank in range(ranks[begin] + 1, ranks[end])]
    return [begin, *bends, end]


def _layers(ranks: Mapping[str, int], chains: Sequence[Sequence[str]]) -> list[list[str]]:
    layers: list[list[str]] = [[] for _ in range(max(ranks.values()) + 1)]
    for node, rank in ranks.items():
        layers[rank].append(node)
    for chain in chains:
        for rank, bend in enumerate(chain[1:-1], ranks[chain[0]] + 1):
            layers[rank].append(bend)
    return layers


def _neighbors(pairs: Sequence[Edge]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for begin, end in pairs:
        above.setdefault(end, []).append(begin)
        below.setdefault(begin, []).append(end)
    return above, below


def _ordered(layers: list[list[str]], pairs: Sequence[Edge]) -> list[list[str]]:
    """Returns the layers, each sorted by the mean place of its nodes' neighbors: the best of several sweeps."""
    above, below = _neighbors(pairs)
    best = [list(layer) for layer in layers]
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        place = {node: at for layer in layers for at, node in enumerate(layer)}
        for layer in layers if down else reversed(layers):
            near = above if down else below
            keys = {node: _mean([place[each] for each in near.get(node, ())], place[node]) for node in layer}
            layer.sort(key=keys.__getitem__)
            place.update({node: at for at, node in enumerate(layer)})
        if _crossings(layers, pairs) < _crossings(best, pairs):
            best = [list(layer) for layer in layers]
    return best


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _crossings(layers: Sequence[Sequence[str]], pairs: Sequence[Edge]) -> int:
    place = {node: (rank, at) for rank, layer in enumerate(layers) for at, node in enumerate(layer)}
    lines = [(*place[begin], place[end][1]) for begin, end in pairs]
    return sum(
        one[0] == two[0] and (one[1] - two[1]) * (one[2] - two[2]) < 0
        for at, one in enumerate(lines)
        for two in lines[:at]
    )


def _places(
    layers: Sequence[Sequence[str]], pairs: Sequence[Edge], widths: Mapping[str, float], between: float
) -> dict[str, float]:
    """Returns the middle of each node, as near to its neighbors as the order and the widths of its layer allow."""
    above, below = _neighbors(pairs)
    across: dict[str, float] = {}
    for layer in layers:
        total = sum(widths[node] + between for node in layer)
        at = -total / 2
        for node in layer:
            across[node] = at + widths[node] / 2
            at += widths[node] + between
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 else reversed(layers):
            desired = [
                _mean(
                    [
                        across[each]
                        for each in [*above.get(node, ()), *below.get(node, ())]
                        for _ in range(1 if widths[node] or widths[each] else _STRAIGHT)
                    ],
                    across[node],
                )
                for node in layer
            ]
            across.update(zip(layer, _apart(desired, [widths[node] for node in layer], between), strict=True))
    return across


def _apart(desired: Sequence[float], widths: Sequence[float], between: float) -> list[float]:
    """Returns places in this order that do not overlap, with the least squared distances from the desired ones.

    After subtracting the widths to the left of each node, this is isotonic regression, solved by pooling neighbors.
    """
    offsets = [0.0]
    for left, right in pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + between)
    pools: list[tuple[float, int]] = []
    for value, offset in zip(desired, offsets, strict=True):
        pools.append((value - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, ones), (two, twos) = pools[-2:]
            pools[-2:] = [((one * ones + two * twos) / (ones + twos), ones + twos)]
    flat = [value for value, count in pools for _ in range(count)]
    return [value + offset for value, offset in zip(flat, offsets, strict=True)]


def _arrows(
    edges: Sequence[Edge], back: set[Edge], chains: Sequence[Sequence[str]], boxes: Mapping[str, Box]
) -> list[Arrow]:
    """Returns the arrows. Those of one node leave it, and reach it, side by side, in the order of their other ends."""
    leave, reach = _ports(chains, boxes, out=True), _ports(chains, boxes, out=False)
    arrows = []
    for edge, chain in zip(edges, chains, strict=True):
        begin, end = boxes[edge[0]], boxes[edge[1]]
        points = [(leave[edge], begin.bottom)]
        for bend in chain[1:-1]:
            points += [(boxes[bend].x, boxes[bend].top), (boxes[bend].x, boxes[bend].bottom)]
        points.append((reach[edge], end.top))
        arrows.append(Arrow(*edge, tuple(points), edge in back))
    return arrows


def _ports(chains: Sequence[Sequence[str]], boxes: Mapping[str, Box], *, out: bool) -> dict[Edge, float]:
    at: dict[str, list[tuple[float, Edge]]] = {}
    for chain in chains:
        node, next_to = (chain[0], chain[1]) if out else (chain[-1], chain[-2])
        at.setdefault(node, []).append((boxes[next_to].x, (chain[0], chain[-1])))
    found: dict[Edge, float] = {}
    for node, ends in at.items():
        box = boxes[node]
        step = min(22.0, box.size.width / (len(ends) + 1))
        first = box.x - step * (len(ends) - 1) / 2
        for place, (_, edge) in enumerate(sorted(ends)):
            found[edge] = first + place * step
    return found


def curve(points: Sequence[tuple[float, float]]) -> str:
    """Returns a path that passes each point vertically (the `d` of an SVG path)."""
    (x, y), *others = points
    parts = [f"M{x:.1f} {y:.1f}"]
    for to_x, to_y in others:
        if abs(to_x - x) < 0.05:
            parts.append(f"V{to_y:.1f}")
        else:
            middle = (y + to_y) / 2
            parts.append(f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = to_x, to_y
    return "".join(parts)
