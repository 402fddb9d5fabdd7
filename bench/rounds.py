"""Plays trials in interleaved rounds, and keeps what each entrant's rounds gave.

In a round every entrant of a trial runs once, in an order that the seed shuffles: what the machine does in one minute
meets all of them, and none is always the first after another.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.asking import Failure

Measures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Entrant:
    """Who takes part in a trial: `run` does it once and gives what was measured, `missing` why it cannot, or ""."""

    name: str
    run: Callable[[], Measures]
    missing: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Trial:
    """What is asked of several entrants. `share` of the wanted rounds are played, for what is quick or slow."""

    name: str
    title: str
    entrants: Sequence[Entrant]
    share: float = 1.0


@dataclass(slots=True)
class Outcome:
    """What a trial gave: each entrant's measures, round by round, and why some gave none."""

    title: str
    rounds: dict[str, list[dict[str, float] | None]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def values(self, entrant: str, measure: str) -> list[float | None]:
        return [None if each is None else each.get(measure) for each in self.rounds.get(entrant, [])]


def play(trial: Trial, rounds: int, chance: random.Random, say: Callable[[str], None] | None = None) -> Outcome:
    """All rounds of a trial. A failure is kept in its reason; its entrant has another try in the next round."""
    outcome = Outcome(trial.title)
    present = []
    for entrant in trial.entrants:
        reason = entrant.missing()
        if reason:
            outcome.absent[entrant.name] = reason
        else:
            present.append(entrant)
            outcome.rounds[entrant.name] = []
    for number in range(max(1, round(rounds * trial.share))):
        for entrant in chance.sample(present, len(present)):
            (say or _say)(f"{trial.name}, round {number + 1}: {entrant.name}")
            outcome.rounds[entrant.name].append(_run(entrant, outcome))
    return outcome


def _run(entrant: Entrant, outcome: Outcome) -> dict[str, float] | None:
    try:
        return dict(entrant.run())
    except (Failure, OSError) as error:
        outcome.failures[entrant.name] = str(error)
        return None


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
