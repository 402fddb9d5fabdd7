"""From one reading of the settings to the next, and from one program to the next.

Here stands what is in force, what is on its way to take its place, and who has asked for it and is to
hear how it ended. Whether the new generations serve, `lifecycle` decides; that a new program could take
over, it shows by itself (`upgrade`). Whatever goes wrong leaves everything as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Protocol

from msgspec import Struct

import forkd
from forkd.errors import Exit, ForkdError
from forkd.ipc.control_server import Answer, failure, success
from forkd.lifecycle.events import Event, ReloadAsked
from forkd.lifecycle.server import Lifecycle, Phase
from forkd.log import log
from forkd.master.own_files import OwnFiles
from forkd.master.roster import Roster
from forkd.master.site import Site, open_site
from forkd.master.upgrade import Done, Rehearsal
from forkd.master.watches import Handover
from forkd.security import trust
from forkd.settings import config
from forkd.settings.config import Source
from forkd.systemd.passed import Passed


class Looker(Protocol):
    """Something on its way: `due` is when to look at it next, and `look` is true when it was the last time."""

    due: float

    def look(self, now: float) -> bool: ...


class Coming(Struct):
    """A reload under way: what it would serve, who waits for its end, and the log if that moves."""

    site: Site
    callers: list[Answer]
    log_fd: int | None


class Upgrade(Struct):
    """An upgrade under way: who waits for its end, and whether the new program has shown that it can take over."""

    callers: list[Answer]
    rehearsed: bool = False


class Changeover:
    """The site in force, and a reload or an upgrade under way.

    `attend` has a looker looked at, `handle` takes an event; `rehearse` tries out a new program, and `replace`
    becomes it, with the callers who are still to be answered. `begun` hears that a reload begins, and `over` that a
    reload or an upgrade has ended: which, and why it changed nothing, if so.
    """

    def __init__(
        self,
        source: Source,
        site: Site,
        passed: Passed,
        lifecycle: Lifecycle,
        roster: Roster,
        premises: OwnFiles,
        *,
        attend: Callable[[Looker], None],
        handle: Callable[[Event], None],
        rehearse: Callable[[Done], Rehearsal],
        replace: Callable[[Sequence[Answer]], None],
        begun: Callable[[], None],
        over: Callable[[str, str], None],
    ) -> None:
        self.source = source
        self.site = site
        self.passed = passed
        self.coming: Coming | None = None
        self.waiting: list[Answer] | None = None
        self.upgrading: Upgrade | None = None
        self._lifecycle = lifecycle
        self._roster = roster
        self._premises = premises
        self._attend = attend
        self._handle = handle
        self._rehearse = rehearse
        self._replace = replace
        self._begun = begun
        self._over = over

    def site_of(self, service: str) -> Site:
        """The settings that a new fork server of the service begins with."""
        coming = self.coming.site if self.coming is not None else self.site
        return coming if service in coming.listeners else self.site

    def explain(self, service: str, reason: str) -> str:
        """An application's mistake as one of the settings', with file and line."""
        return str(self.site_of(service).settings.error(f"service.{service}.app", reason))

    def reload(self, callers: list[Answer]) -> None:
        """Reads the settings again and begins new generations; calls that come meanwhile share one more reload."""
        if self.coming is not None:
            self.waiting = [*(self.waiting or []), *callers]
            return
        if self._lifecycle.quiet:
            self._begun()
        log_fd = None
        try:
            settings = self.source.read()
            trust.examine(self.source, settings, lambda line: log.say("warning", line))
            if settings.master.log.file != self.site.settings.master.log.file:
                log_fd = log.open_file(settings.master.log.file)
            self.coming = Coming(open_site(settings, self.passed, self.site), callers, log_fd)
        except ForkdError as error:
            self.refuse(callers, log_fd, str(error), error.exit_status)
            return
        self._handle(ReloadAsked(self.coming.site.plans()))

    def commit(self) -> None:
        """The new generations serve: their settings are the settings now."""
        assert self.coming is not None
        coming, self.coming = self.coming, None
        before = set(self.site.addresses())
        old, self.site = self.site, coming.site
        old.close_but(self.site)
        self.site.hand_down()
        for key in config.changes(old.settings, self.site.settings).restart:
            log.say("warning", f"reload: a change of {key} takes a restart")
        self._lifecycle.stop_timeout = self.site.settings.master.stop_timeout
        if coming.log_fd is not None:
            self._premises.lead_log(coming.log_fd)
        self._premises.set_up_log(self.site.settings.master.log)
        for name, address in self.site.addresses():
            if (name, address) not in before:
                log.tell(f"serving {name} on {address}")
        if (names := self.site.root_services()) and not old.root_services():
            as_root = (
                "as root, but with no more capabilities than the master has kept: a restart gives it all of root's"
            )
            log.say("warning", f"reload: {', '.join(names)} runs {as_root}")
        generations = {name: pool.serving.number for name, pool in self._lifecycle.pools.items() if pool.serving}
        result = {"version": forkd.__version__, "generations": generations}
        self._roster.retire(generations)
        self._attend(
            Handover(
                [each for each in self._roster.all_workers() if each.generation != generations.get(each.service)],
                monotonic(),
                partial(self.answer, coming.callers, success(result), "reload"),
            )
        )
        self.reload_once_more()

    def abandon(self, reason: str) -> None:
        """The reload came to nothing."""
        if self.coming is not None:
            coming, self.coming = self.coming, None
            coming.site.close_but(self.site)
            self.refuse(coming.callers, coming.log_fd, reason, Exit.FAILED)

    def refuse(self, callers: list[Answer], log_fd: int | None, reason: str, status: Exit) -> None:
        """Nothing has changed: tells why, and sees to those who asked meanwhile."""
        if log_fd is not None:
            os.close(log_fd)
        self.answer(callers, failure(reason, status), "reload")
        self.reload_once_more()

    def reload_once_more(self) -> None:
        """One reload for all who asked for one while the last was under way."""
        if self.waiting is not None:
            callers, self.waiting = self.waiting, None
            self.reload(callers)

    def upgrade(self, callers: list[Answer]) -> None:
        """Has a new program shown that it can take over, which it does as soon as nothing else is under way."""
        if self.upgrading is not None:
            self.upgrading.callers += callers
            return
        self.upgrading = Upgrade(callers)
        if self._lifecycle.phase in (Phase.SERVING, Phase.DRAINED):
            self._attend(self._rehearse(self.rehearsed))
        else:
            self.give_up_upgrade(f"forkd is {self._lifecycle.phase.value}")

    def rehearsed(self, version: str, reason: str) -> None:
        """The new program can take over, or there is a reason why it cannot."""
        if self.upgrading is None:  # given up meanwhile
            return
        if reason:
            self.give_up_upgrade(f"the new program does not start: {reason}")
        else:
            log.say("info", f"upgrade: forkd {version} can take over")
            self.upgrading.rehearsed = True

    def replace_when_quiet(self) -> None:
        """Lets the new program take over, if it is to; what comes after that call happens only if it cannot."""
        if self.upgrading is None or not self.upgrading.rehearsed or self.coming is not None:
            return
        try:
            self._replace(self.upgrading.callers)
        except ForkdError as error:
            self.give_up_upgrade(str(error))

    def give_up_upgrade(self, reason: str) -> None:
        """Nothing has changed, if an upgrade was under way."""
        if self.upgrading is not None:
            callers, self.upgrading = self.upgrading.callers, None
            self.answer(callers, failure(reason), "upgrade")

    def answer(self, callers: list[Answer], answer: dict[str, Any], what: str) -> None:
        """Tells everybody who asked for a reload or an upgrade (`what`) how it ended."""
        reason, _, rest = answer.get("error", "").partition("\n")
        if reason:
            log.say("error", f"{what}: nothing changed: {reason}", block=rest)
        else:
            log.say("info", f"{what}: the new generation serves")
        if self.coming is None and self._lifecycle.quiet:
            self._over(what, reason)
        for reply in callers:
            reply(answer)


def told_of_upgrade(reply: Answer) -> Answer:
    """Tells somebody who has asked for an upgrade how the reload ended that came of it."""

    def tell(answer: dict[str, Any]) -> None:
        if not answer["ok"]:
            error = f"forkd {forkd.__version__} has taken over, but the services are the old ones: {answer['error']}"
            answer = answer | {"error": error}
        reply(answer)

    return tell
