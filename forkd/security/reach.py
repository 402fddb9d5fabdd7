"""What a service's user has to be able to read, and the folder that keeps it from that.

It is found out by trying, as that user, so groups and access control lists count as they do later. A fork
server looks when it has become the user, before the first line of the application; who starts forkd is told
earlier, by `check`.
"""

from __future__ import annotations

import os
import sys
from typing import Final, NamedTuple

from forkd.kernel import process
from forkd.kernel.accounts import user_name
from forkd.security import paths

_PYTHON: Final = "install Python and forkd where everybody may read them, such as /opt or /usr/local"
_APPLICATION: Final = "move it to where everybody may read it, such as /srv or /opt"


class Need(NamedTuple):
    """Something that has to be readable: what it is, where, and what to do about it if it is not."""

    what: str
    path: str
    remedy: str
    access: int = os.R_OK


def needs(app: str, path: str) -> list[Need]:
    """What a process takes that serves `app` from the folder `path`; to be asked before privileges are dropped."""
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
    """Why this process cannot read what is needed, as a sentence; nothing if it can."""
    for need in needed:
        if why := _closed(need):
            return f"{user_name(os.geteuid())} cannot read {need.what} {need.path}: {why}; {need.remedy}"
    return ""


def _closed(need: Need) -> str:
    """What keeps this process from it."""
    step = None
    try:
        for step in paths.way(need.path):
            if step.is_folder() and not os.access(step.path, os.X_OK):
                return f"the folder {step.path} is closed to it ({_rights(step)}); chmod o+x would open it"
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    if step is not None and not os.access(step.path, need.access):
        kind = "folder" if step.is_folder() else "file"
        return f"the {kind} {step.path} is closed to it ({_rights(step)}); chmod o+r would open it"
    return ""


def _rights(step: paths.PathStep) -> str:
    return f"mode {step.found.st_mode & 0o7777:04o}, owner {user_name(step.found.st_uid)}"
