"""When a worker leaves so that a fresh one can take its place."""

from __future__ import annotations

import random

import pytest

from forkd.ipc.brief import Retirement
from forkd.workers.tenure import Tenure


def never() -> int:
    raise AssertionError("memory use must not be read here")


def tenure(limits: Retirement, requests: int = 0) -> Tenure:
    return Tenure(limits, random.Random(1), 100.0, requests)


def test_without_limits_it_stays() -> None:
    stays = tenure(Retirement())
    assert not stays.over(1e9, 10**9, never)
    assert stays.timeout(1e9) is None


def test_requests_count_from_its_own_birth() -> None:
    leaves = tenure(Retirement(requests=1000), requests=5000)
    assert not leaves.over(100, 5899, never)
    assert leaves.over(100, 6101, never)


def test_one_request_at_least() -> None:
    assert not tenure(Retirement(requests=1)).over(100, 0, never)
    assert tenure(Retirement(requests=1)).over(100, 1, never)


def test_age() -> None:
    leaves = tenure(Retirement(seconds=10))
    wait = leaves.timeout(100)
    assert wait is not None
    assert 9 <= wait <= 11
    assert leaves.timeout(200) == 0
    assert not leaves.over(108.9, 0, never)
    assert leaves.over(111.1, 0, never)


def test_it_is_told_once() -> None:
    leaves = tenure(Retirement(requests=1, seconds=10, memory=1000))
    assert leaves.over(200, 10, lambda: 5000)
    assert not leaves.over(300, 20, lambda: 5000)
    assert leaves.timeout(300) is None


def test_memory() -> None:
    leaves = tenure(Retirement(memory=1000))
    assert not leaves.over(100, 0, lambda: 899)
    assert leaves.over(100, 0, lambda: 1101)


@pytest.mark.parametrize("limits", [Retirement(requests=1000), Retirement(seconds=1000)])
def test_those_born_together_leave_apart(limits: Retirement) -> None:
    chance = random.Random(1)
    ends = {
        next(n for n in range(800, 1200) if each.over(n, n, never))
        for each in [Tenure(limits, chance, 0.0, 0) for _ in range(20)]
    }
    assert len(ends) > 10
    assert min(ends) >= 900
    assert max(ends) <= 1100


def test_use_wears_it_out_where_requests_or_memory_are_limited() -> None:
    assert tenure(Retirement(requests=1)).wears
    assert tenure(Retirement(memory=1)).wears
    assert not tenure(Retirement(seconds=1)).wears
    over = tenure(Retirement(requests=1))
    assert over.over(100, 1, never)
    assert not over.wears
