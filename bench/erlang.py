"""Erlang's formulas: how long one waits for a free worker, and how many workers keep that short.

For requests that come independently (a Poisson process), take exponentially distributed times of service, and wait in
one queue for the first of `workers` to be free: M/M/c of queueing theory (A. K. Erlang, 1917). The load is in erlangs:
requests a second times the seconds that one takes.
"""

from __future__ import annotations

import math


def waiting_chance(workers: int, load: float) -> float:
    """Erlang C: the share of requests that find no worker free; 1 where the load is more than the workers can do."""
    if load >= workers:
        return 1.0
    blocked = 1.0  # Erlang B, by its recurrence, which stays exact where factorials would not
    for each in range(1, workers + 1):
        blocked = load * blocked / (each + load * blocked)
    return workers * blocked / (workers - load * (1 - blocked))


def mean_wait(workers: int, load: float, service: float) -> float:
    """How long a request waits on the average, in the unit of `service`, the mean time that one takes."""
    return waiting_chance(workers, load) * service / (workers - load) if load < workers else math.inf


def workers_for(load: float, chance: float) -> int:
    """The least number of workers with which no more than `chance` of the requests have to wait."""
    workers = math.floor(load) + 1
    while waiting_chance(workers, load) > chance:
        workers += 1
    return workers
