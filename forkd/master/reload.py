"""From one reading of the settings to the next, and from one program to the next.

`Changeover` holds what is in force, what is about to replace it, and who asked for that; what comes of a request
is returned, and done to the master by the functions below. Whether the new generations serve is for `lifecycle`
to decide; a new program shows by itself that it can take over (`upgrade`). If anything goes wrong, nothing changes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any, Protocol

from msgspec import Struct

import forkd
from forkd.errors import Exit, ForkdError
from forkd.ipc.control_server import Answer, failure, success
from forkd.kernel import process
from forkd.kernel.poller import Poller
from forkd.kernel.signals import Inbox
from forkd.lifecycle.events import Event, ReloadAsked
from forkd.lifecycle.server import Lifecycle, Phase
from forkd.log import log
from forkd.master import upgrade as new_program
from forkd.master.estate import Estate
from forkd.master.own_files import OwnFiles
from forkd.master.roster import Roster
from forkd.master.service_manager import ServiceManager
from forkd.master.site import Site, open_site
from forkd.master.watches import Handover, Looker
from forkd.security import trust
from forkd.settings import config
from forkd.settings.config import Source
from forkd.sockets.rpcbind.registry import Registry
from forkd.systemd.passed import Passed


class Coming(Struct):
    """A reload under way: what it would serve, who asked for it, and the descriptor of the log if that moves."""

    site: Site
    callers: list[Answer]
    log_fd: int | None


class Upgrade(Struct):
    """An upgrade under way: who asked for it, and whether the new program has shown that it can take over."""

    callers: list[Answer]
    rehearsed: bool = False


class Settled(Struct):
    """A reload or an upgrade (`what`) has ended, and its callers are to get `answer`."""

    what: str
    callers: list[Answer]
    answer: dict[str, Any]

    @property
    def failure(self) -> str:
        """Why nothing has changed, if that is so; further lines say more."""
        return str(self.answer.get("error", ""))


class Changeover:
    """The site in force, read from `source`, and a reload or an upgrade under way.

    A reload that is asked for while another is under way follows it: once, for all callers.
    """

    def __init__(self, source: Source, site: Site, passed: Passed) -> None:
        self.source = source
        self.site = site
        self.passed = passed
        self.coming: Coming | None = None
        self._waiting: list[Answer] | None = None
        self._upgrade: Upgrade | None = None

    def site_of(self, service: str) -> Site:
        """The settings that a new fork server of the service begins with."""
        coming = self.coming.site if self.coming is not None else self.site
        return coming if service in coming.listeners else self.site

    def explain(self, service: str, reason: str) -> str:
        """A mistake in an application as one in the settings, with file and line."""
        return str(self.site_of(service).settings.error(f"service.{service}.app", reason))

    def wait(self, callers: list[Answer]) -> None:
        """Notes who asked for another reload while one is under way."""
        self._waiting = [*(self._waiting or []), *callers]

    def next_callers(self) -> list[Answer] | None:
        """Those for whom the next reload is to begin now; None if no one waits, or another is under way."""
        if self.coming is not None:
            return None
        callers, self._waiting = self._waiting, None
        return callers

    def read(self, callers: list[Answer]) -> ReloadAsked | Settled:
        """Reads the settings again and opens what they need; returns the event for the lifecycle, or why not."""
        log_fd = None
        try:
            settings = self.source.read()
            trust.examine(self.source, settings, lambda line: log.say("warning", line))
            if settings.master.log.file != self.site.settings.master.log.file:
                log_fd = log.open_file(settings.master.log.file)
            self.coming = Coming(open_site(settings, self.passed, self.site), callers, log_fd)
        except ForkdError as error:
            return _refused(callers, log_fd, str(error), error.exit_status)
        return ReloadAsked(self.coming.site.plans())

    def commit(self) -> tuple[Site, Coming]:
        """Puts the new settings in force; returns what was in force before, and the reload that has succeeded."""
        assert self.coming is not None
        coming, self.coming = self.coming, None
        old, self.site = self.site, coming.site
        old.close_but(self.site)
        self.site.hand_down()
        return old, coming

    def abandon(self, reason: str) -> Settled | None:
        """Gives up the reload under way, if there is one."""
        if self.coming is None:
            return None
        coming, self.coming = self.coming, None
        coming.site.close_but(self.site)
        return _refused(coming.callers, coming.log_fd, reason, Exit.FAILED)

    def upgrade(self, callers: list[Answer]) -> bool:
        """Notes that an upgrade is asked for; False if one is under way already, whose end these callers will hear."""
        if self._upgrade is not None:
            self._upgrade.callers += callers
            return False
        self._upgrade = Upgrade(callers)
        return True

    def rehearsed(self, version: str, reason: str) -> Settled | None:
        """Notes that the new program can take over, or a reason why it cannot."""
        if self._upgrade is None:  # given up in the meantime
            return None
        if reason:
            return self.give_up_upgrade(f"the new program does not start: {reason}")
        log.say("info", f"upgrade: forkd {version} can take over")
        self._upgrade.rehearsed = True
        return None

    @property
    def successor_callers(self) -> list[Answer] | None:
        """Who asked for an upgrade, if the new program is ready to take over and no reload is under way."""
        if self._upgrade is None or not self._upgrade.rehearsed or self.coming is not None:
            return None
        return self._upgrade.callers

    def give_up_upgrade(self, reason: str) -> Settled | None:
        """Gives up the upgrade under way, if there is one."""
        if self._upgrade is None:
            return None
        callers, self._upgrade = self._upgrade.callers, None
        return Settled("upgrade", callers, failure(reason))


class Replaceable(Protocol):
    """The master, as a reload or an upgrade sees it."""

    changeover: Changeover
    lifecycle: Lifecycle
    service_manager: ServiceManager
    roster: Roster
    own_files: OwnFiles
    registry: Registry
    poller: Poller
    inbox: Inbox | None
    lookers: list[Looker]

    def handle(self, event: Event) -> None: ...

    def obey_signals(self, numbers: Sequence[int]) -> None: ...

    def shed(self) -> None: ...

    def figures(self) -> str: ...

    def estate(self, callers: Sequence[Answer] = (), signals_come: Sequence[int] = ()) -> Estate: ...


def begin(master: Replaceable, callers: list[Answer]) -> None:
    """Begins a reload or, while another is under way, has one follow it."""
    if master.changeover.coming is not None:
        master.changeover.wait(callers)
        return
    if master.lifecycle.quiet:
        master.service_manager.reload_begun()
    match master.changeover.read(callers):
        case ReloadAsked() as event:
            master.handle(event)
        case Settled() as failed:
            settle(master, failed)


def commit(master: Replaceable) -> None:
    """Puts the settings of the new generations in force, because these now serve."""
    old, coming = master.changeover.commit()
    site, life = coming.site, master.lifecycle
    life.stop_timeout = site.settings.master.stop_timeout
    if coming.log_fd is not None:
        master.own_files.lead_log(coming.log_fd)
    master.own_files.set_up_log(site.settings.master.log)
    _report_changes(old, site)
    master.shed()
    master.service_manager.keep(site, old)
    master.registry.want(site.mappings())
    generations = {name: pool.serving.number for name, pool in life.pools.items() if pool.serving}
    master.roster.fork_servers.retire(generations)
    before = [each for each in master.roster.all_workers() if each.generation != generations.get(each.service)]
    settled = Settled("reload", coming.callers, success({"version": forkd.__version__, "generations": generations}))
    master.lookers.append(Handover(before, monotonic(), partial(settle, master, settled)))
    _begin_next(master)


def settle(master: Replaceable, settled: Settled | None) -> None:
    """Says how a reload or an upgrade has ended, if one has, and begins the reload that was asked for since."""
    if settled is None:
        return
    reason, _, rest = settled.failure.partition("\n")
    if reason:
        log.say("error", f"{settled.what}: nothing changed: {reason}", block=rest)
    else:
        log.say("info", f"{settled.what}: the new generation serves")
    if master.changeover.coming is None and master.lifecycle.quiet:
        master.service_manager.change_over(settled.what, reason, master.figures)
    for reply in settled.callers:
        reply(settled.answer)
    _begin_next(master)


def upgrade(master: Replaceable, callers: list[Answer]) -> None:
    """Makes a new program show that it can take over, which it does as soon as nothing else is under way."""
    if not master.changeover.upgrade(callers):
        return
    phase = master.lifecycle.phase
    if phase in (Phase.SERVING, Phase.DRAINED):
        done = partial(_rehearsed, master)
        master.lookers.append(new_program.Rehearsal(master.estate(), master.poller, monotonic(), done))
    else:
        settle(master, master.changeover.give_up_upgrade(f"forkd is {phase.value}"))


def replace_program(master: Replaceable) -> None:
    """Becomes the new program, if one is ready to take over; returns only if there is none, or if that fails."""
    callers = master.changeover.successor_callers
    if callers is None:
        return
    assert master.inbox is not None
    try:
        # What is in the inbox would be lost with it; what comes while signals are blocked is the new program's.
        with process.signals_blocked():
            come = master.inbox.take()
            try:
                new_program.replace(master.estate(callers, come))
            finally:
                master.obey_signals(come)
    except ForkdError as error:
        settle(master, master.changeover.give_up_upgrade(str(error)))


def _rehearsed(master: Replaceable, version: str, reason: str) -> None:
    settle(master, master.changeover.rehearsed(version, reason))


def _begin_next(master: Replaceable) -> None:
    if (callers := master.changeover.next_callers()) is not None:
        begin(master, callers)


def _report_changes(old: Site, new: Site) -> None:
    """Says what a reload has changed, or could not change, between two sites."""
    for key in config.changes(old.settings, new.settings).restart:
        log.say("warning", f"reload: a change of {key} needs a restart")
    before = set(old.addresses())
    for name, address in new.addresses():
        if (name, address) not in before:
            log.tell(f"serving {name} on {address}")
    if (names := new.root_services()) and not old.root_services():
        as_root = "as root, but with no more capabilities than the master has kept: a restart gives it all of root's"
        log.say("warning", f"reload: {', '.join(names)} runs {as_root}")


def _refused(callers: list[Answer], log_fd: int | None, reason: str, status: Exit) -> Settled:
    if log_fd is not None:
        os.close(log_fd)
    return Settled("reload", callers, failure(reason, status))


def after_upgrade(reply: Answer) -> Answer:
    """Answers a caller who asked for an upgrade, once the reload that comes of it has ended."""

    def answered(answer: dict[str, Any]) -> None:
        if not answer["ok"]:
            error = f"forkd {forkd.__version__} has taken over, but the services are the old ones: {answer['error']}"
            answer = answer | {"error": error}
        reply(answer)

    return answered
