"""The page of a run: the figures against their bounds, then each trial with all its measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.arithmetic import Spread, spread, three_digits
from bench.figures import Finding, Reach, reaches
from bench.rounds import Outcome

# The measures that a trial's table shows, in this order, as far as it has them; the others are only in the JSON.
_COLUMNS: Final = {
    "cpu us": "CPU a request, us",
    "requests/s": "requests a second",
    "wake-ups": "wake-ups a request",
    "p50 us": "p50, us",
    "p99 us": "p99, us",
    "rps set": "SET a second",
    "rps get": "GET a second",
    "private dirty MB": "private dirty, MB",
    "all processes, Pss MB": "Pss of all processes, MB",
    "bytes a connection": "private dirty an idle connection, bytes",
    "Pss a connection": "Pss an idle connection, bytes",
    "wake-ups a second": "wake-ups a second",
    "ms": "ms",
    "slowest ms": "the slowest, ms",
    "memory of a worker MB": "the largest process, MB",
}

_HEAD: Final = Path(__file__).parent / "page.md"


def page(
    run: dict[str, Any], outcomes: Mapping[str, Outcome], findings: Sequence[Finding], plotted: Mapping[str, str]
) -> str:
    told = run | {
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "cores": f"{run['cores']} cores" if run["cores"] > 1 else "1 core, which servers and client share",
        "figures": figures_table(findings),
        "reach": reach_table(reaches(findings, outcomes)),
    }
    parts = [_HEAD.read_text().format(**told).rstrip()]
    parts += [_trial(name, outcome, plotted.get(name, "")) for name, outcome in outcomes.items()]
    return "\n\n".join(parts) + "\n"


def figures_table(findings: Iterable[Finding]) -> str:
    rows = [["figure", "bound", "median", "range", "kept"]]
    for finding in findings:
        figure, found = finding.figure, finding.spread
        unit = f" {figure.unit}" if figure.unit else ""
        bound = f"{figure.bound:,g}{unit}"
        if found is None:
            rows.append([figure.says, bound, "absent", "", finding.reason])
        else:
            kept = "yes" if finding.kept else "**no**"
            rows.append([figure.says, bound, three_digits(found.median) + unit, _range(found), kept])
    return table(rows)


def reach_table(found: Iterable[Reach]) -> str:
    rows = [["figure", "bound", "forkd", "the loop with framing and figures", "the loop alone", "C"]]
    for each in found:
        figure, forkd = each.finding.figure, each.finding.spread
        values = [None if forkd is None else forkd.median, each.measured, each.bare, each.c]
        rows.append([figure.says, f"{figure.bound:g}", *("" if one is None else three_digits(one) for one in values)])
    return table(rows)


def _trial(name: str, outcome: Outcome, plot: str) -> str:
    there = [each for rounds in outcome.rounds.values() for each in rounds if each]
    measures = [measure for measure in _COLUMNS if any(measure in each for each in there)]
    rows = [["contender", *(_COLUMNS[measure] for measure in measures)]]
    for entrant in sorted(outcome.rounds, key=lambda each: _order(outcome, each, measures)):
        spreads = [spread(outcome.values(entrant, measure)) for measure in measures]
        if any(spreads):
            rows.append([entrant, *(_cell(each) for each in spreads)])
    notes = [f"- {entrant}: absent, {reason}" for entrant, reason in outcome.absent.items()]
    for entrant, reason in outcome.failures.items():
        failed = outcome.rounds[entrant].count(None)
        notes.append(f"- {entrant}: failed in {failed} of {len(outcome.rounds[entrant])} rounds, {reason}")
    parts = [f"### {outcome.title[0].upper()}{outcome.title[1:]}", f"`--only {name}`"]
    parts += [f"![{outcome.title}]({plot})"] if plot else []
    parts += [table(rows)] if len(rows) > 1 else []
    parts += ["\n".join(notes)] if notes else []
    return "\n\n".join(parts)


def _order(outcome: Outcome, entrant: str, measures: Sequence[str]) -> float:
    found = spread(outcome.values(entrant, measures[0])) if measures else None
    return float("inf") if found is None else found.median


def _cell(found: Spread | None) -> str:
    if found is None:
        return ""
    return f"{three_digits(found.median)} ({_range(found)})" if found.count > 1 else three_digits(found.median)


def _range(found: Spread) -> str:
    return f"{three_digits(found.least)} to {three_digits(found.most)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first row is its head, the first column is text, the others are numbers."""
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
