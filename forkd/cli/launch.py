"""What stands between a reading of the settings and a master that serves them, however that is started.

The settings are read, what must not be served is refused or told of, and it is settled where the
master will be found. Nothing is bound yet, and no application imported; the story goes on in `master`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from forkd.cli import check, paths
from forkd.kernel import process
from forkd.log import log
from forkd.security import identity, trust
from forkd.settings.config import Source
from forkd.settings.schema import Settings


class Launch(NamedTuple):
    """A server that may be started: its settings, which `source` gives anew, and its premises (see `premises`)."""

    source: Source
    settings: Settings
    control: Path
    pidfile: Path | None


def prepare(source: Source, *, detached: bool = False) -> Launch:
    """Reads the settings and looks at all that can be known before anything is opened.

    A `detached` server is one that nobody watches: it always has a pid file, and what `forkd run` only warns of
    is refused. Raises ConfigError or another ForkdError with the reason.
    """
    if os.getpid() == 1:  # of a container: a signal that comes before the master's inbox would be lost (kill(2))
        process.hold_signals()
    settings = source.read()
    for line in trust.tools():
        _warn(line)
    trust.examine(source, settings, _warn)
    check.refuse(check.out_of_reach(settings).values())
    control = paths.control_path(settings)
    paths.make_folder(control)
    _look_for_root(settings, detached=detached)
    pidfile = settings.master.pidfile
    if pidfile is None and detached:
        pidfile = paths.pidfile_beside(control)
    return Launch(source, settings, control, pidfile)


def _look_for_root(settings: Settings, *, detached: bool) -> None:
    """Who starts a server as root should know, or have written down, that applications run as root."""
    for line in check.others_users(settings):
        _warn(line)
    if os.geteuid() != 0:
        return
    names = ", ".join(identity.root_by_default(settings))
    option = "" if settings.places else " by --set user=NAME"
    if names and detached:
        what = f'{names} would run as root: name another user{option}, or insist with user = "root"'
        raise settings.error("master.user", what)
    if names:
        log.tell(f"forkd: running {names} as root; set master.user{option} to run as somebody else")


def _warn(line: str) -> None:
    log.tell(log.marked("warning", f"forkd: warning: {line}"))
