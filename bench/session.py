"""Shared by `python -m bench` and `python -m bench.scaling`: the options, and a run from its start to its record."""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

from bench import about, processes, record
from bench.rounds import Outcome, Trial, play

_BUSY = 0.05


def options_of(program: str, description: str | None, *, rounds: int, seconds: float) -> argparse.ArgumentParser:
    """Returns a parser for the options of both; `rounds` and `seconds` are the defaults."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often to measure each (default: {rounds})")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"how long a client sends requests (default: {seconds:g})"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="what to measure (default: all)")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="seed of the order of measurement"
    )
    parser.add_argument(
        "--out", type=Path, help="where to write the outcome; with --only the default is a separate folder"
    )
    parser.add_argument("--page", action="store_true", help="measure nothing; make the page and plots again")
    return parser


def measure(options: argparse.Namespace, trials: Iterable[Trial]) -> None:
    """Plays the trials, and records their outcomes."""
    os.sched_setaffinity(0, {processes.CLIENTS})
    # 10,000 idle connections take that many descriptors here, and as many in the server.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    run = about.begin(options)
    if run["busy before"] > _BUSY:
        print(f"the machine is {run['busy before']:.0%} busy with other things: expect noise", file=sys.stderr)
    print(f"seed {options.seed}", file=sys.stderr)
    chance = random.Random(options.seed)
    outcomes: dict[str, Outcome] = {}
    for trial in trials:
        outcomes[trial.name] = play(trial, options.rounds, chance)
        record.write(options.out, about.end(run), outcomes)  # an interrupted run keeps what was measured
