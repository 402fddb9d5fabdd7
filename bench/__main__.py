"""`python -m bench [--rounds N] [--seconds S] [--only NAME ...] [--seed N] [--out FOLDER]`.

NAME is a trial, or a figure, which stands for its trial; --list shows them all. The outcome is written to FOLDER as
JSON, and the page and the plots are made from that; --page makes them again without measuring. With --only the
outcome goes to a separate folder by default, so that the page of the whole run stays.
"""

from __future__ import annotations

import argparse
import sys

from bench import contenders, figures, page, plots, record, session, trials
from bench.asking import BUILD
from bench.contenders import ROOT

OUT = ROOT / "docs" / "explanation" / "benchmarks"
PART = BUILD / "part"


def main() -> int:
    options = _options()
    every = trials.all_trials(options.seconds)
    wanted = _wanted(options.only, [each.name for each in every])
    if options.list:
        print("trials: ", *(each.name for each in every))
        print("figures:", *(each.name for each in figures.FIGURES))
        return 0
    if not options.page:
        for absent, reason in ((each.name, each.missing()) for each in contenders.ALL):
            if reason:
                print(f"absent: {absent}: {reason}", file=sys.stderr)
        session.measure(options, [trial for trial in every if trial.name in wanted])
    run, outcomes = record.read(options.out)
    findings = list(figures.find(outcomes))
    plotted = plots.draw(options.out, outcomes)
    (options.out / "index.md").write_text(page.page(run, outcomes, findings, plotted))
    print(page.figures_table(findings))
    return 0


def _options() -> argparse.Namespace:
    parser = session.options_of("python -m bench", __doc__, rounds=5, seconds=2.0)
    parser.add_argument("--list", action="store_true", help="list all trials and figures")
    options = parser.parse_args()
    options.out = options.out or (PART if options.only else OUT)
    return options


def _wanted(only: list[str], every: list[str]) -> set[str]:
    if not only:
        return set(every)
    of_figure = {figure.name: figure.trial for figure in figures.FIGURES}
    unknown = [name for name in only if name not in every and name not in of_figure]
    if unknown:
        sys.exit(f"no trial or figure is named {', '.join(unknown)}; --list shows them")
    return {name if name in every else of_figure[name] for name in only}


if __name__ == "__main__":
    sys.exit(main())
