"""A disk of 64 KiB for tests to fill: a tmpfs(5) in a mount namespace of its own.

The machine does not see the mount: the namespace belongs to a process that waits for the end of the test, and tests
reach its files through proc(5). Call `missing()` first.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOUNT = 'mount -t tmpfs -o size=64k none "$1" && echo mounted && exec cat'


@functools.cache
def missing() -> str | None:
    """Returns why such a disk cannot be made here, as a skip reason; None if it can."""
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    if not shutil.which("unshare"):
        return "mounting a small disk needs the program unshare"
    with tempfile.TemporaryDirectory() as folder, _mounted(Path(folder)) as (_, said):
        return None if said else "mounting a small disk does not work here"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mounts a new disk on `folder`, and yields the path by which to reach it."""
    with _mounted(folder) as (pid, said):
        assert said == b"mounted\n"
        yield Path(f"/proc/{pid}/root{folder}")


def fill(disk: Path) -> Path:
    """Fills the disk to the last byte; returns the file whose removal frees the space again."""
    filler = disk / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except OSError:
        return filler
    finally:
        os.close(fd)


@contextmanager
def _mounted(folder: Path) -> Iterator[tuple[int, bytes]]:
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _MOUNT, "sh", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:  # leaving the block closes its standard input, which ends cat
        assert holder.stdout is not None
        yield holder.pid, holder.stdout.readline()
