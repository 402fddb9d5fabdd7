"""Durations are counted in HdrHistogram's layout, and rows are added up."""

from __future__ import annotations

import random

import pytest
from hdrh.histogram import HdrHistogram

from forkd.cli.load.tally import BUCKETS, BYTES, FAILURES, LONGEST, Tally, bucket, durations, total

EDGES = [0, 1, 2, 2047, 2048, 2049, 4095, 4096, 10**6, 2**40 - 1, 2**40, LONGEST]


def test_a_duration_is_where_hdrhistogram_has_it() -> None:
    made = HdrHistogram(1, LONGEST, 3)
    assert made.counts_len == BUCKETS
    source = random.Random(1)
    for nanoseconds in EDGES + [source.getrandbits(source.randint(1, 49)) for _ in range(500)]:
        assert bucket(nanoseconds) == made.get_counts_array_index(nanoseconds)
        tally = Tally()
        tally.latencies[bucket(nanoseconds)] += 3
        assert list(durations(tally.latencies)) == [(made.get_lowest_equivalent_value(nanoseconds), 3)]


def test_every_duration_is_shown_with_three_digits() -> None:
    for nanoseconds in EDGES[1:]:
        tally = Tally()
        tally.latencies[bucket(nanoseconds)] += 1
        ((found, _),) = durations(tally.latencies)
        assert found == pytest.approx(nanoseconds, rel=1e-3)


def test_a_row_lives_in_the_memory_that_it_is_given() -> None:
    memory = bytearray(BYTES)
    writer, reader = Tally(memoryview(memory)), Tally(memoryview(memory))
    writer["answered"] = 7
    writer["reset"] = 2
    writer.connects[BUCKETS - 1] = 1
    assert (reader["answered"], reader.failures["reset"], reader.failed) == (7, 2, 2)
    assert reader.connects[BUCKETS - 1] == 1
    assert not any(reader.latencies)


def test_rows_are_added() -> None:
    one, other, idle = Tally(), Tally(), Tally()
    one["answered"], other["answered"] = 3, 4
    one["began"], one["ended"] = 100, 1_000_000_100
    other["began"], other["ended"] = 50, 600
    one["longest"], other["longest"] = 9, 12
    one["errno"] = 111
    one.latencies[5], other.latencies[5], other.latencies[6] = 1, 1, 2
    both = total([one, other, idle])
    assert (both["answered"], both["longest"], both["errno"]) == (7, 12, 111)
    assert both.seconds == pytest.approx(1.00000005)
    assert list(durations(both.latencies)) == [(5, 2), (6, 2)]
    assert total([idle]).seconds == 0


def test_warming_up_leaves_nothing_but_the_connections() -> None:
    tally = Tally()
    for name in ("answered", "bytes_in", "longest", "connected", *FAILURES):
        tally[name] = 5
    tally.latencies[3] = tally.connects[3] = 1
    tally.clear_requests()
    assert (tally["answered"], tally["longest"], tally.failed, tally["connected"]) == (0, 0, 0, 5)
    assert list(durations(tally.latencies)) == []
    assert list(durations(tally.connects)) == [(3, 1)]
