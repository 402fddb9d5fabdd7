"""Drops privileges for good: the master keeps few, an application none.

A master that is root keeps the capabilities that its own work takes (capabilities(7)) and drops the rest when it
starts, for itself and for every program that it starts. A fork server becomes its service's user before the first
line of the application runs, and gives up every way to get more back. On a kernel or in a container that offers
less, it gives up what there is. `identity` decides which user a service runs as.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from forkd.errors import ForkdError
from forkd.kernel.accounts import Identity

KEPT: Final = {
    "chown": 0,  # to give a unix socket to the owner that the settings name
    "dac_override": 1,  # sockets, log and PID file in folders of the services' users; interpreters in users' folders
    "fowner": 3,  # to remove and replace such a socket in a sticky folder (unlink(2)) once another user owns it
    "kill": 5,  # to end the workers of other users
    "setgid": 6,  # for fork servers, to become their services' users
    "setuid": 7,
    "setpcap": 8,  # for fork servers, to empty their bounding sets; it adds no privilege that the sets do not hold
    "net_bind_service": 10,  # ports below 1024, on a reload too
}
"""The capabilities that a master keeps, and why.

Not needed: CAP_SYS_RESOURCE (forkd raises no limit, and root has no limit on processes), CAP_SYS_PTRACE (statm of
other users' processes, proc(5), is readable for all), CAP_NET_ADMIN (the tap needs no privilege).
"""

_PR_CAPBSET_READ: Final = 23  # prctl(2)
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522  # capget(2)

_LANDLOCK_CREATE_RULESET: Final = 444  # the same on every architecture that Python runs on, except alpha
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_SCOPE_SIGNAL: Final = 2

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def shed(*, for_all: bool) -> list[str]:
    """Drops all capabilities except a master's. Returns a sentence for each thing that could not be done.

    With `for_all`, no program that it starts can get others either, not even as root or setuid. Without, a
    program that it starts as root has all of root's capabilities.
    """
    kept = sum(1 << number for number in KEPT.values())
    failures = _bound(kept) if for_all else []
    before = _capabilities()
    after = tuple(each & kept for each in before)
    if after != before:  # a system call filter may forbid the call
        try:
            _set_capabilities(*after)  # this clears the ambient ones as well
        except OSError as error:
            failures.append(f"the capabilities stay unchanged: {error.strerror}")
    return failures


def become(who: Identity | None) -> list[str]:
    """Becomes `who` for good (None: keeps its user). Returns a sentence for each thing that could not be done.

    None of those leads back to root. A process that is then not root has no capability, gets none from any program
    that it runs (no_new_privs), and can signal only itself, its descendants and the processes that share this call.
    Raises ForkdError if privileges are left or could be regained (CERT POS36-C, setresuid(2)).
    """
    powerless = (os.geteuid() if who is None else who.uid) != 0
    failures = _bound(0) if powerless else []  # while we still have CAP_SETPCAP
    if who is not None:
        try:
            os.setgroups(who.groups)
            os.setresgid(who.gid, who.gid, who.gid)
            os.setresuid(who.uid, who.uid, who.uid)
        except OSError as error:
            raise ForkdError(
                f"this process cannot become uid {who.uid}, gid {who.gid}: {error.strerror}; "
                "root needs CAP_SETUID and CAP_SETGID for that"
            ) from None
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if powerless:
        with suppress(OSError):  # Linux before 4.3 has no ambient set
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        if any(_capabilities()):
            with suppress(OSError):  # _check_no_way_back notices
                _set_capabilities(0, 0, 0)
        failures += _keep_signals_inside()
        _check_no_way_back(tried=who is not None)
    return failures


def _check_no_way_back(*, tried: bool) -> None:
    """Raises ForkdError if privileges could be regained. `tried` tries it, with system calls a filter may punish."""
    if any(_capabilities()):
        raise ForkdError("capabilities are left: the system call filter must allow capset(2)")
    back = len({*os.getresuid()}) > 1 or len({*os.getresgid()}) > 1
    for regain in (os.seteuid, os.setuid) if tried else ():
        with suppress(PermissionError):
            regain(0)
            back = True
    if back:
        raise ForkdError(f"privileges could be regained after the drop to uid {os.getuid()}")


def _bound(kept: int) -> list[str]:
    """Removes all but `kept` from the bounding set, beyond which no program that we run can get a capability."""
    try:
        for number in range(64):
            if _prctl(_PR_CAPBSET_READ, number) and not kept >> number & 1:
                _prctl(_PR_CAPBSET_DROP, number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the kernel knows no higher number
            return [f"the capability bounding set stays unchanged: {error.strerror}"]
    return []


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Words(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _capabilities() -> tuple[int, int, int]:
    """Returns this process's effective, permitted and inheritable sets, one bit per capability (capget(2))."""
    words = (_Words * 2)()
    _succeed(_LIBC.capget(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), words))
    low, high = words
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def _set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    mask = 0xFFFFFFFF
    words = (_Words * 2)(
        _Words(effective & mask, permitted & mask, inheritable & mask),
        _Words(effective >> 32, permitted >> 32, inheritable >> 32),
    )
    _succeed(_LIBC.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), words))


def _keep_signals_inside() -> list[str]:
    """Keeps signals from us and our descendants from reaching any other process, even a master of our own user.

    Linux 6.12 and later (landlock(7), LANDLOCK_SCOPE_SIGNAL). It confines ptrace(2) as well.
    """
    refused = "other processes of this user can be signalled (landlock, Linux 6.12)"
    if _is_filtered() and not _survives(_enter_signal_scope):
        return [f"{refused}: a system call filter would kill this process for trying"]
    try:
        _enter_signal_scope()
    except OSError as error:
        return [f"{refused}: {error.strerror}"]
    return []


def _enter_signal_scope() -> None:
    attributes = (ctypes.c_uint64 * 3)(0, 0, _LANDLOCK_SCOPE_SIGNAL)  # no rules for files or ports
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    rules = _succeed(_LIBC.syscall(_LANDLOCK_CREATE_RULESET, attributes, size, 0))
    try:
        _succeed(_LIBC.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0))
    finally:
        os.close(rules)


def _is_filtered() -> bool:
    """Whether this process has a system call filter (seccomp(2)), which may be one that kills."""
    try:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123
            return any(line.split()[1:] == [b"2"] for line in status if line.startswith(b"Seccomp:"))
    except OSError:
        return True


def _survives(act: Callable[[], None]) -> bool:
    """Whether a child that does `act` survives it."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            act()
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _prctl(option: int, first: int, second: int = 0) -> int:
    return _succeed(_LIBC.prctl(option, *(ctypes.c_ulong(each) for each in (first, second, 0, 0))))


def _succeed(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
