"""How long a connection may take over what, and what it means when that is over."""

from __future__ import annotations

from typing import Final, NamedTuple

GRACE: Final = 0.05
"""Seconds for which a leaving worker still reads from a silent client before it ends the connection."""
FIRST_GRACE: Final = 0.5
"""The same for a client that has sent nothing yet. One that is let in at a stop may have had its first packet meet the
closed tap (see `tap`), which comes again after 200 ms at the least (RFC 6298 with Linux' smallest RTO)."""

STRAGGLERS: Final = 0.01
"""Seconds for which a leaving worker holds its last replies back, for the rest of what the client is sending."""

PARKED_BYTES: Final = 1 << 20
"""How much of its replies may wait in memory for a client that does not read them; a handler that sends more waits."""
PARKED_ALL_BYTES: Final = 256 << 20
"""The same where the handler cannot wait, because its thread serves others too. Beyond this, the connection ends."""


NEVER: Final = float("inf")
"""When something is due that has no deadline."""


class Deadlines(NamedTuple):
    """How long a connection may take over what, in seconds; 0 means for ever.

    `request_timeout` is kept here for handlers that are awaited; all others the master sees to.
    """

    idle_timeout: float = 60
    read_timeout: float = 20
    write_timeout: float = 30
    request_timeout: float = 30
