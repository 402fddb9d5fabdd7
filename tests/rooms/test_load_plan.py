"""What a load test is to do: options become values, and a plan is split into shares."""

from __future__ import annotations

import itertools
import random
import re
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkd.cli.load.plan import UNLIMITED, LoadPlan, Share, bodies_of, framing_named, shares
from forkd.cli.load.schedule import EvenSchedule, RandomSchedule
from forkd.errors import UsageError
from forkd.serving.counted_framings import Chunks, Fixed, LengthPrefixed, Netstrings
from forkd.serving.delimited_framings import Delimited, Lines


@pytest.mark.parametrize(
    ("text", "framing"),
    [
        ("lines", Lines()),
        ("netstrings", Netstrings()),
        ("chunks", Chunks()),
        ("fixed:8", Fixed(8)),
        ("length:2", LengthPrefixed(2)),
        ("delimited:;", Delimited(b";")),
        ("delimited::", Delimited(b":")),
        (r"delimited:\r\n\r\n", Delimited(b"\r\n\r\n")),
        (r"delimited:\0", Delimited(b"\0")),
        (r"delimited:a\x00\\n\t", Delimited(b"a\0\\n\t")),
        ("delimited:é", Delimited("é".encode())),
    ],
)
def test_a_framing_by_its_name(text: str, framing: object) -> None:
    assert repr(framing_named(text)) == repr(framing)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lines:",
        "lines:4",
        "line",
        "Lines",
        "chunks:1",
        "delimited",
        "delimited:",
        "length",
        "length:",
        "length:3",
        "length:x",
        "length:-2",
        "fixed:0",
        "fixed",
        "fixed:1.5",
        "netstrings:5",
    ],
)
def test_an_unknown_framing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--framing {text}: ")):
        framing_named(text)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"connections": 0}, "--connections 0: must be at least 1"),
        ({"workers": -1}, "--workers -1: must be at least 1"),
        ({"requests": 0}, "--requests 0: must be at least 1"),
        ({"pipeline": 0}, "--pipeline 0: must be at least 1"),
        ({"per_connection": 0}, "--per-connection 0: must be at least 1"),
        ({"duration": 0.0}, "--duration 0: must be a number of seconds"),
        ({"duration": float("nan")}, "--duration nan: must be a number of seconds"),
        ({"timeout": -1.0}, "--timeout -1: must be a number of seconds"),
        ({"connect_timeout": float("inf")}, "--connect-timeout inf: must be a number of seconds"),
        ({"warmup": -0.5}, "--warmup -0.5: must be a number of seconds"),
        ({"warmup": float("nan")}, "--warmup nan: must be a number of seconds"),
        ({"rate": 0.0}, "--rate 0: must be a number of requests"),
        ({"poisson": True}, "--poisson: needs --rate"),
        ({"rate": float("nan")}, "--rate nan: must be a number of requests"),
        ({"workers": 4, "connections": 3}, "--workers 4: each process needs a connection"),
        ({"bodies": ()}, "--requests-from: the file has no requests"),
        ({"bodies": (b"a\nb",)}, r"--request: contains b'\n'"),
        ({"bodies": (b"a", b"b;c"), "framing": Delimited(b";")}, "request 2 of --requests-from: contains b';'"),
        ({"bodies": (b"x" * 256,), "framing": LengthPrefixed(1)}, "--request: a reply of 256 bytes does not fit"),
        ({"bodies": (b"",), "framing": Chunks()}, "--request: is empty"),
        ({"expect": "/(/"}, "--expect /(/: not a regular expression"),
        ({"framing": Chunks(), "pipeline": 2}, "--pipeline with chunks: replies have no visible end"),
        ({"framing": Chunks(), "pipeline": 2, "expect": "/x/"}, "--pipeline with chunks"),
    ],
)
def test_an_impossible_plan_is_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        LoadPlan(**keys).checked()


def test_a_possible_plan_is_accepted() -> None:
    for keys in (
        {},
        {"framing": Chunks(), "pipeline": 9, "expect": "echo"},
        {"bodies": (b"",)},
        {"bodies": (b"a", b"", b"b")},
    ):
        assert isinstance(LoadPlan(**keys).checked(), LoadPlan)


def test_a_plan_without_an_end_lasts_ten_seconds() -> None:
    assert LoadPlan().limit == 10
    assert LoadPlan(requests=5).limit is None
    assert LoadPlan(bodies=(b"a", b"b")).wires == [b"a\n", b"b\n"]
    assert LoadPlan(requests=5, duration=3).limit == 3


def test_batches_are_made_beforehand_where_they_are_small_and_alike() -> None:
    assert LoadPlan(pipeline=2).batches == [b"", b"hello\n", b"hello\nhello\n"]
    assert LoadPlan(bodies=(b"a", b"b")).batches == []
    assert LoadPlan(pipeline=1000, bodies=(b"x" * 100,)).batches == []


def test_expected_replies() -> None:
    plan = LoadPlan(bodies=(b"a", b"b"), expect="echo")
    assert [plan.expected(place) for place in (0, 1)] == [b"a", b"b"]
    assert LoadPlan().expected(0) is None
    assert LoadPlan(expect="").expected(0) == b""
    assert LoadPlan(expect="/").expected(0) == b"/"
    assert LoadPlan(expect="echo?").expected(0) == b"echo?"
    pattern = LoadPlan(expect="/^a.b$/").expected(0)
    assert isinstance(pattern, re.Pattern)
    assert pattern.search(b"a\nb")


@pytest.mark.parametrize(("connections", "requests", "workers"), [(1, 1, 1), (10, 100, 3), (7, 2, 7), (5, None, 2)])
def test_shares_add_up_and_are_fair(connections: int, requests: int | None, workers: int) -> None:
    parts = shares(LoadPlan(connections=connections, requests=requests, workers=workers))
    assert len(parts) == workers
    assert sum(part.connections for part in parts) == connections
    assert max(part.connections for part in parts) - min(part.connections for part in parts) <= 1
    assert min(part.connections for part in parts) >= 1
    if requests is None:
        assert {part.requests for part in parts} == {UNLIMITED}
    else:
        assert sum(part.requests for part in parts) == requests


def test_the_schedules_of_shares_take_turns() -> None:
    parts = shares(LoadPlan(connections=4, workers=4, rate=1000.0))
    assert parts[1] == Share(1, UNLIMITED, 0.004, 0.001)
    due = sorted(part.first + number * part.interval for part in parts for number in range(3) if part.interval)
    assert due == pytest.approx([number / 1000 for number in range(12)])


def test_a_schedule_counts_requests_that_were_due() -> None:
    schedule = EvenSchedule(1000, 10.0)
    assert [schedule.due(now) for now in (0, 999, 1000, 1009, 1010, 1995)] == [0, 0, 1, 1, 2, 100]
    assert [schedule.time(number) for number in (0, 1, 99)] == [1000, 1010, 1990]


def test_a_schedule_of_broken_intervals_does_not_drift() -> None:
    schedule = EvenSchedule(0, 1e9 / 3)
    assert schedule.time(3_000_000) == pytest.approx(1e15, abs=1)
    for number in (1, 7, 1000, 2_999_999):
        assert schedule.due(schedule.time(number) - 1) == number
        assert schedule.due(schedule.time(number) + 1) == number + 1


@given(gaps=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30), looks=st.lists(st.integers(0, 10**7), max_size=20))
def test_a_random_schedule_counts_the_same_however_often_it_is_asked(gaps: list[float], looks: list[int]) -> None:
    class Chance(random.Random):
        left = itertools.chain(gaps, itertools.repeat(1e9))

        def expovariate(self, lambd: float = 1.0) -> float:
            return next(self.left)

    times = [100 + int(each) for each in itertools.accumulate(gaps)]
    schedule = RandomSchedule(100, 10.0, Chance())
    number = 0
    for now in sorted(looks):
        due = sum(each <= now for each in times)
        assert schedule.due(now) == max(due, number)
        while number < min(due, len(times) - 1):
            assert schedule.time(number) == times[number]
            number += 1


def test_a_random_schedule_keeps_its_rate_and_its_variance() -> None:
    schedule = RandomSchedule(0, 1000.0, random.Random(7))
    times = [schedule.time(number) for number in range(20_000)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1000, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1000, rel=0.05), "the deviation of an exponential distribution"


def test_requests_of_a_file() -> None:
    assert bodies_of(b"") == ()
    assert bodies_of(b"a\n") == (b"a",)
    assert bodies_of(b"a\r\n\nb") == (b"a", b"", b"b")
