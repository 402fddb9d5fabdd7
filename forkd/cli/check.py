"""`forkd check`: imports every application in a throw-away fork server, and looks for trouble ahead.

It binds nothing. Mistakes in the settings themselves have been reported by `config` before this begins.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from forkd.cli.trial import Trial
from forkd.errors import ConfigError, ForkdError, Problem
from forkd.kernel import accounts, process
from forkd.kernel.accounts import Identity
from forkd.security import identity, privileges, reach
from forkd.settings.schema import Settings

_SPARE_DESCRIPTORS: Final = 32  # what a master needs besides three for each worker

_ANSWER_BYTES: Final = 4096  # one write to a pipe is whole up to this size (pipe(7), PIPE_BUF)


def trial(settings: Settings) -> list[str]:
    """Imports every application; returns a warning for each thing in them that a fork would break.

    Raises ConfigError if these settings cannot be served: an application that cannot be imported, an unknown user.
    """
    barred = out_of_reach(settings)
    trials = [Trial(settings, name) for name in settings.services if name not in barred]
    refuse([*barred.values(), *(problem for each in trials for problem in each.verdict())])
    return [str(settings.problem(f"service.{each.name}.app", what)) for each in trials for what in each.left_behind]


def warnings(settings: Settings) -> Iterator[str]:
    """Warns of what works, but perhaps not as expected."""
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    for name, service in settings.services.items():
        if service.backlog > somaxconn:
            yield str(
                settings.problem(
                    f"service.{name}.backlog",
                    f"{service.backlog} is cut to {somaxconn} by the kernel: raise net.core.somaxconn (sysctl)",
                )
            )
    workers = sum(service.workers.max for service in settings.services.values())
    needed = 3 * workers + _SPARE_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > soft:
        yield (
            f"{settings.file}: {workers} workers need {needed} file descriptors, but only {soft} are allowed: "
            "raise LimitNOFILE= or ulimit -n"
        )
    for name in identity.root_by_default(settings):
        yield f"{settings.file}: service {name} would run as root, which forkd start refuses: set master.user"
    yield from others_users(settings)


def others_users(settings: Settings) -> Iterator[str]:
    """A sentence for each service that cannot run as the user in the settings: only root can become another user."""
    for name, service in settings.services.items():
        who = accounts.identity(*settings.runs_as(service))
        if os.geteuid() != 0 and who is not None and (who.uid, who.gid) != (os.geteuid(), os.getegid()):
            ours = accounts.user_name(os.geteuid())
            yield f"service {name} runs as {ours}: only root can run it as another user"


def out_of_reach(settings: Settings) -> dict[str, Problem]:
    """By service, what keeps its user from reading Python, forkd or the application, or that there is no such user."""
    found = {}
    obstacle = cache(_obstacle)  # a child for each user and application, not for each service
    for name, service in settings.services.items():
        try:
            who = identity.runs_as(settings, name)
        except ConfigError as error:
            found[name] = error.problems[0]
            continue
        if who is None or identity.is_root(who):
            continue
        if why := obstacle(who, service.app, str(service.path)):
            found[name] = settings.problem(f"service.{name}.user" if service.user else "master.user", why)
    return found


def _obstacle(who: Identity, app: str, path: str) -> str:
    """What keeps `who` from serving `app` from the folder `path`, as a child that has become them finds it."""
    needed = reach.needs(app, path)
    answer, written = os.pipe2(os.O_CLOEXEC)
    with process.signals_blocked():
        pid = os.fork()
        if pid == 0:
            try:
                privileges.become(who)
                why = reach.obstacle(needed)
            except BaseException as error:
                why = str(error) if isinstance(error, ForkdError) else repr(error)
            with suppress(OSError):
                os.write(written, why.encode(errors="backslashreplace")[:_ANSWER_BYTES])
            os._exit(0)
    os.close(written)
    with os.fdopen(answer, "rb") as stream:
        why = stream.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return why


def refuse(found: Iterable[Problem]) -> None:
    """Raises ConfigError with the problems, each once, if there are any."""
    if once := list(dict.fromkeys(found)):
        raise ConfigError(once)
