"""The table of a run."""

from __future__ import annotations

from tests.chaos.harness import Report, Scenario
from tests.load import LOSSES

HEAD = "| fault | shape | done | requests | lost | figures | promise |\n| --- | --- | --- | ---: | ---: | --- | --- |"


def row(scenario: Scenario, report: Report) -> str:
    """One scenario in one shape."""
    lost = {what: report.counts[what] for what in LOSSES if report.counts[what]}
    told = ", ".join(f"{count:,} {what}" for what, count in lost.items())
    verdict = "kept" if not report.broken else "BROKEN: " + "; ".join(report.broken[:5]).replace("\n", " ")
    figures = "; ".join(report.figures)
    return (
        f"| {scenario.name} | {report.shape} | {report.done} | {report.counts['answered']:,} "
        f"| {told or 0} | {figures} | {verdict} |"
    )


def whole(scenarios: dict[str, Scenario], reports: list[Report], share: float, seed: int) -> str:
    return ""
