"""What a worker may be told: a word that workers and the lifecycle share, and all that either knows of the other.

It stands alone, for no worker is to load the lifecycle's events.
"""

from __future__ import annotations

from enum import Enum


class Order(Enum):
    """To leave after its connections' own end, or at the next request's boundary."""

    DRAIN = "drain"
    FINISH = "finish"
