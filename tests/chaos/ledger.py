"""Compares what was served with what the clients know: no request may run twice, or run without an answer.

The ledger has a line `ID start` and a line `ID end` for each request that ran (tests/handlers/ledger.py); the fates
have a letter for each request that a client sent (tests/load.py).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.load import ANSWERED

MOST = 5  # examples kept


@dataclass
class Audit:
    """How many requests break the ledger's rules."""

    requests: int = 0
    miscounted: int = 0
    """Answered, but without exactly one start and one end."""
    doubled: int = 0
    """More than one start."""
    unfinished: int = 0
    """Started, but not answered: its client read a clean end of the stream, or got an error."""
    examples: list[str] = field(default_factory=list)


def audit(ledger: Path, fates: Path) -> Audit:
    """Checks every request that any client has sent."""
    starts, ends = read(ledger)
    found = Audit()
    for file in sorted(fates.iterdir()):
        for line in file.read_bytes().splitlines():
            client, _, letters = line.partition(b" ")
            begun, ended = starts[client], ends[client]
            for column in (begun, ended):
                column.extend(bytes(max(0, len(letters) - len(column))))
            found.requests += len(letters)
            for number, (fate, start, end) in enumerate(zip(letters, begun, ended, strict=False)):
                if fate == ANSWERED[0] and start == end == 1:
                    continue
                found.doubled += start > 1
                if fate == ANSWERED[0]:
                    found.miscounted += 1
                elif start:
                    found.unfinished += 1
                else:
                    continue
                if len(found.examples) < MOST:
                    name = f"{client.decode()}-{number}"
                    found.examples.append(f"{name}: {chr(fate)}, {start} starts, {end} ends")
    return found


def read(ledger: Path) -> tuple[dict[bytes, bytearray], dict[bytes, bytearray]]:
    """Returns how often each client's requests started and how often they ended, indexed by request number."""
    starts: dict[bytes, bytearray] = defaultdict(bytearray)
    ends: dict[bytes, bytearray] = defaultdict(bytearray)
    with ledger.open("rb") as lines:
        for line in lines:
            name, _, what = line.partition(b" ")
            client, mark, number = name.rpartition(b"-")
            if not mark:
                continue
            column = (starts if what == b"start\n" else ends)[client]
            at = int(number)
            if at >= len(column):
                column.extend(bytes(at + 1 - len(column)))
            column[at] = min(255, column[at] + 1)
    return starts, ends


def births(ledger: Path) -> list[tuple[float, int]]:
    """Returns when each worker became ready, in seconds on the monotonic clock, and its PID; earliest first."""
    with ledger.open("rb") as lines:
        facts = [line.split() for line in lines if line.startswith(b"born ")]
    return sorted((int(moment) / 1e9, int(pid)) for _, pid, moment in facts)
