"""The old name of `workers.fork_server`, by which a master of the previous release starts its fork servers."""

from forkd.workers.fork_server import main

__all__ = ["main"]
