"""Shared rows of numbers: the histogram's buckets, and what two processes see of each other's writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkd.ipc import scoreboard
from forkd.ipc.meter import Meter, bucket, bucket_top
from forkd.ipc.scoreboard import BUCKETS, HISTOGRAM, ROW_BYTES, ROWS, WORDS, Board

LONGEST = bucket_top(BUCKETS - 1)
durations = st.integers(0, LONGEST)


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create("test")
    yield made
    with suppress(BufferError):  # a test may still hold rows
        made.close()


@settings(deadline=None)
@given(durations, durations)
def test_buckets_never_run_backwards(one: int, other: int) -> None:
    assert (bucket(one) <= bucket(other)) if one <= other else (bucket(one) >= bucket(other))


@settings(deadline=None)
@given(durations)
def test_a_duration_is_in_its_bucket(duration: int) -> None:
    place = bucket(duration)
    assert 0 <= place < BUCKETS
    assert duration <= bucket_top(place)
    assert place == 0 or bucket_top(place - 1) < duration


def test_each_bucket_begins_where_the_one_before_ended() -> None:
    for place in range(BUCKETS - 1):
        assert bucket(bucket_top(place)) == place
        assert bucket(bucket_top(place) + 1) == place + 1


def test_buckets_are_narrow() -> None:
    for place in range(1, BUCKETS):
        first, last = bucket_top(place - 1) + 1, bucket_top(place)
        assert (last - first + 1) / first <= 0.125


def test_the_ends_of_the_scale() -> None:
    assert bucket(0) == bucket(1023) == 0
    assert bucket(1024) == 1
    assert bucket(LONGEST + 1) == bucket(1 << 63) == BUCKETS - 1
    assert LONGEST > 36 * 60 * 1_000_000_000


def test_no_two_columns_share_a_word() -> None:
    columns = [*scoreboard.GAUGES, *scoreboard.COUNTS.values(), scoreboard.SLOWEST]
    assert len(set(columns)) == len(columns)
    assert max(columns) < HISTOGRAM
    assert HISTOGRAM + BUCKETS == WORDS
    assert ROW_BYTES == WORDS * 8


def test_rows_are_independent(board: Board) -> None:
    rows = [board.row(number) for number in range(5)]
    for number, row in enumerate(rows):
        assert len(row) == WORDS
        for word in range(WORDS):
            row[word] = number
    for number, row in enumerate(rows):
        assert set(row) == {number}
    assert set(board.row(5)) == {0}
    assert set(board.row(ROWS - 1)) == {0}


def test_a_word_holds_64_bits(board: Board) -> None:
    row = board.row(1)
    row[scoreboard.REQUESTS] = 2**64 - 1
    assert board.row(1)[scoreboard.REQUESTS] == 2**64 - 1
    assert row[scoreboard.REQUESTS - 1] == row[scoreboard.REQUESTS + 1] == 0


def test_two_processes_see_each_others_words(board: Board) -> None:
    ask, answer = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            os.read(ask[0], 1)
            row = board.row(3)
            row[scoreboard.REQUESTS] = board.header[scoreboard.SPARE] + 1
            os.write(answer[1], b"!")
        finally:
            os._exit(0)
    board.header[scoreboard.SPARE] = 41
    os.write(ask[1], b"?")
    assert os.read(answer[0], 1) == b"!"
    assert board.row(3)[scoreboard.REQUESTS] == 42
    os.waitpid(child, 0)
    assert board.row(3)[scoreboard.REQUESTS] == 42, "numbers outlive their worker"
    for fd in (*ask, *answer):
        os.close(fd)


def test_another_mapping_of_the_same_board_sees_the_same(board: Board) -> None:
    other = Board(os.dup(board.fd))
    board.row(2)[0] = 7
    assert other.row(2)[0] == 7
    other.close()
    assert board.row(2)[0] == 7


def test_the_board_is_closed_on_exec(board: Board) -> None:
    assert not os.get_inheritable(board.fd)


def test_idle_workers_are_counted_up_to_the_highest_row(board: Board) -> None:
    for number in (1, 3, 4):
        Meter(board.row(number)).idle()
    Meter(board.row(2)).opened()
    assert board.idle() == 0
    for highest, idle in ((1, 1), (2, 1), (3, 2), (4, 3), (2**64 - 1, 3)):
        board.header[scoreboard.HIGHEST] = highest
        assert board.idle() == idle


def test_the_mean_share_is_that_of_workers_that_accept(board: Board) -> None:
    assert board.mean_share() == 0
    board.header[scoreboard.HIGHEST] = 4
    for number, connections in ((1, 10), (2, 0), (3, None), (4, 5)):
        Meter(board.row(number)).shares(connections)
    assert board.mean_share() == 5


def test_a_meter_writes_what_a_worker_does(board: Board) -> None:
    row = board.row(1)
    meter = Meter(row)
    meter.booting()
    assert row[scoreboard.STATE] == scoreboard.BOOTING
    meter.idle()
    meter.opened()
    assert (row[scoreboard.STATE], row[scoreboard.OPEN], row[scoreboard.ACCEPTED]) == (scoreboard.BUSY, 1, 1)
    began = meter.began()
    assert row[scoreboard.BUSY_SINCE] == began
    ended = meter.ended(began)
    assert (row[scoreboard.BUSY_SINCE], row[scoreboard.REQUESTS]) == (0, 1)
    assert row[scoreboard.SLOWEST] == ended - began
    assert sum(row[HISTOGRAM:]) == row[HISTOGRAM + bucket(ended - began)] == 1
    meter.moved(3, 5)
    meter.counted(scoreboard.ERRORS)
    assert [row[scoreboard.COUNTS[name]] for name in ("bytes_in", "bytes_out", "errors")] == [3, 5, 1]
    meter.closed()
    assert row[scoreboard.OPEN] == 0
    meter.left()
    assert row[scoreboard.STATE] == scoreboard.LEFT


def test_the_next_worker_in_a_slot_goes_on_counting(board: Board) -> None:
    row = board.row(1)
    first = Meter(row)
    first.opened()
    first.moved(3, 5)
    first.began()
    second = Meter(row)
    second.booting()
    assert [row[gauge] for gauge in scoreboard.GAUGES] == [scoreboard.BOOTING, 0, 0, 0, 0]
    second.moved(1, 1)
    assert [row[scoreboard.COUNTS[name]] for name in ("accepted", "bytes_in", "bytes_out")] == [1, 4, 6]
