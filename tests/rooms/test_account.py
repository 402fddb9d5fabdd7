"""The account of a connection, whether taken from its worker's numbers or counted separately."""

from __future__ import annotations

from forkd.ipc.meter import BlackBox, Meter
from forkd.ipc.scoreboard import ACCEPTED, BYTES_IN, BYTES_OUT, ERRORS, OPEN, REQUESTS, ROW_BYTES
from forkd.workers.account import Mark, TallyPen


def a_row() -> memoryview:
    return memoryview(bytearray(ROW_BYTES)).cast("Q")


def test_a_mark_tells_what_was_added_to_the_row() -> None:
    row = a_row()
    row[REQUESTS], row[BYTES_IN], row[BYTES_OUT] = 7, 70, 700
    mark = Mark(row)
    row[REQUESTS], row[BYTES_IN], row[BYTES_OUT] = 9, 75, 760
    seconds, *counts = mark.account()
    assert counts == [2, 5, 60]
    assert 0 <= seconds < 10


def test_a_row_that_was_cleared_meanwhile_takes_nothing_away() -> None:
    row = a_row()
    row[REQUESTS] = 7
    mark = Mark(row)
    row[REQUESTS] = 0
    assert mark.account()[1:] == (0, 0, 0)


def test_pens_lent_to_two_connections_count_for_each_and_for_the_worker() -> None:
    row = a_row()
    meter = Meter(row)
    one, other = TallyPen(meter), TallyPen(meter)
    one.opened()
    one.meets(b"a peer")
    one.ended(one.began(b"first"))
    other.ended(other.began())
    one.served()
    one.counted(ERRORS)
    one.moved(3, 4)
    other.moved(30, 40)
    assert one.account()[1:] == (2, 3, 4)
    assert other.account()[1:] == (1, 30, 40)
    assert (row[REQUESTS], row[ERRORS], row[BYTES_IN], row[BYTES_OUT], row[ACCEPTED]) == (3, 1, 33, 44, 1)


def test_a_lent_pen_shows_the_request_in_hand() -> None:
    row = a_row()
    pen = TallyPen(Meter(row))
    pen.opened()
    pen.meets(b"a peer")
    pen.resumed(b"the rest")
    assert BlackBox.of(row) == ("a peer", 8, b"the rest")
    pen.paused()
    assert BlackBox.of(row) == ("a peer", None, b"")
    pen.closed()
    assert row[OPEN] == 0
