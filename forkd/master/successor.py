"""Where a program begins that takes the place of a running master, or shows that it could.

Both are called by `process`, in a fresh interpreter, with a memfd that holds the estate.
"""

from __future__ import annotations

import os
import random
import sys

import forkd
from forkd.errors import Exit, ForkdError
from forkd.log import log
from forkd.master import estate, master
from forkd.master.upgrade import READY


def main(fd: int) -> int:
    """Goes on as the master of what is there; gives the exit status."""
    jitter = random.Random()
    left = estate.read(estate.from_memory(fd), jitter)
    for each in left.descriptors():
        os.set_inheritable(each, False)
    ended = master.resume(left, jitter)
    if ended.reason:
        log.tell(log.marked("error", f"forkd: {ended.reason}"))
    return ended.status


def rehearse(fd: int) -> int:
    """Reads the estate and touches nothing; tells on standard error how that went."""
    try:
        estate.read(estate.from_memory(fd), random.Random(), dry=True)
    except ForkdError as error:
        print(error, file=sys.stderr)
        return Exit.FAILED
    print(f"{READY}{forkd.__version__}", file=sys.stderr)
    return Exit.DONE
