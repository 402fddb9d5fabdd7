"""Whether anybody but root could change what root is going to obey or run: settings files and applications.

Whoever can write a settings file names the users that services run as, and whoever can write an application is
that user; so a master that is root serves neither, unless it is told to. A file is as good as the worst folder
on the way to it.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

from forkd.errors import ConfigError, Problem
from forkd.kernel import process
from forkd.kernel.accounts import user_name
from forkd.security import identity
from forkd.security.paths import PathStep, files, way
from forkd.settings.config import Source
from forkd.settings.schema import Settings


class Weakness(NamedTuple):
    """Something on the way to a file that somebody else could change: where it is, and what to do about it."""

    path: str
    what: str


def examine(source: Source, settings: Settings, warn: Callable[[str], None]) -> None:
    """Refuses, as root, what others could change; a warning is enough where `source` says so. Raises ConfigError."""
    found = list(_problems(source, settings)) if os.geteuid() == 0 else []
    if found and not source.insecure:
        raise ConfigError([each._replace(what=f"{each.what} (or go on with --insecure)") for each in found])
    for each in found:
        warn(str(each))


def tools() -> Iterator[str]:
    """A sentence for each thing that root runs besides, Python and forkd, and that others could change."""
    trusted = {0, *_caller()}
    for path in (sys.executable, os.path.dirname(os.__file__), process.package_folder()) if os.geteuid() == 0 else ():  # noqa: PTH120
        for weak in weaknesses(path, trusted, whole=True):
            yield f"root runs what is in {path}, but {weak.what}"


def _problems(source: Source, settings: Settings) -> Iterator[Problem]:
    trusted = {0, *_caller()}
    for weak in weaknesses(source.file, trusted) if source.file is not None else ():
        yield Problem(settings.file, 0, "", f"root obeys this file, but {weak.what}")
    told: set[str] = set()
    for name, service in settings.services.items():
        theirs = set(trusted)
        with suppress(ConfigError):  # a user whom nobody knows is told of where it is needed
            who = identity.runs_as(settings, name)
            theirs |= set() if who is None else {who.uid}
        path, key = str(service.path), f"service.{name}.app"
        found = [weaknesses(path, theirs, whole=True), *(weaknesses(each, theirs) for each in files(service.app, path))]
        for weak in chain.from_iterable(found):
            if weak.path not in told:
                told.add(weak.path)
                yield settings.problem(key, weak.what)


def _caller() -> Iterator[int]:
    """Who has become root by sudo(8): what they have written is theirs to run as root."""
    uid = os.environ.get("SUDO_UID", "")
    if uid.isdecimal():
        yield int(uid)


def weaknesses(path: str, trusted: Set[int], *, whole: bool = False) -> Iterator[Weakness]:
    """All that lets somebody whose uid is not `trusted` change what stands at `path`.

    `whole`: it is a folder of which every file counts, also those that are not there yet.
    """
    with suppress(OSError):  # what cannot be looked at cannot be served either, and is told of then
        steps = list(way(path))
        for step in steps:
            if what := _weakness(step, trusted, sticky_will_do=not whole or step is not steps[-1]):
                yield Weakness(step.path, what)


def _weakness(step: PathStep, trusted: Set[int], *, sticky_will_do: bool) -> str:
    kind = "folder" if step.is_folder() else "link" if step.is_link() else "file"
    found = step.found
    if found.st_uid not in trusted:
        command = "chown -h" if step.is_link() else "chown"
        return f"the {kind} {step.path} belongs to the user {user_name(found.st_uid)}: {command} root {step.path}"
    if step.is_link():
        return ""  # its mode means nothing (symlink(7))
    if step.is_folder() and found.st_mode & stat.S_ISVTX and sticky_will_do:
        return ""  # there only owners remove and rename (unlink(2)), and the owner of what comes next is looked at
    who = ("g" if _group_writes(step, trusted) else "") + ("o" if found.st_mode & stat.S_IWOTH else "")
    if not who:
        return ""
    mode = f"{found.st_mode & 0o7777:04o}"
    return f"others may write the {kind} {step.path} (mode {mode}): chmod {who}-w {step.path}"


def _group_writes(step: PathStep, trusted: Set[int]) -> bool:
    """Whether the group may write, and anybody is in it who is not trusted."""
    found = step.found
    if not found.st_mode & stat.S_IWGRP:
        return False
    with suppress(OSError):
        if "system.posix_acl_access" in os.listxattr(step.path):
            return True  # the group's bits are then the most that any entry of the list gives (acl(5))
    if found.st_gid == 0:
        return False
    try:
        members = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(found.st_gid).gr_mem}
    except KeyError:
        return True
    members |= {each.pw_uid for each in pwd.getpwall() if each.pw_gid == found.st_gid}
    return not members <= set(trusted)
