"""The users and groups of this machine (passwd(5), group(5)), and who a process should run as."""

from __future__ import annotations

import grp
import os
import pwd
from contextlib import suppress
from typing import NamedTuple

from forkd.errors import ForkdError


class Identity(NamedTuple):
    """The user and groups that a process runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def identity(user: str | None, group: str | None) -> Identity | None:
    """Looks up `user` and `group`, each a name or a number. Returns None when neither is set; ForkdError if unknown."""
    if user is None and group is None:
        return None
    entry = None if user is None else _user(user)
    default = entry.pw_gid if entry is not None else os.getgid()
    gid = default if group is None else _group(group).gr_gid
    uid = entry.pw_uid if entry is not None else os.getuid()
    groups = tuple(os.getgrouplist(entry.pw_name, gid)) if entry is not None else (gid,)
    return Identity(uid, gid, groups)


def user_name(uid: int) -> str:
    """Returns the name of a user on this machine, or `uid N` if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def environment(who: Identity) -> dict[str, str]:
    """Returns the login variables of `who` (environ(7)), so that a program that reads HOME does not see root's."""
    with suppress(KeyError):
        entry = pwd.getpwuid(who.uid)
        return {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    return {}


def _user(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        raise ForkdError(f"there is no user {user!r} on this machine (getent passwd {user})") from None


def _group(group: str) -> grp.struct_group:
    try:
        return grp.getgrgid(int(group)) if group.isdigit() else grp.getgrnam(group)
    except KeyError:
        raise ForkdError(f"there is no group {group!r} on this machine (getent group {group})") from None
