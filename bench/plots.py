"""One bar chart per trial, as SVG: each entrant's median and range of one measure, forkd in its own colour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.arithmetic import spread
from bench.rounds import Outcome

_MEASURES: Final = {
    "half-load": ("p99 us", "99th percentile of the time to the reply, microseconds"),
    "memory": ("private dirty MB", "private dirty memory, MB"),
    "idle-workers": ("wake-ups a second", "wake-ups a second"),
    "first-answer": ("ms", "milliseconds"),
}
_OTHERS: Final = ("cpu us", "CPU a request, microseconds")
_OURS, _THEIRS = "#1b6ca8", "#b8bec5"


def draw(folder: Path, outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Draws the plots, and returns the file name of each trial's plot; none without matplotlib."""
    if not matplotlib_svg():
        return {}
    drawn = {}
    for name, outcome in outcomes.items():
        measure, label = _MEASURES.get(name, _OTHERS)
        found = {each: spread(outcome.values(each, measure)) for each in outcome.rounds}
        bars = sorted((each.median, each.least, each.most, who) for who, each in found.items() if each is not None)
        if len(bars) > 1:
            drawn[name] = f"{name}.svg"
            _bars(folder / drawn[name], bars, outcome.title, label)
    return drawn


def matplotlib_svg() -> bool:
    """Sets matplotlib to draw reproducible SVG; returns False if it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "forkd"  # makes the ids reproducible, not random
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text: a tenth of the size, and searchable
    return True


def _bars(path: Path, bars: list[tuple[float, float, float, str]], title: str, label: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.32 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    names = [who for *_, who in bars]
    medians = [median for median, *_ in bars]
    below = [median - least for median, least, *_ in bars]
    above = [most - median for median, _, most, _ in bars]
    colours = [_OURS if who.startswith("forkd") else _THEIRS for who in names]
    axes.barh(names, medians, xerr=[below, above], color=colours, ecolor="#444444", error_kw={"linewidth": 0.8})
    axes.invert_yaxis()
    if medians[-1] > 20 * medians[0] > 0:
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
