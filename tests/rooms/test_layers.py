"""The layered graph layout that the pictures in the documentation use."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from docs.tools.layers import Box, Size, curve, layout

NODES = "abcdefgh"
GRAPHS = st.dictionaries(st.sampled_from(NODES), st.sets(st.sampled_from(NODES), max_size=4), max_size=len(NODES))
SIZES = {node: Size(20.0 + 7 * at, 10.0 + at) for at, node in enumerate(NODES)}


def overlap(one: Box, other: Box) -> bool:
    apart = abs(one.x - other.x) - (one.size.width + other.size.width) / 2
    return apart < -0.001 and one.top < other.bottom and other.top < one.bottom


@settings(max_examples=20, deadline=None)
@given(GRAPHS)
def test_boxes_are_apart_and_arrows_point_down(graph: dict[str, set[str]]) -> None:
    ordered = {node: sorted(others) for node, others in graph.items()}
    picture = layout(SIZES, ordered, gap=30, between=10)
    assert picture.boxes.keys() == SIZES.keys()
    assert not any(overlap(one, other) for one, other in combinations(picture.boxes.values(), 2))
    for box in picture.boxes.values():
        assert box.x - box.size.width / 2 >= -0.001
        assert box.x + box.size.width / 2 <= picture.size.width + 0.001
        assert 0 <= box.top <= box.bottom <= picture.size.height + 0.001
    for arrow in picture.arrows:
        begin, end = picture.boxes[arrow.begin], picture.boxes[arrow.end]
        assert arrow.points[0][1] == begin.bottom
        assert arrow.points[-1][1] == end.top
        assert sorted(arrow.points, key=lambda point: point[1]) == list(arrow.points)
    pairs = {frozenset((begin, end)) for begin, others in graph.items() for end in others if begin != end}
    assert sorted(map(sorted, pairs)) == sorted(sorted((each.begin, each.end)) for each in picture.arrows)


def test_an_arrow_that_closes_a_ring_is_turned_around() -> None:
    picture = layout({node: Size(10, 10) for node in "ab"}, {"a": ["b"], "b": ["a"]}, gap=20, between=5)
    assert [(each.begin, each.end, each.reversed) for each in picture.arrows] == [("a", "b", True)]
    assert picture.size == Size(10, 40)


def test_a_straight_arrow_is_a_line_and_another_a_curve() -> None:
    assert curve([(1, 0), (1, 10)]) == "M1.0 0.0V10.0"
    assert curve([(0, 0), (10, 20)]) == "M0.0 0.0C0.0 10.0 10.0 10.0 10.0 20.0"
