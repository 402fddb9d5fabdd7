"""Plays trials in interleaved rounds, and keeps each entrant's results.

In a round every entrant of a trial runs once, in an order shuffled by the seed. So a disturbance of the machine
affects all of them, and none always runs after the same other.
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
    """A participant of a trial. `run` measures it once; `missing` returns why it cannot run, or ""."""

    name: str
    run: Callable[[], Measures]
    missing: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Trial:
    """A measurement of several entrants. `share` scales the number of rounds, for quick or slow trials."""

    name: str
    title: str
    entrants: Sequence[Entrant]
    share: float = 1.0


@dataclass(slots=True)
class Outcome:
    """The outcome of a trial: each entrant's measures, round by round, and why some have none."""

    title: str
    rounds: dict[str, list[dict[str, float] | None]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def values(self, entrant: str, measure: str) -> list[float | None]:
        return [None if each is None else each.get(measure) for each in self.rounds.get(entrant, [])]


def play(trial: Trial, rounds: int, chance: random.Random, say: Callable[[str], None] | None = None) -> Outcome:
    """Plays all rounds of a trial. An entrant that fails is tried again in the next round; its reason is kept."""
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
