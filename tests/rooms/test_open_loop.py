"""An open loop: which requests are due, and which links carry them."""

from __future__ import annotations

from forkd.cli.load.link import Link, State
from forkd.cli.load.open_loop import Turns
from forkd.cli.load.plan import UNLIMITED
from forkd.cli.load.schedule import EvenSchedule


def links(count: int, turns: Turns) -> list[Link]:
    made = [Link(0) for _ in range(count)]
    for link in made:
        link.state = State.OPEN
        link.left = UNLIMITED
        turns.offer(link)
    return made


def dealt(turns: Turns, now: int, among: list[Link], most: int = UNLIMITED) -> list[tuple[int, list[int]]]:
    """Takes the requests that are due, and returns which link, by number, got which of them."""
    found = []
    for link, due in turns.deal(now, most):
        link.starts.extend(due)
        found.append((among.index(link), due))
    return found


def test_nothing_is_dealt_before_it_is_due() -> None:
    turns = Turns(EvenSchedule(100, 10), 1)
    assert turns.next_time() is None
    made = links(2, turns)
    assert dealt(turns, 99, made) == []
    assert turns.next_time() == 100
    assert dealt(turns, 100, made) == [(0, [100])]
    assert turns.next_time() == 110
    assert dealt(turns, 119, made) == [(1, [110])]
    assert turns.next_time() is None


def test_a_request_that_had_to_wait_was_due_when_it_was_due() -> None:
    turns = Turns(EvenSchedule(0, 10), 1)
    made = links(1, turns)
    assert dealt(turns, 0, made) == [(0, [0])]
    assert dealt(turns, 45, made) == []
    assert turns.overdue(45) == 4
    made[0].starts.clear()
    turns.offer(made[0])
    assert dealt(turns, 45, made) == [(0, [10])]
    assert turns.overdue(45) == 3


def test_overdue_requests_are_spread_as_far_as_pipelines_have_room() -> None:
    turns = Turns(EvenSchedule(0, 10), 3)
    made = links(3, turns)
    made[1].starts.extend([0, 0])
    assert dealt(turns, 69, made) == [(0, [0, 10, 20]), (1, [30]), (2, [40, 50, 60])]


def test_no_more_requests_are_dealt_than_should_be_sent() -> None:
    turns = Turns(EvenSchedule(0, 10), 5)
    made = links(2, turns)
    assert dealt(turns, 1000, made, most=3) == [(0, [0, 10]), (1, [20])]


def test_links_that_cannot_carry_are_passed_over() -> None:
    turns = Turns(EvenSchedule(0, 10), 1)
    made = links(4, turns)
    made[0].state = State.RESTING
    made[1].rest = b"x"
    made[2].left = 0
    assert dealt(turns, 0, made) == [(3, [0])]
    assert not any(link.is_free for link in made)


def test_a_link_waits_for_one_turn_at_a_time() -> None:
    turns = Turns(EvenSchedule(0, 10), 2)
    made = links(1, turns)
    turns.offer(made[0])
    assert dealt(turns, 1000, made) == [(0, [0, 10])]
