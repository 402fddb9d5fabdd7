"""For a master of the release before, which starts its fork servers by this name."""

from forkd.workers.fork_server import main

__all__ = ["main"]
