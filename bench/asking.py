"""Runs the C client or redis-benchmark against a port, and returns what it reports."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench.processes import CLIENTS, on_core

BUILD: Final = Path(__file__).parent / "build"
"""The folder where `make bench` puts the C programs."""

_LIMIT: Final = 120.0


class Failure(Exception):
    """A measurement failed; the message says why."""


def ask(port: int, *options: str | float) -> dict[str, float]:
    """Runs the C client once; the head of client.c lists its options. Returns its figures."""
    if not (BUILD / "client").exists():
        raise Failure("the C client is not compiled: run make bench")
    command = [str(BUILD / "client"), *map(str, options), str(port)]
    told: dict[str, float] = json.loads(_run(command))
    return told


def ask_redis(port: int, pipelined: int, requests: int) -> dict[str, float]:
    """Sends SETs, then GETs, with redis-benchmark; returns the requests per second of each."""
    program = shutil.which("redis-benchmark")
    if program is None:
        raise Failure("redis-benchmark is not installed (Debian: redis-tools)")
    options = ["-h", "127.0.0.1", "-t", "set,get", "-c", 50, "-n", requests, "-P", pipelined, "--csv"]
    said = _run([program, "-p", str(port), *map(str, options)])
    rows = list(csv.DictReader(line for line in said.splitlines() if line.startswith('"')))
    rates = {row["test"].lower(): float(row["rps"]) for row in rows}
    if set(rates) != {"set", "get"}:
        raise Failure(f"redis-benchmark printed {said!r}")
    return {"requests": 2.0 * requests, "rps set": rates["set"], "rps get": rates["get"]}


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT, preexec_fn=on_core(CLIENTS), check=False
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"the client did not finish within {_LIMIT:.0f} s") from None
    if done.returncode:
        raise Failure(done.stderr.strip() or f"the client ended with status {done.returncode}")
    return done.stdout
