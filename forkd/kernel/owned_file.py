"""Files that must not outlive us: socket files and the PID file. Their inode tells them from a successor's."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple


class OwnedFile(NamedTuple):
    """A file that we put at `path`, identified by its device and inode."""

    path: str
    device: int
    inode: int

    @classmethod
    def at(cls, path: str) -> OwnedFile:
        """Identifies the file that is at `path` now."""
        found = os.lstat(path)
        return cls(path, found.st_dev, found.st_ino)

    def stands(self) -> bool:
        """Whether the file is still there and still ours."""
        with suppress(OSError):
            return OwnedFile.at(self.path) == self
        return False

    def remove(self) -> None:
        """Removes the file if it is still ours; a later server keeps its own."""
        with suppress(OSError):
            if self.stands():
                os.unlink(self.path)  # noqa: PTH108
