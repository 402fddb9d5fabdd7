"""What a service's user must be able to read, and the folder that prevents it.

It is tried as that user, so groups and access control lists count as they will later. A fork server checks when
it has become the user, before the first line of the application; `forkd check` tells the administrator earlier.
"""

from __future__ import annotations

import os
import sys
from typing import Final, NamedTuple

from forkd.kernel import process
from forkd.kernel.accounts import user_name
from forkd.security import paths

_PYTHON: Final = "install Python and forkd where all users may read them, such as /opt or /usr/local"
_APPLICATION: Final = "move it to where all users may read it, such as /srv or /opt"


class Need(NamedTuple):
    """Something that must be readable: what it is, where it is, and what to do if it is not."""

    what: str
    path: str
    remedy: str
    access: int = os.R_OK


def needs(app: str, path: str) -> list[Need]:
    """Returns what a process needs to serve `app` from the folder `path`. Call it before dropping privileges."""
    own = tuple(f"{prefix}/" for prefix in (sys.prefix, sys.base_prefix, sys.base_exec_prefix))
    needed = [
        Need("the Python interpreter", sys.executable, _PYTHON, os.X_OK),
        *(Need("Python's library", each, _PYTHON) for each in dict.fromkeys(sys.path) if each.startswith(own)),
        Need("forkd's own folder", process.package_folder(), _PYTHON),
        Need("the application's folder", path, _APPLICATION),
        *(Need("the application", each, _APPLICATION) for each in paths.files(app, path)),
    ]
    return [need for need in needed if os.path.exists(need.path)]  # noqa: PTH110


def obstacle(needed: list[Need]) -> str:
    """Says in a sentence why this process cannot read what is needed; empty if it can."""
    for need in needed:
        if why := _closed(need):
            return f"{user_name(os.geteuid())} cannot read {need.what} {need.path}: {why}; {need.remedy}"
    return ""


def _closed(need: Need) -> str:
    """Says what prevents this process from reading it; empty if nothing does."""
    step = None
    try:
        for step in paths.way(need.path):
            if step.is_folder() and not os.access(step.path, os.X_OK):
                return f"it may not enter the folder {step.path} ({_rights(step)}); chmod o+x would open it"
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    if step is not None and not os.access(step.path, need.access):
        kind = "folder" if step.is_folder() else "file"
        return f"it may not read the {kind} {step.path} ({_rights(step)}); chmod o+r would open it"
    return ""


def _rights(step: paths.PathStep) -> str:
    return f"mode {step.found.st_mode & 0o7777:04o}, owner {user_name(step.found.st_uid)}"
