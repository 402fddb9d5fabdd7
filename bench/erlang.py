"""Erlang's formulas: how long requests wait for a free worker, and how many workers keep the wait short.

They hold for requests that arrive independently (a Poisson process), have exponentially distributed service times, and
wait in one queue for the first free worker: M/M/c in queueing theory (A. K. Erlang, 1917). The load is in erlangs:
requests per second times the seconds that one takes.
"""

from __future__ import annotations

import math


def waiting_chance(workers: int, load: float) -> float:
    """Returns the share of requests that find no worker free (Erlang C); 1 if the load is too much for the workers."""
    if load >= workers:
        return 1.0
    blocked = 1.0  # Erlang B by its recurrence, which stays accurate where factorials would not
    for each in range(1, workers + 1):
        blocked = load * blocked / (each + load * blocked)
    return workers * blocked / (workers - load * (1 - blocked))


def mean_wait(workers: int, load: float, service: float) -> float:
    """Returns a request's mean wait, in the unit of `service`, the mean service time."""
    return waiting_chance(workers, load) * service / (workers - load) if load < workers else math.inf


def workers_for(load: float, chance: float) -> int:
    """Returns the least number of workers with which a share of at most `chance` of the requests must wait."""
    workers = math.floor(load) + 1
    while waiting_chance(workers, load) > chance:
        workers += 1
    return workers
