"""forkd turns a Python function into a TCP service with preforked workers.

The public names; all else in this package is internal, `forkd.testing` and `forkd.services` apart.
"""

from forkd.address import Address
from forkd.asyncconnection import AsyncConnection
from forkd.connection import Connection
from forkd.errors import FramingError, OverLimit, Truncated
from forkd.framing import Chunks, Delimited, Fixed, Framing, LengthPrefixed, Lines, Netstrings
from forkd.handler import Close, Service, service, stream
from forkd.limits import DeadlineError, PeerGone

__version__ = "0.1.0"

__all__ = [
    "Address",
    "AsyncConnection",
    "Chunks",
    "Close",
    "Connection",
    "DeadlineError",
    "Delimited",
    "Fixed",
    "Framing",
    "FramingError",
    "LengthPrefixed",
    "Lines",
    "Netstrings",
    "OverLimit",
    "PeerGone",
    "Service",
    "Truncated",
    "service",
    "stream",
]
