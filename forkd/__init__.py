"""forkd turns a Python function into a TCP service with preforked workers.

These are the public names. Everything else in this package is internal, except `forkd.testing` and `forkd.services`.
"""

from forkd.errors import DeadlineError, FramingError, OverLimit, PeerGone, Truncated
from forkd.kernel.address import Address
from forkd.serving.async_connection import AsyncConnection
from forkd.serving.connection import Connection
from forkd.serving.counted_framings import Chunks, Fixed, LengthPrefixed, Netstrings
from forkd.serving.delimited_framings import Delimited, Lines
from forkd.serving.framing import Framing
from forkd.serving.service import Close, Service, service, stream

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
