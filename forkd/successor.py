"""The old name of `master.successor`, to which a master of the previous release hands over in an upgrade."""

from forkd.master.successor import main, rehearse

__all__ = ["main", "rehearse"]
