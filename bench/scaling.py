"""`python -m bench.scaling [--rounds N] [--seconds S] [--only NAME ...] [--seed N] [--out FOLDER] [--page]`.

Measures with `forkd load` how forkd's cost grows with workers, connections, size and rate, and how long callers wait
for a worker. The outcome is written to FOLDER as JSON, and the page beside it and its plots are made from that; --page
makes them again without measuring.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench import curves, erlang, record, session, sweeps
from bench.arithmetic import spread, three_digits
from bench.asking import BUILD
from bench.contenders import ROOT
from bench.page import table
from bench.peers.forkd_waits import MEAN
from bench.rounds import Outcome
from bench.sweeps import Sweep

OUT: Final = ROOT / "docs" / "explanation" / "scaling"
PART: Final = BUILD / "scaling"
_HEAD: Final = Path(__file__).parent / "scaling.md"
_CHANCES: Final = (0.2, 0.05, 0.01)
_LOADS: Final = (0.5, 1, 2, 5, 10, 20, 50, 100)


def main() -> int:
    options = _options()
    every = sweeps.all_sweeps(options.seconds)
    if unknown := set(options.only) - {each.trial.name for each in every}:
        sys.exit(f"no sweep is named {', '.join(sorted(unknown))}; there are {', '.join(sweeps.names(every))}")
    if not options.page:
        wanted = options.only or sweeps.names(every)
        session.measure(options, [each.trial for each in every if each.trial.name in wanted])
    run, outcomes = record.read(options.out)
    options.out.with_suffix(".md").write_text(page(run, outcomes, every, options.out))
    return 0


def page(run: Mapping[str, Any], outcomes: Mapping[str, Outcome], every: Sequence[Sweep], folder: Path) -> str:
    """Returns the page; draws its plots into `folder`, which is beside it."""
    told: dict[str, str] = {}
    for sweep in every:
        name = sweep.trial.name
        if name in outcomes:
            made = _waiting(sweep, outcomes[name]) if name == "waiting" else _costs(sweep, outcomes[name])
            told[name] = f"![{sweep.trial.title}]({folder.name}/{name}.svg)\n\n{table(made)}{_failures(outcomes[name])}"
            curves.draw(folder / f"{name}.svg", sweep, outcomes[name])
        else:
            told[name] = "(not measured)"
    rest = {"workers_for": table(_workers_for()), "cores": f"{run['cores']} cores"}
    return _HEAD.read_text().format(**{**run, **told, **rest})


def _costs(sweep: Sweep, outcome: Outcome) -> list[list[str]]:
    """Returns CPU and p99 latency of a request by place; each line has a column for either."""
    lines = list(dict.fromkeys(line for line, _ in sweep.places.values()))
    columns = [("cpu us", "CPU us"), ("p99 us", "p99 us")]
    rows = [[sweep.axis, *(f"{line}, {label}" for _, label in columns for line in lines)]]
    for place in sorted({place for _, place in sweep.places.values()}):
        cells = [_cell(outcome, f"{line}, {place:g}", measure) for measure, _ in columns for line in lines]
        rows.append([f"{place:,.0f}", *cells])
    return rows


def _waiting(sweep: Sweep, outcome: Outcome) -> list[list[str]]:
    """Returns the mean wait, measured and by Erlang's formula."""
    rows = [["pool", "busy", "mean wait, ms", "by Erlang's formula, ms", "share that waits, by the formula"]]
    for name, (line, percent) in sweep.places.items():
        workers = int(line.split()[0])
        load = workers * percent / 100
        found = spread(outcome.values(name, "mean us"))
        measured = "" if found is None else three_digits(max(0.0, found.median / 1000 - MEAN * 1000))
        formula = erlang.mean_wait(workers, load, MEAN) * 1000
        who = f"{erlang.waiting_chance(workers, load):.0%}"
        rows.append([line, f"{percent:g} %", measured, three_digits(formula), who])
    return rows


def _workers_for() -> list[list[str]]:
    rows = [["load, erlangs", *(f"at most {chance:.0%} wait" for chance in _CHANCES)]]
    return rows + [[f"{load:g}", *(str(erlang.workers_for(load, chance)) for chance in _CHANCES)] for load in _LOADS]


def _cell(outcome: Outcome, entrant: str, measure: str) -> str:
    found = spread(outcome.values(entrant, measure))
    return "" if found is None else three_digits(found.median)


def _failures(outcome: Outcome) -> str:
    told = [f"- {name}: {reason}" for name, reason in (outcome.absent | outcome.failures).items()]
    return "\n\n" + "\n".join(told) if told else ""


def _options() -> argparse.Namespace:
    options = session.options_of("python -m bench.scaling", __doc__, rounds=3, seconds=1.0).parse_args()
    options.out = options.out or (PART if options.only else OUT)
    return options


if __name__ == "__main__":
    sys.exit(main())
