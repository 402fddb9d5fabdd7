"""The table of a run, and the page made from it: docs/explanation/reliability.md."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence, Set
from datetime import date
from pathlib import Path

import forkd
from tests.chaos.harness import Report, Scenario
from tests.load import LOSSES

HEAD = (
    "| fault | worker | shape | done | requests | lost | figures | promise |\n"
    "| --- | --- | --- | --- | ---: | ---: | --- | --- |"
)

_TEMPLATE = Path(__file__).with_name("page.md")


def row(report: Report) -> str:
    """Returns one table row, for a person who watches the run: one scenario in one shape."""
    verdict = "kept" if not report.broken else "BROKEN: " + "; ".join(report.broken[:5]).replace("\n", " ")
    told = (report.done, _number(report), _lost(report), _figures(report), verdict)
    return _cells(report.scenario, report.kind, report.shape, *told)


def whole(scenarios: Mapping[str, Scenario], reports: Sequence[Report], seed: int, days: Sequence[date]) -> str:
    """Returns the page; `days` are those on which the run took place."""
    rows = []
    for report in reports:
        told = scenarios[report.scenario]
        verdict = "yes" if not report.broken else "**no**: " + re.sub(r"/tmp/\S+", "(a path)", report.broken[0])
        cells = (report.kind, report.shape, report.done, _number(report), _lost(report), _figures(report), verdict)
        rows.append(_cells(told.fault, told.promise, *cells).replace("\n", " "))
    kernel = ".".join(platform.release().split(".")[:2])
    run = (
        f"Run {_when(days)}: forkd {forkd.__version__}, Python {platform.python_version()}, "
        f"Linux {kernel}, {os.cpu_count()} processors, seed {seed}, {_share({each.share for each in reports})}."
    )
    return _TEMPLATE.read_text().replace("{run}", run).replace("{rows}", "\n".join(rows))


def _when(days: Sequence[date]) -> str:
    first, last = (f"{day:%-d %B %Y}" for day in (min(days), max(days)))
    return f"on {last}" if first == last else f"from {first} to {last}"


def _share(shares: Set[float]) -> str:
    least, most = min(shares), max(shares)
    if least == 1:
        return "the whole counts"
    return (f"{least:g}" if least == most else f"{least:g} to {most:g}") + " of the whole counts (a sample)"


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(report: Report) -> str:
    return f"{report.counts['answered']:,}"


def _lost(report: Report) -> str:
    return ", ".join(f"{report.counts[what]:,} {what}" for what in LOSSES if report.counts[what]) or "0"


def _figures(report: Report) -> str:
    return "; ".join(report.figures)
