"""The orders that a worker may get: all that workers and the lifecycle know of each other.

They have a room of their own, so that no worker loads the lifecycle's events.
"""

from __future__ import annotations

from enum import Enum


class Order(Enum):
    """To leave when its connections have ended, or at the next request's boundary."""

    DRAIN = "drain"
    FINISH = "finish"
