"""Finds what root would obey or run but other users could change: settings files and applications.

A user who can write a settings file chooses the users that services run as, and one who can write an application
acts as its user; so a master that is root refuses both, unless `--insecure` is given. A file is only as safe as the
least safe folder on its path.
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
    """Something on the path to a file that another user could change: where it is, and what to do about it."""

    path: str
    what: str


def examine(source: Source, settings: Settings, warn: Callable[[str], None]) -> None:
    """As root, refuses what other users could change, with ConfigError; only warns if `source` is insecure."""
    found = list(_problems(source, settings)) if os.geteuid() == 0 else []
    if found and not source.insecure:
        raise ConfigError([each._replace(what=f"{each.what} (--insecure starts anyway)") for each in found])
    for each in found:
        warn(str(each))


def tools() -> Iterator[str]:
    """Yields a sentence for each part of Python and forkd that root runs but other users could change."""
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
        with suppress(ConfigError):  # an unknown user is reported where it is needed
            who = identity.runs_as(settings, name)
            theirs |= set() if who is None else {who.uid}
        path, key = str(service.path), f"service.{name}.app"
        found = [weaknesses(path, theirs, whole=True), *(weaknesses(each, theirs) for each in files(service.app, path))]
        for weak in chain.from_iterable(found):
            if weak.path not in told:
                told.add(weak.path)
                yield settings.problem(key, weak.what)


def _caller() -> Iterator[int]:
    """Yields the user who became root with sudo(8), who may run their own files as root."""
    uid = os.environ.get("SUDO_UID", "")
    if uid.isdecimal():
        yield int(uid)


def weaknesses(path: str, trusted: Set[int], *, whole: bool = False) -> Iterator[Weakness]:
    """Yields everything that lets a user whose uid is not `trusted` change what is at `path`.

    `whole`: it is a folder, and every file in it counts, even files that do not exist yet.
    """
    with suppress(OSError):  # what cannot be examined cannot be served either, which is reported then
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
        return ""  # its mode has no meaning (symlink(7))
    if step.is_folder() and found.st_mode & stat.S_ISVTX and sticky_will_do:
        return ""  # only owners can remove or rename there (unlink(2)), and the next step's owner is checked
    who = ("g" if _group_writes(step, trusted) else "") + ("o" if found.st_mode & stat.S_IWOTH else "")
    if not who:
        return ""
    mode = f"{found.st_mode & 0o7777:04o}"
    return f"other users can write to the {kind} {step.path} (mode {mode}): chmod {who}-w {step.path}"


def _group_writes(step: PathStep, trusted: Set[int]) -> bool:
    """Whether the group may write and has a member who is not trusted."""
    found = step.found
    if not found.st_mode & stat.S_IWGRP:
        return False
    with suppress(OSError):
        if "system.posix_acl_access" in os.listxattr(step.path):
            return True  # the group's bits are then the mask of the whole list (acl(5))
    if found.st_gid == 0:
        return False
    try:
        members = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(found.st_gid).gr_mem}
    except KeyError:
        return True
    members |= {each.pw_uid for each in pwd.getpwall() if each.pw_gid == found.st_gid}
    return not members <= set(trusted)
