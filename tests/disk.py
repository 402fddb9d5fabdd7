"""A disk of 64 KiB for tests, to be filled up: a tmpfs(5) in a mount namespace of its own.

Nothing is mounted that the machine could see: the namespace is that of a process which waits for
the test's end, and its files are reached by way of proc(5). Ask `missing()` first.
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
    """Why there can be no such disk here, as the reason to skip with; None if there can."""
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    if not shutil.which("unshare"):
        return "mounting a small disk needs the program unshare"
    with tempfile.TemporaryDirectory() as folder, _mounted(Path(folder)) as (_, said):
        return None if said else "mounting a small disk does not work here"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A new disk, mounted on `folder` for whoever goes by the path that this gives."""
    with _mounted(folder) as (pid, said):
        assert said == b"mounted\n"
        yield Path(f"/proc/{pid}/root{folder}")


def fill(disk: Path) -> Path:
    """Leaves no byte free; gives the file to remove that all may be free again."""
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
    with holder:  # whose cat ends with its standard input
        assert holder.stdout is not None
        yield holder.pid, holder.stdout.readline()
