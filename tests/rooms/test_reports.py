"""What the service manager must be sent, and when: scripts of ticks."""

from __future__ import annotations

import errno
from itertools import pairwise
from math import inf

import pytest

from forkd.systemd import reports
from forkd.systemd.reports import Reports

FIGURES = "1 service, 2 workers, 0 busy, 0 requests"


def tick(
    said: Reports, now: float, figures: str = FIGURES, unserved: list[str] | None = None, left: float = 0
) -> list[str]:
    return said.tick(now, lambda: figures, unserved=unserved or [], left=left)


def pings(said: Reports, times: list[float], **facts: float) -> list[float]:
    """Returns those of the times at which the watchdog is notified."""
    return [now for now in times if "WATCHDOG=1" in tick(said, now, **facts)]  # type: ignore[arg-type]


def seconds(count: int) -> list[float]:
    return [float(second) for second in range(count)]


# Ready, reloading, stopping.


def test_serving_is_told_with_figures() -> None:
    assert Reports(0, 1).serving(FIGURES, 5) == ["READY=1", f"STATUS={FIGURES}"]
    assert Reports(30, 1).serving(FIGURES, 5) == ["READY=1", f"STATUS={FIGURES}", "WATCHDOG=1"]


def test_a_reload_begins_at_a_time_and_ends() -> None:
    said = Reports(0, 1)
    assert said.reload_begun(12.3456789) == ["RELOADING=1", "MONOTONIC_USEC=12345678", "EXTEND_TIMEOUT_USEC=15000000"]
    assert said.change_over("reload", "", FIGURES) == ["READY=1", f"STATUS={FIGURES}"]


def test_a_failure_is_told_until_the_next_reload() -> None:
    said = Reports(0, 1)
    said.reload_begun(1)
    line = f"STATUS={FIGURES}; last reload failed: no module named x"
    assert said.change_over("reload", "no module named x", FIGURES) == ["READY=1", line]
    assert tick(said, 2) == []
    assert tick(said, 12, "others") == ["STATUS=others; last reload failed: no module named x"]
    said.reload_begun(13)
    assert said.change_over("reload", "", FIGURES) == ["READY=1", f"STATUS={FIGURES}"]


def test_an_upgrade_that_fails_was_no_reload() -> None:
    said = Reports(0, 1)
    assert said.change_over("upgrade", "it hangs", FIGURES) == [f"STATUS={FIGURES}; last upgrade failed: it hangs"]


def test_two_reloads_in_one_are_ready_once() -> None:
    said = Reports(0, 1)
    said.reload_begun(1)
    said.reload_begun(2)
    assert "READY=1" in said.change_over("reload", "", FIGURES)
    assert "READY=1" not in said.change_over("reload", "", FIGURES)


def test_a_stop_is_told_and_how_it_goes_on() -> None:
    said = Reports(0, 1)
    said.change_over("reload", "no", FIGURES)
    assert said.stopping() == ["STOPPING=1", "STATUS=stopping; last reload failed: no"]
    assert tick(said, 1, left=30) == [
        "EXTEND_TIMEOUT_USEC=15000000",
        f"STATUS=stopping: {FIGURES}; last reload failed: no",
    ]
    assert said.stopped() == ["STATUS=stopped"]


def test_a_start_says_so_and_asks_for_time() -> None:
    assert Reports(0, 1).starting() == ["STATUS=starting", "EXTEND_TIMEOUT_USEC=15000000"]


# Figures.


def test_figures_are_told_when_they_are_others_every_ten_seconds() -> None:
    said = Reports(0, 1)
    said.serving(FIGURES, 0)
    told = {now: lines for now in seconds(40) if (lines := tick(said, now, "later" if now >= 15 else FIGURES))}
    assert told == {20: ["STATUS=later"]}


def test_figures_are_not_counted_when_nobody_is_told() -> None:
    said = Reports(30, 1)
    asked: list[float] = []

    def figures() -> str:
        asked.append(now)
        return FIGURES

    for now in seconds(30):
        said.tick(now, figures, unserved=[], left=0)
    assert asked == [0, 10, 20]


# The watchdog.


def test_the_watchdog_is_told_at_less_than_half_its_time_with_the_ticks() -> None:
    said = Reports(30, 1)
    said.serving(FIGURES, 0)
    assert pings(said, seconds(60)) == [15, 30, 45]
    assert said.due == 59 + 15, "the master's own ticks are enough"


@pytest.mark.parametrize("watchdog", [2.0, 2.5, 4, 10, 30, 3600])
def test_a_ping_is_never_later_than_half_and_a_tick(watchdog: float) -> None:
    """On a busy machine ticks come late, but no later than `due`."""
    said = Reports(watchdog, 1)
    said.serving(FIGURES, 0)
    now, told = 0.0, [0.0]
    while now < 3 * watchdog:
        now = min(now + 1.9, said.due) if said.due != inf else now + 1.9
        if "WATCHDOG=1" in tick(said, now):
            told.append(now)
    assert max(after - before for before, after in pairwise(told)) <= watchdog / 2 + 0.9
    assert len(told) >= 5


def test_a_short_watchdog_has_times_of_its_own() -> None:
    said = Reports(0.5, 1)
    assert said.due == inf
    assert "WATCHDOG=1" in tick(said, 10)
    assert said.due == 10.25
    assert tick(said, 10.25) == ["WATCHDOG=1"]


def test_nobody_is_told_that_all_is_well_when_it_is_not() -> None:
    said = Reports(4, 1)
    said.serving(FIGURES, 0)
    assert pings(said, seconds(10))
    assert tick(said, 11) == ["WATCHDOG=1"]
    ill = tick(said, 12, unserved=["echo", "daytime"])
    assert ill == [f"STATUS={FIGURES}; echo has no worker; daytime has no worker"]
    assert said.due > 12
    assert tick(said, 13) == ["WATCHDOG=1", f"STATUS={FIGURES}"], "and its recovery is reported"


def test_without_a_watchdog_there_is_nothing_to_tell() -> None:
    said = Reports(0, 1)
    assert not said.watched
    assert pings(said, seconds(100)) == []
    assert said.due == inf


def test_what_was_not_heard_is_said_again() -> None:
    said = Reports(30, 1)
    said.serving(FIGURES, 0)
    assert tick(said, 1) == []
    assert "WATCHDOG=1" in tick(said, 15)
    said.not_heard()
    assert tick(said, 16) == ["WATCHDOG=1", f"STATUS={FIGURES}"]


# Time.


def test_time_is_asked_for_up_to_the_limit_and_a_little() -> None:
    said = Reports(0, 1)
    asked = [(left, line) for left in (60, 10, 3.5, 0) for line in tick(said, 1, left=left) if "EXTEND" in line]
    assert asked == [
        (60, "EXTEND_TIMEOUT_USEC=15000000"),
        (10, "EXTEND_TIMEOUT_USEC=15000000"),
        (3.5, "EXTEND_TIMEOUT_USEC=8500000"),
    ]


# The contents of a line.


def test_a_reason_stays_within_its_line() -> None:
    assert reports.failed("forkd.toml:3: one\n forkd.toml:4: READY=1\x1b[31m", 22) == [
        "STATUS=forkd.toml:3: one; forkd.toml:4: READY=1\\x1b[31m",
        "ERRNO=22",
    ]
    assert reports.failed("", errno.EADDRINUSE) == ["STATUS=", "ERRNO=98"]
    assert reports.failed("x" * 5000, 0) == ["STATUS=" + "x" * 1000]
    assert reports.failed("x", -5) == ["STATUS=x"]


def test_what_is_stored_and_no_more() -> None:
    assert reports.store("a") == ["FDSTORE=1", "FDNAME=a", "FDPOLL=0"]
    assert reports.unstore("a") == ["FDSTOREREMOVE=1", "FDNAME=a"]
