"""Draws a load test as SVG: rate over time, and latency by percentile.

Only this room needs matplotlib, which is large and therefore an extra of the distribution: `plot`.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Final

from forkd.cli.load.report import PERCENTILES
from forkd.errors import UsageError

_INCHES: Final = (9, 7)


def require() -> None:
    """Raises UsageError if matplotlib is missing, so that a test fails before it starts and not after it."""
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'forkd-server[plot]'")


def drawn(document: Mapping[str, Any]) -> bytes:
    """Returns the chart of a document (`report.document`) as the text of an SVG file."""
    # Use the figure's own canvas: pyplot would look for a screen and keep every figure in memory.
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=_INCHES, layout="constrained")
    over_time, by_percentile = figure.subplots(2)
    times, requests, failures = rates(document["timeline"])
    over_time.plot(times, requests, label="requests")
    if any(failures):
        over_time.plot(times, failures, label="failures", color="tab:red")
    over_time.set(title=document["address"], xlabel="seconds", ylabel="per second", ylim=(0, None))
    over_time.legend(loc="lower right")
    for name in ("latency", "connect"):
        points = [document[name][f"p{each:g}"] for each in PERCENTILES]
        if points[0] is not None:
            # As in HdrHistogram's plots, each step to the right adds another nine.
            by_percentile.plot([1 / (1 - each / 100) for each in PERCENTILES], points, marker="o", label=name)
    by_percentile.set(xscale="log", yscale="log", xlabel="percentile", ylabel="seconds")
    by_percentile.set_xticks([1 / (1 - each / 100) for each in PERCENTILES], [f"{each:g}" for each in PERCENTILES])
    by_percentile.minorticks_off()
    by_percentile.grid(True, alpha=0.3)
    if by_percentile.lines:
        by_percentile.legend(loc="upper left")
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return file.getvalue()


def rates(timeline: list[list[float]]) -> tuple[list[float], list[float], list[float]]:
    """Returns the middle, the requests per second and the failures per second of each step of a timeline."""
    steps = [(a, b) for a, b in pairwise([[0.0, 0, 0], *timeline]) if b[0] > a[0]]
    times = [(a[0] + b[0]) / 2 for a, b in steps]
    requests, failures = ([(b[n] - a[n]) / (b[0] - a[0]) for a, b in steps] for n in (1, 2))
    return times, requests, failures
