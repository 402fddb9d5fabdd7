"""Plots a sweep as SVG: CPU per request by place; for the waiting sweep, the mean wait beside Erlang's."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final

from bench import erlang
from bench.arithmetic import spread
from bench.peers.forkd_waits import MEAN
from bench.plots import matplotlib_svg
from bench.rounds import Outcome
from bench.sweeps import Sweep

_COLOURS: Final = ("#1b6ca8", "#d1495b", "#66a182", "#8d6a9f")


def draw(path: Path, sweep: Sweep, outcome: Outcome) -> None:
    """Draws one sweep; does nothing without matplotlib."""
    if not matplotlib_svg():
        return
    from matplotlib.figure import Figure

    waiting = sweep.trial.name == "waiting"
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for colour, (line, points) in zip(_COLOURS, _lines(sweep, outcome, waiting=waiting).items(), strict=False):
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=line)
        if waiting:
            workers = int(line.split()[0])
            places = [percent for percent, _ in points]
            waits = [erlang.mean_wait(workers, workers * each / 100, MEAN) * 1000 for each in places]
            axes.plot(places, waits, "--", color=colour, label=f"{line}, Erlang's formula")
    if not waiting and sweep.axis != "per cent":
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({place for _, place in sweep.places.values()}))
        axes.get_xaxis().set_major_formatter(lambda value, _: f"{value:,.0f}")
    if sweep.trial.name == "size":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(sweep.axis)
    axes.set_ylabel("mean wait, milliseconds" if waiting else "CPU a request, microseconds")
    axes.set_title(sweep.trial.title, fontsize=10, loc="left")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def _lines(sweep: Sweep, outcome: Outcome, *, waiting: bool) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, (line, place) in sweep.places.items():
        measured = spread(outcome.values(name, "mean us" if waiting else "cpu us"))
        if measured is not None:
            wait = max(0.0, measured.median / 1000 - MEAN * 1000)
            found[line].append((place, wait if waiting else measured.median))
    return found
