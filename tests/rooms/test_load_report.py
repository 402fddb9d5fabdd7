"""The figures of a load test as a document, a table, a live line, a chart and a verdict."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram
from rich.console import Console

from forkd.cli.load import chart, report, run
from forkd.cli.load.plan import LoadPlan
from forkd.cli.load.report import Moment, duration, moving_line, size
from forkd.cli.load.run import LoadOptions, verdict
from forkd.cli.load.tally import Tally, bucket
from forkd.kernel.address import Address

ADDRESS = Address("127.0.0.1", 7007)
MS = 1_000_000


def tally(latencies: dict[int, int], **counts: int) -> Tally:
    made = Tally()
    for nanoseconds, count in latencies.items():
        made.latencies[bucket(nanoseconds)] += count
    made["answered"] = sum(latencies.values())
    made["longest"] = max(latencies, default=0)
    made["began"], made["ended"] = 1, 2_000_000_001
    for name, count in counts.items():
        made[name.replace("_", " ") if name in ("timed_out", "cut_short") else name] = count
    return made


def document(made: Tally, plan: LoadPlan | None = None, **keys: Any) -> dict[str, Any]:
    return report.document(plan or LoadPlan(), ADDRESS, made, [Moment(1.0, 400, 0), Moment(2.0, 1000, 3)], **keys)


def shown(what: dict[str, Any]) -> str:
    file = io.StringIO()
    report.show(what, Console(file=file, width=100, highlight=False))
    return file.getvalue()


def row(text: str, name: str) -> list[str]:
    (found,) = [line.split()[len(name.split()) :] for line in text.splitlines() if line.strip().startswith(name + " ")]
    return found


def test_percentiles_are_of_all_replies() -> None:
    figures = document(tally({1 * MS: 98_850, 5 * MS: 1000, 50 * MS: 145, 700 * MS: 5}))["latency"]
    expected = {"p50": 0.001, "p90": 0.001, "p99": 0.005, "p99.9": 0.05, "p99.99": 0.05, "max": 0.7}
    assert figures == {name: pytest.approx(seconds, rel=2e-3) for name, seconds in expected.items()}
    assert list(figures) == list(expected)


def test_no_percentile_is_above_the_longest() -> None:
    figures = document(tally({1_234_567: 1}))["latency"]
    assert set(figures.values()) == {0.001234567}


def test_a_document_is_json_and_holds_the_histograms() -> None:
    what = json.loads(report.text(document(tally({2 * MS: 10}, timed_out=2, bytes_in=60), interrupted=True)))
    assert (what["requests"], what["seconds"], what["rate"]) == (10, 2.0, 5.0)
    assert (what["bytes"], what["interrupted"]) == ({"in": 60, "out": 0}, True)
    assert what["failures"] == {"refused": 0, "unreachable": 0, "timed_out": 2, "reset": 0, "cut_short": 0, "wrong": 0}
    assert what["timeline"] == [[1.0, 400, 0], [2.0, 1000, 3]]
    assert what["plan"]["duration"] == 10
    read = HdrHistogram.decode(what["histograms"]["latency"])
    assert read.get_total_count() == 10
    assert read.get_value_at_percentile(50) == pytest.approx(2 * MS, rel=1e-3)


def test_the_table_of_a_test() -> None:
    text = shown(document(tally({1 * MS: 999, 20 * MS: 1}, bytes_in=6000, bytes_out=3_000_000, connected=10)))
    assert text.startswith("127.0.0.1:7007: 1,000 requests in 2.00 s; 10 connections, 1 in flight on each, 1 process\n")
    assert row(text, "requests") == ["1,000", "500.0"]
    assert row(text, "connections") == ["10", "5.0"]
    assert row(text, "bytes in") == ["5.86", "KiB", "2.93", "KiB"]
    assert row(text, "bytes out") == ["2.86", "MiB", "1.43", "MiB"]
    assert row(text, "p50") == ["1.00", "ms", "-"]
    assert row(text, "max") == ["20.0", "ms", "-"]
    assert text.endswith("no failures\n")


def test_the_table_of_a_bad_test() -> None:
    plan = LoadPlan(rate=1000.0, workers=2)
    what = document(tally({}, refused=1200, cut_short=3, unsent=5), plan, interrupted=True)
    text = shown(what | {"connect_failure": "cannot connect to [x]"})
    assert "0 requests in 2.00 s, interrupted; 10 connections, 1 in flight on each, 2 processes\n" in text
    assert row(text, "p99.99") == ["-", "-"]
    assert "failures: 1,200 refused, 3 cut short\n" in text
    assert "why a connection failed: cannot connect to [x]\n" in text
    assert "5 requests were due but never sent: the rate of 1000 was not reached\n" in text


def test_the_moving_line() -> None:
    made = tally({1 * MS: 100}, reset=1)
    line = moving_line(made, Moment(1.0, 40, 0), Moment(2.0, 100, 1), ADDRESS, LoadPlan()).plain
    assert line == (
        "2.0 of 10 s  100 requests  60 per second  p50 1.00 ms  p99 1.00 ms  p99.9 1.00 ms  max 1.00 ms  1 failures"
    )
    begun = Moment(0.0, 0, 0)
    assert moving_line(Tally(), begun, begun, ADDRESS, LoadPlan()).plain == "127.0.0.1:7007: connecting"
    warm = Tally()
    warm["connected"] = 1
    assert moving_line(warm, begun, begun, ADDRESS, LoadPlan()).plain == "127.0.0.1:7007: warming up"
    assert moving_line(made, begun, Moment(2.0, 1, 0), ADDRESS, LoadPlan(requests=5)).plain.startswith(
        "2.0 s  1 requests"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.00 us"),
        (1.234e-6, "1.23 us"),
        (99.96e-6, "100 us"),
        (0.9996e-3, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (9.996, "10.0 s"),
        (0.9999, "1.00 s"),
        (123.4, "123 s"),
    ],
)
def test_a_duration_in_words(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (5 << 20, "5.00 MiB"), (3 << 30, "3.0 GiB")]
)
def test_a_size_in_words(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("counts", "wishes", "complaints"),
    [
        ({}, LoadOptions(), []),
        ({"reset": 5}, LoadOptions(), []),
        ({"reset": 5}, LoadOptions(max_errors=5), []),
        ({"reset": 4, "wrong": 2}, LoadOptions(max_errors=5), ["6 failures are more than --max-errors 5"]),
        ({}, LoadOptions(max_p99=0.5), []),
        ({}, LoadOptions(max_p99=0.0005), ["p99 of 0.001 s is more than --max-p99 0.0005"]),
    ],
)
def test_the_verdict(counts: dict[str, int], wishes: LoadOptions, complaints: list[str]) -> None:
    assert verdict(document(tally({1 * MS: 100}, **counts)), wishes) == complaints


def test_a_test_without_a_reply_has_failed() -> None:
    assert verdict(document(tally({}, reset=2)), LoadOptions()) == ["no request was answered; failures: 2 reset"]
    assert verdict(document(tally({})), LoadOptions(max_p99=1.0)) == []


def test_rates_are_of_each_step() -> None:
    assert chart.rates([[1.0, 10, 0], [1.0, 10, 0], [3.0, 30, 1]]) == ([0.5, 2.0], [10.0, 10.0], [0.0, 0.5])
    assert chart.rates([]) == ([], [], [])


@pytest.mark.slow
@pytest.mark.parametrize("latencies", [{1 * MS: 99, 30 * MS: 1}, {}], ids=["some", "none"])
def test_the_picture_is_svg(latencies: dict[int, int]) -> None:
    pytest.importorskip("matplotlib")
    drawn = chart.drawn(document(tally(latencies, reset=3)))
    assert drawn.startswith(b"<?xml")
    assert drawn.rstrip().endswith(b"</svg>")


def test_the_limit_of_p99_must_be_one() -> None:
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(run.UsageError, match="--max-p99"):
            run.run(LoadPlan(), ADDRESS, LoadOptions(max_p99=limit))
