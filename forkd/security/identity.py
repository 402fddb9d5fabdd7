"""Which user and group each service runs as."""

from __future__ import annotations

import os

from forkd.errors import ForkdError
from forkd.kernel.accounts import Identity, identity
from forkd.settings.schema import Settings


def runs_as(settings: Settings, name: str) -> Identity | None:
    """Whom a service runs as, None for the master's own user, which is the only one where that is not root.

    Raises ConfigError where the machine does not know them.
    """
    service = settings.services[name]
    try:
        who = identity(*settings.runs_as(service))
        return who if os.geteuid() == 0 else None
    except ForkdError as error:
        owner = f"service.{name}" if service.user or service.group else "master"
        raise settings.error(f"{owner}.user", str(error)) from None
