"""Finds an application's files, and every folder and link on the path to a file.

Nothing is imported, opened or judged here.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from typing import Final, NamedTuple

_LINKS: Final = 40  # the kernel's own limit (path_resolution(7))
_LOADERS: Final = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


class PathStep(NamedTuple):
    """A folder, a link or a file, as lstat(2) found it."""

    path: str
    found: os.stat_result

    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.found.st_mode)

    def is_link(self) -> bool:
        return stat.S_ISLNK(self.found.st_mode)


def way(path: str) -> Iterator[PathStep]:
    """Yields every folder and link from the root folder to `path`, which comes last, in the order the kernel takes.

    See path_resolution(7). Raises OSError at the step that fails.
    """
    at = "/"
    yield PathStep(at, os.lstat(at))
    to_come = os.path.abspath(path).split("/")[::-1]  # noqa: PTH100  # resolve() would hide the links
    links = 0
    while to_come:
        name = to_come.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)  # noqa: PTH120
            continue
        step = PathStep(os.path.join(at, name), os.lstat(os.path.join(at, name)))  # noqa: PTH118
        yield step
        if not step.is_link():
            at = step.path
            continue
        if (links := links + 1) > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(step.path)  # noqa: PTH115
        at = "/" if target.startswith("/") else at
        to_come += target.split("/")[::-1]


def files(app: str, path: str) -> list[str]:
    """Returns the files that an import of `app` (`module:name`) starts with: those of its packages and its module.

    They are found as an import would find them, `path` first, but nothing is run. Files that only a real import
    could find are missing.
    """
    folders = [path, *(each for each in sys.path if each)]
    found: list[str] = []
    for name in app.partition(":")[0].split("."):
        file, folders = _module(name, folders)
        found += file
    return found


def _module(name: str, folders: list[str]) -> tuple[list[str], list[str]]:
    """Returns the file of a module and, if it is a package, the folders of its modules."""
    portions: list[str] = []
    for folder in folders:
        spec = FileFinder(folder, *_LOADERS).find_spec(name)
        if spec is None:
            continue
        inside = list(spec.submodule_search_locations or ())
        if spec.loader is not None:
            return [spec.origin] if spec.origin else [], inside
        portions += inside  # of a namespace package (PEP 420), unless another folder has a regular one
    return [], portions
