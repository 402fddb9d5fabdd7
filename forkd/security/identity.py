"""Which user and group each service runs as, and which services run as root."""

from __future__ import annotations

import os

from forkd.errors import ForkdError
from forkd.kernel import accounts
from forkd.kernel.accounts import Identity
from forkd.settings.schema import Settings


def runs_as(settings: Settings, name: str) -> Identity | None:
    """Whom a service runs as. None is the master's own user, the only one possible unless that is root.

    Raises ConfigError if the machine does not know the user or the group.
    """
    service = settings.services[name]
    try:
        who = accounts.identity(*settings.runs_as(service))
        return who if os.geteuid() == 0 else None
    except ForkdError as error:
        owner = f"service.{name}" if service.user or service.group else "master"
        raise settings.error(f"{owner}.user", str(error)) from None


def is_root(who: Identity | None) -> bool:
    """Whether a service that runs as `who`, as `runs_as` returns it, runs as root."""
    return (os.geteuid() if who is None else who.uid) == 0


def root_by_default(settings: Settings) -> list[str]:
    """The services that would run as root only because the settings name no user for them."""
    unnamed = [name for name, service in settings.services.items() if settings.runs_as(service)[0] is None]
    return [name for name in unnamed if is_root(runs_as(settings, name))]
