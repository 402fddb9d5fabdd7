"""Users and groups of the machine (passwd(5), group(5)), and who a process is to be."""

from __future__ import annotations

import grp
import os
import pwd
from contextlib import suppress
from typing import NamedTuple

from forkd.errors import ForkdError


class Identity(NamedTuple):
    """Whom a process runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def identity(user: str | None, group: str | None) -> Identity | None:
    """Whom `user` and `group` (names or numbers) mean; None when neither is set."""
    if user is None and group is None:
        return None
    entry = None if user is None else _user(user)
    default = entry.pw_gid if entry is not None else os.getgid()
    gid = default if group is None else _group(group).gr_gid
    uid = entry.pw_uid if entry is not None else os.getuid()
    groups = tuple(os.getgrouplist(entry.pw_name, gid)) if entry is not None else (gid,)
    return Identity(uid, gid, groups)


def user_name(uid: int) -> str:
    """What this machine calls a user."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def environment(who: Identity) -> dict[str, str]:
    """What `who` has in the environment after a login (environ(7)): who looks into HOME shall not meet root's."""
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
