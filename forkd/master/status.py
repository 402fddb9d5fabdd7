"""A snapshot of the server: the document of `forkd status --json`.

It is made of the scoreboard's rows and of what the master knows of its processes. How it is shown is decided
elsewhere. All numbers are seconds, bytes or counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, Final

import forkd
from forkd.ipc.meter import bucket_top
from forkd.ipc.scoreboard import (
    BUCKETS,
    BUSY,
    BUSY_SINCE,
    COUNTS,
    HIGHEST,
    HISTOGRAM,
    OPEN,
    ROWS,
    SLOWEST,
    STATE,
    Board,
)
from forkd.kernel import procfs
from forkd.lifecycle.pool import Pool
from forkd.lifecycle.server import Lifecycle
from forkd.master.handles import WorkerHandle
from forkd.master.roster import Roster
from forkd.master.site import Site
from forkd.sockets.rpcbind.registry import Registry

_NANO: Final = 1e-9
_REFUSALS: Final = ("over_limit", "truncated", "malformed", "timed_out", "reset", "accept_failed")
_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def snapshot(
    site: Site, life: Lifecycle, roster: Roster, registry: Registry, *, started: float, detached: bool
) -> dict[str, Any]:
    """The whole document. `started` is when the master began, in monotonic seconds."""
    now = monotonic()
    services: dict[str, Any] = {}
    workers: list[dict[str, Any]] = []
    for name, settings in site.settings.services.items():
        pool = life.pools[name]
        handles = roster.workers_of(name)
        listen = [str(address) for owner, address in site.addresses() if owner == name]
        services[name] = service(settings.app, listen, pool, roster.boards.board(name), handles)
        services[name]["rpcbind"] = registry.state(name)
        workers += [worker(handle, _state(pool, handle), now) for handle in handles]
    master = {
        "pid": os.getpid(),
        "version": forkd.__version__,
        "phase": life.phase.value,
        "uptime": round(now - started, 3),
        "config": site.settings.file,
        "detached": detached,
    }
    return {"master": master, "services": services, "workers": workers}


def service(
    app: str, listen: Iterable[str], pool: Pool, board: Board, workers: Iterable[WorkerHandle]
) -> dict[str, Any]:
    """The part of the document for one service; its totals outlive its workers."""
    rows = [board.row(number) for number in range(1, min(board.header[HIGHEST], ROWS - 1) + 1)]
    totals = {name: sum(row[column] for row in rows) for name, column in COUNTS.items()}
    alive = [worker for worker in workers if worker.ready]
    busy = sum(1 for worker in alive if worker.row[STATE] == BUSY)
    return {
        "app": app,
        "generation": pool.serving.number if pool.serving is not None else 0,
        "listen": list(listen),
        "workers": {"total": len(alive), "idle": len(alive) - busy, "busy": busy},
        "connections": {"open": sum(worker.row[OPEN] for worker in alive), "accepted": totals["accepted"]},
        "requests": totals["requests"],
        "errors": totals["errors"],
        "bytes": {"in": totals["bytes_in"], "out": totals["bytes_out"]},
        "refused": {name: totals[name] for name in _REFUSALS},
        "exits": dict(pool.exits),
        "latency": latency(rows),
    }


def worker(handle: WorkerHandle, state: str, now: float) -> dict[str, Any]:
    """The part of the document for one worker; its counts begin with its process."""
    row = handle.row
    if state == "serving":
        state = "busy" if row[STATE] == BUSY else "idle"
    began = row[BUSY_SINCE]
    return {
        "service": handle.service,
        "slot": handle.slot,
        "pid": handle.pid,
        "generation": handle.generation,
        "state": state,
        "age": round(now - handle.born, 3),
        "connections": handle.counted("accepted"),
        "requests": handle.counted("requests"),
        "memory": procfs.resident(handle.pid),
        "request_age": round(max(0.0, now - began * _NANO), 3) if began else None,
    }


def latency(rows: Iterable[memoryview]) -> dict[str, float | None]:
    """Percentiles of the time that handlers took, in seconds, from the rows' histograms; None before a first request.

    A percentile is the top of its bucket, so it is at most 12.5 % too high, and never above the maximum.
    """
    buckets = [0] * BUCKETS
    slowest = 0
    for row in rows:
        slowest = max(slowest, row[SLOWEST])
        for place, count in enumerate(row[HISTOGRAM : HISTOGRAM + BUCKETS]):
            if count:
                buckets[place] += count
    total = sum(buckets)
    found: dict[str, float | None] = {
        name: min(_quantile(buckets, total, share), slowest) * _NANO if total else None
        for name, share in _QUANTILES.items()
    }
    return found | {"max": slowest * _NANO if total else None}


def summary(services: Mapping[str, Mapping[str, Any]]) -> str:
    """The document in one line, as systemd's STATUS= shows it."""
    workers = sum(each["workers"]["total"] for each in services.values())
    busy = sum(each["workers"]["busy"] for each in services.values())
    requests = sum(each["requests"] for each in services.values())
    return (
        f"{_count(len(services), 'service')}, {_count(workers, 'worker')}, {busy} busy, {_count(requests, 'request')}"
    )


def _state(pool: Pool, handle: WorkerHandle) -> str:
    found = pool.worker(handle.generation, handle.slot)
    return found.state.value if found is not None else "gone"


def _quantile(buckets: list[int], total: int, share: float) -> int:
    wanted = share * total
    seen = 0
    for place, count in enumerate(buckets):
        seen += count
        if seen >= wanted:
            return bucket_top(place)
    return bucket_top(BUCKETS - 1)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
