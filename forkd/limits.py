"""How long a connection may take over what, and what it means when that is over."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from forkd.errors import ForkdError

GRACE: Final = 0.05
"""Seconds for which a leaving worker still reads from a silent client before it ends the connection."""
FIRST_GRACE: Final = 0.5
"""The same for a client that has sent nothing yet. One that is let in at a stop may have had its first packet meet the
closed tap (see `tap`), which comes again after 200 ms at the least (RFC 6298 with Linux' smallest RTO)."""

STRAGGLERS: Final = 0.01
"""Seconds for which a leaving worker holds its last replies back, for the rest of what the client is sending."""

PARKED_BYTES: Final = 1 << 20
"""How much of its replies may wait in memory for a client that does not read them; a handler that sends more waits."""

# A timeout of 0 means for ever. It is set as ten years, for only a socket with a timeout has its
# calls interrupted by a signal whatever SA_RESTART says (signal(7)), which is how `hurry` works.
FOR_EVER: Final = 315_360_000.0


NEVER: Final = float("inf")
"""When something is due that has no deadline."""


class Limits(NamedTuple):
    """How long a connection may take over what, in seconds; 0 means for ever.

    `request_timeout` is kept here for handlers that are awaited; all others the master sees to.
    """

    idle_timeout: float = 60
    read_timeout: float = 20
    write_timeout: float = 30
    request_timeout: float = 30


class DeadlineError(ForkdError, TimeoutError):
    """The peer was silent (`idle`), slow with a request (`read`) or slow to take a reply (`write`).

    Or the handler, one that is awaited, was slow itself (`request`).
    """

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        super().__init__(f"{what}_timeout of {seconds:g} s is over")


class PeerGone(ForkdError, ConnectionError):
    """The peer broke the connection off (reset, or gone while a reply was on its way)."""

    @classmethod
    def by(cls, error: OSError) -> PeerGone:
        """What an error of the connection's socket means."""
        return cls(f"the client broke off: {error.strerror}")


class Leaving(ForkdError):
    """The worker leaves, and the peer has nothing under way: internal, never seen by a handler."""


def timeval(seconds: float) -> bytes:
    """A struct timeval for SO_RCVTIMEO and SO_SNDTIMEO; at least a microsecond, for 0 would mean no limit."""
    microseconds = max(1, round((seconds or FOR_EVER) * 1_000_000))
    return struct.pack("ll", *divmod(microseconds, 1_000_000))
