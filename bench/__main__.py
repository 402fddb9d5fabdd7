"""`python -m bench [--rounds N] [--seconds S] [--only NAME ...] [--seed N] [--out FOLDER]`.

NAME is a trial or a figure (its trial is played then); --list names them all. The outcome goes into FOLDER as
JSON, and from there onto the page and into the plots; --page makes those again of what is there. A part of the
trials goes into a folder of its own, unless told, so that the page of the whole stays.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from bench import about, contenders, figures, page, plots, prepare, record, trials
from bench.asking import BUILD
from bench.contenders import ROOT
from bench.rounds import Outcome, play

OUT = ROOT / "docs" / "benchmarks"
PART = BUILD / "part"
_BUSY = 0.05


def main() -> int:
    options = _options()
    every = trials.all_trials(options.seconds)
    wanted = _wanted(options.only, [each.name for each in every])
    if options.list:
        print("trials: ", *(each.name for each in every))
        print("figures:", *(each.name for each in figures.FIGURES))
        return 0
    if not options.page:
        prepare.prepare()
        for absent, reason in ((each.name, each.missing()) for each in contenders.ALL):
            if reason:
                print(f"absent: {absent}: {reason}", file=sys.stderr)
        run = about.begin(options)
        if run["busy before"] > _BUSY:
            print(f"the machine is {run['busy before']:.0%} busy with other things: expect noise", file=sys.stderr)
        chance = random.Random(options.seed)
        print(f"seed {options.seed}", file=sys.stderr)
        outcomes: dict[str, Outcome] = {}
        for trial in every:
            if trial.name in wanted:
                outcomes[trial.name] = play(trial, options.rounds, chance)
                record.write(options.out, about.end(run), outcomes)  # whoever interrupts it has what was measured
    run, outcomes = record.read(options.out)
    findings = list(figures.find(outcomes))
    plotted = plots.draw(options.out, outcomes)
    (options.out / "README.md").write_text(page.page(run, outcomes, findings, plotted))
    print(page.figures_table(findings))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender is measured (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a client asks in one run (2)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="trials or figures; all, unless told")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the order")
    parser.add_argument("--out", type=Path, help="where the outcome goes (docs/benchmarks; a part, bench/build/part)")
    parser.add_argument("--page", action="store_true", help="measure nothing, make page and plots again")
    parser.add_argument("--list", action="store_true", help="name all trials and figures")
    options = parser.parse_args()
    options.out = options.out or (PART if options.only else OUT)
    return options


def _wanted(only: list[str], every: list[str]) -> set[str]:
    if not only:
        return set(every)
    of_figure = {figure.name: figure.trial for figure in figures.FIGURES}
    unknown = [name for name in only if name not in every and name not in of_figure]
    if unknown:
        sys.exit(f"no trial or figure is named {', '.join(unknown)}; --list names them")
    return {name if name in every else of_figure[name] for name in only}


if __name__ == "__main__":
    sys.exit(main())
