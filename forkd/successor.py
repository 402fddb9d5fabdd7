"""For a master of the release before, which hands over to this name at an upgrade."""

from forkd.master.successor import main, rehearse

__all__ = ["main", "rehearse"]
