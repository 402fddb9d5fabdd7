"""How long a connection may take for each step, and how patient a leaving worker is."""

from __future__ import annotations

from typing import Final, NamedTuple

GRACE: Final = 0.05
"""Seconds that a leaving worker still reads from a silent client before it ends the connection."""
FIRST_GRACE: Final = 0.5
"""The same for a client that has sent nothing yet. At a stop, the closed tap (see `kernel.tap`) may have dropped its
first packet, which the client repeats after at least 200 ms (RFC 6298, with Linux' smallest RTO)."""

STRAGGLERS: Final = 0.01
"""Seconds that a leaving worker holds its last replies back, to receive the rest of what the client is sending."""

PARKED_BYTES: Final = 1 << 20
"""How many bytes of replies may wait in memory for a client that does not read; a handler that sends more waits."""
PARKED_ALL_BYTES: Final = 256 << 20
"""The same where the handler cannot wait, because its thread serves others too. Beyond this, the connection ends."""

NEVER: Final = float("inf")
"""The time at which something without a deadline is due."""


class Deadlines(NamedTuple):
    """How long a connection may take for each step, in seconds; 0 means no limit.

    Workers enforce `request_timeout` only for handlers that are coroutines; the master enforces it for all others.
    """

    idle_timeout: float = 60
    read_timeout: float = 20
    write_timeout: float = 30
    request_timeout: float = 30
