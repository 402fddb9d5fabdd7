"""What a process does before it measures: it takes the clients' core, and descriptors for many connections."""

from __future__ import annotations

import os
import resource

from bench import processes


def prepare() -> None:
    os.sched_setaffinity(0, {processes.CLIENTS})
    # 10,000 idle connections are as many descriptors here and in the server.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
