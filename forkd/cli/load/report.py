"""The figures of a load test as a document, a table and a live line (with rich and HdrHistogram).

A document is what `--json` writes: seconds, bytes and counts, and the two histograms in HdrHistogram's own encoding,
so that other tools can add and draw them. This room opens no socket or file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from hdrh.histogram import HdrHistogram
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from forkd.cli.load.plan import LoadPlan
from forkd.cli.load.tally import LONGEST, Tally, durations, total
from forkd.cli.load.terminal import plain_console, plain_table
from forkd.kernel.address import Address

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
_DIGITS: Final = 3


class Moment(NamedTuple):
    """The totals after this many seconds."""

    seconds: float
    requests: int
    failures: int


def document(
    plan: LoadPlan, address: Address, tally: Tally, timeline: Sequence[Moment], *, interrupted: bool = False
) -> dict[str, Any]:
    """Returns everything about a finished test."""
    latency, connect = histogram(tally.latencies), histogram(tally.connects)
    seconds = tally.seconds
    return {
        "address": str(address),
        "plan": _plan(plan),
        "interrupted": interrupted,
        "seconds": seconds,
        "requests": tally["answered"],
        "rate": tally["answered"] / seconds if seconds else 0.0,
        "unsent": tally["unsent"],
        "connections": tally["connected"],
        "bytes": {"in": tally["bytes_in"], "out": tally["bytes_out"]},
        "failures": {name.replace(" ", "_"): count for name, count in tally.failures.items()},
        "latency": percentiles(latency, tally["longest"]),
        "connect": percentiles(connect, tally["longest_connect"]),
        "timeline": [list(moment) for moment in timeline],
        "histograms": {"latency": latency.encode().decode(), "connect": connect.encode().decode()},
    }


def histogram(counts: memoryview) -> Any:
    """Returns the counts of a tally as an HdrHistogram of nanoseconds."""
    made = HdrHistogram(1, LONGEST, _DIGITS)
    for nanoseconds, count in durations(counts):
        made.record_value(nanoseconds, count)
    return made


def percentiles(made: Any, longest: int) -> dict[str, float | None]:
    """Returns the seconds at each percentile, "p50" to "max"; None if nothing was counted."""
    found = made.get_percentile_to_value_dict(PERCENTILES) if made.get_total_count() else {}
    # The upper end of a bucket may lie above the longest duration in it.
    named: dict[str, float | None] = {
        f"p{each:g}": min(found[each], longest) / 1e9 if each in found else None for each in PERCENTILES
    }
    return named | {"max": longest / 1e9 if found else None}


def text(document: Mapping[str, Any]) -> str:
    """Returns the document as JSON."""
    return json.dumps(document, indent=2) + "\n"


def failures(document: Mapping[str, Any]) -> str:
    """Describes how many failures of each class there were."""
    counts = [f"{count:,} {name.replace('_', ' ')}" for name, count in document["failures"].items() if count]
    return f"failures: {', '.join(counts)}" if counts else "no failures"


def show(document: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a document as text and tables."""
    console = console or plain_console()
    plan = document["plan"]
    console.print(
        Text(
            f"{document['address']}: {document['requests']:,} requests in {document['seconds']:.2f} s"
            f"{', interrupted' if document['interrupted'] else ''}; "
            f"{_count(plan['connections'], 'connection')}, {plan['pipeline']:,} in flight on each, "
            f"{_count(plan['workers'], 'process', 'es')}"
        )
    )
    console.print(_totals(document))
    console.print(_percentiles(document))
    console.print(Text(failures(document)))
    if why := document.get("connect_failure"):
        console.print(Text(f"why a connection failed: {why}"))
    if document["unsent"]:
        console.print(
            Text(
                f"{document['unsent']:,} requests were due but never sent: the rate of {plan['rate']:g} was not reached"
            )
        )


@contextmanager
def live(plan: LoadPlan, address: Address) -> Iterator[Callable[[Sequence[Tally]], None]]:
    """Yields a function that shows the figures so far on one line of standard error, if that is a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda tallies: None
        return
    # The caller decides when to draw; rich must not start a thread for it.
    with Live(console=console, auto_refresh=False, transient=True) as line:
        last = Moment(0.0, 0, 0)

        def draw(tallies: Sequence[Tally]) -> None:
            nonlocal last
            tally = total(tallies)
            now = Moment(tally.seconds, tally["answered"], tally.failed)
            line.update(moving_line(tally, last, now, address, plan), refresh=True)
            last = now

        yield draw


def moving_line(tally: Tally, last: Moment, now: Moment, address: Address, plan: LoadPlan) -> Text:
    """Returns the figures so far, and the rate since `last`."""
    if not now.seconds:
        return Text(f"{address}: {'warming up' if tally['connected'] else 'connecting'}", overflow="ellipsis")
    passed = now.seconds - last.seconds
    rate = (now.requests - last.requests) / passed if passed > 0 else 0.0
    figures = percentiles(histogram(tally.latencies), tally["longest"])
    of = f" of {plan.limit:g}" if plan.limit else ""
    shown = "  ".join(f"{name} {duration(figures[name])}" for name in ("p50", "p99", "p99.9", "max"))
    words = Text(f"{now.seconds:.1f}{of} s  {now.requests:,} requests  {rate:,.0f} per second  {shown}  ")
    return words.append(f"{now.failures:,} failures", "bold red" if now.failures else "")


def duration(seconds: float | None) -> str:
    """Formats a time with three digits in a suitable unit."""
    if seconds is None:
        return "-"
    for unit, size in ("us", 1e-6), ("ms", 1e-3):
        if seconds < 999.5 * size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds)} s"


def size(count: float) -> str:
    """Formats a number of bytes in a suitable unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1023.5:
            return f"{_three(count)} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:,.1f} GiB"


def _totals(document: Mapping[str, Any]) -> Table:
    table = _table("", "total", "per second")
    seconds = document["seconds"] or 1.0
    for name, count in (("requests", document["requests"]), ("connections", document["connections"])):
        table.add_row(name, f"{count:,}", f"{count / seconds:,.1f}")
    for name in ("in", "out"):
        count = document["bytes"][name]
        table.add_row(f"bytes {name}", size(count), size(count / seconds))
    return table


def _percentiles(document: Mapping[str, Any]) -> Table:
    table = _table("", "latency", "connect")
    for name, seconds in document["latency"].items():
        table.add_row(name, duration(seconds), duration(document["connect"][name]))
    return table


def _table(first: str, *columns: str) -> Table:
    table = plain_table(gap=2)
    table.add_column(first, min_width=12)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, min_width=12)
    return table


def _plan(plan: LoadPlan) -> dict[str, Any]:
    words = ("connections", "workers", "duration", "requests", "rate", "poisson", "pipeline", "per_connection")
    return {word: getattr(plan, word) for word in (*words, "warmup", "expect", "connect_timeout", "timeout")} | {
        "duration": plan.limit,
        "framing": repr(plan.framing),
        "bodies": len(plan.bodies),
    }


def _three(number: float) -> str:
    return f"{number:.2f}" if number < 9.995 else f"{number:.1f}" if number < 99.95 else f"{number:.0f}"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"
