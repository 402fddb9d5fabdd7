"""Prepares a master: everything between reading the settings and serving them, however forkd is started.

It reads the settings, refuses or warns of what should not be served, and decides where commands will find the
master. Nothing is bound and no application imported yet. Next in the story: `master`.
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
    """A server that is ready to start: its settings, where to read them again, its control socket and its pid file."""

    source: Source
    settings: Settings
    control: Path
    pidfile: Path | None


def prepare(source: Source, *, detached: bool = False) -> Launch:
    """Reads the settings and checks everything that can be checked before anything is opened.

    A `detached` server runs unattended, so it always has a pid file, and things that `forkd run` only warns of are
    refused. Raises ConfigError or another ForkdError with the reason.
    """
    if os.getpid() == 1:  # in a container, a signal sent before the master's inbox exists would be lost (kill(2))
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
    """Warns that applications run as root; for a detached server, insists that the settings say so."""
    for line in check.others_users(settings):
        _warn(line)
    if os.geteuid() != 0:
        return
    names = ", ".join(identity.root_by_default(settings))
    option = "" if settings.places else " with --set user=NAME"
    if names and detached:
        what = f'{names} would run as root: name another user{option}, or confirm with user = "root"'
        raise settings.error("master.user", what)
    if names:
        log.tell(f"forkd: running {names} as root; set master.user{option} to run as another user")


def _warn(line: str) -> None:
    log.tell(log.marked("warning", f"forkd: warning: {line}"))
