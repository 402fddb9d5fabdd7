"""Where a program begins that takes the place of a running master, or shows that it could.

`process` calls both functions, in a fresh interpreter, with a memfd that holds the estate.
"""

from __future__ import annotations

import os
import random
import sys

import forkd
from forkd.errors import Exit, ForkdError
from forkd.lifecycle.server import Lifecycle
from forkd.log import log
from forkd.master import estate
from forkd.master.master import TICK, Master
from forkd.master.reload import Changeover
from forkd.master.service_manager import ServiceManager
from forkd.master.upgrade import READY
from forkd.systemd.passed import Passed


def main(fd: int) -> int:
    """Continues as the master whose estate is in `fd`; returns the exit status."""
    jitter = random.Random()
    left = estate.read(estate.from_memory(fd), jitter)
    for each in left.descriptors():
        os.set_inheritable(each, False)
    passed = Passed(left.passed)
    changeover = Changeover(left.source, left.site, passed)
    stop_timeout = left.site.settings.master.stop_timeout
    life = Lifecycle.resumed(left.phase, left.pools, stop_timeout=stop_timeout, jitter=jitter)
    service_manager = ServiceManager(TICK)
    service_manager.look_for_store(passed)
    master = Master(changeover, life, service_manager, left)
    ended = master.run(lambda: master.take_over(left))
    if ended.reason:
        log.tell(log.marked("error", f"forkd: {ended.reason}"))
    return ended.status


def rehearse(fd: int) -> int:
    """Reads the estate, touches nothing, and reports on standard error; returns the exit status."""
    try:
        estate.read(estate.from_memory(fd), random.Random(), dry=True)
    except ForkdError as error:
        print(error, file=sys.stderr)
        return Exit.FAILED
    print(f"{READY}{forkd.__version__}", file=sys.stderr)
    return Exit.DONE
