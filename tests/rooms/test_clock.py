"""The master's own clock, which leaves out the time that the master was not running."""

from __future__ import annotations

import pytest

from forkd.lifecycle.clock import KEPT, SLACK, MasterClock


def test_it_goes_with_the_time_while_the_master_is_there() -> None:
    clock = MasterClock()
    assert clock.returned(10.0, 10.0 + SLACK) == 0
    assert [clock.at(moment) for moment in (5.0, 10.0, 12.5)] == [5.0, 10.0, 12.5]


def test_it_stands_still_while_the_master_is_away() -> None:
    clock = MasterClock()
    assert clock.returned(10.0, 70.0) == 60
    assert [clock.at(moment) for moment in (5.0, 10.0, 40.0, 70.0, 75.0)] == [5.0, 10.0, 10.0, 10.0, 15.0]


def test_several_absences_add_up() -> None:
    clock = MasterClock()
    clock.returned(10.0, 20.0)
    clock.returned(30.0, 50.0)
    assert clock.missed == 30
    assert [clock.at(moment) for moment in (9.0, 15.0, 25.0, 40.0, 51.0)] == [9.0, 10.0, 15.0, 20.0, 21.0]


def test_it_never_runs_backwards_for_what_it_remembers() -> None:
    clock = MasterClock()
    for number in range(3 * KEPT):
        clock.returned(100.0 * number, 100.0 * number + 50)
    assert len(clock.absences) == KEPT
    now = 100.0 * 3 * KEPT
    times = [clock.at(now - back) for back in range(100 * KEPT, -1, -10)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(now - clock.missed)
