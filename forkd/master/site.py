"""What is served by one reading of the settings: each service with its open listeners.

A reload opens a second site beside the first, sharing every listener that both want; then one of
the two is cleared of what the other does not have.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

import forkd
from forkd.errors import ForkdError, ListenError
from forkd.ipc.brief import FORMAT, Brief, Door, Legacy, LogBrief, Retirement, WorkerBrief
from forkd.ipc.deadlines import Deadlines
from forkd.kernel.accounts import Identity
from forkd.kernel.address import Address
from forkd.kernel.owned_file import OwnedFile
from forkd.lifecycle.events import Plan
from forkd.security import identity
from forkd.settings.schema import NO_IPV4, Listen, ServiceSettings, Settings
from forkd.sockets.listener import Listener, open_listeners
from forkd.sockets.rpcbind.protocol import Mapping
from forkd.systemd.passed import Passed

EXCLUSIVE_FROM = 17
"""From so many workers on, a herd of them woken for one connection costs more than an uneven share."""


class Site(Struct):
    """Settings, and each service's open listeners by name; `kept` ones are left to the next master when ours dies."""

    settings: Settings
    listeners: dict[str, list[Listener]]
    identities: dict[str, Identity | None]
    kept: bool = False

    def plans(self) -> tuple[Plan, ...]:
        """What the lifecycle has to know of the settings."""
        return tuple(
            Plan(
                name,
                service.workers.min,
                service.workers.max,
                service.workers.spare,
                service.boot_timeout,
                service.request_timeout,
                service.drain_timeout,
            )
            for name, service in self.settings.services.items()
        )

    def addresses(self) -> list[tuple[str, Address]]:
        """Each service's name and where it listens, in the settings' order."""
        return [(name, listener.bound) for name, listeners in self.listeners.items() for listener in listeners]

    def mappings(self) -> dict[str, Mapping]:
        """What the port mapper is to know of each service, if anything."""
        found = {}
        for name, service in self.settings.services.items():
            if (told := service.rpcbind) is not None:
                found[name] = Mapping(told.program, told.version, _ipv4_port(self.listeners[name]))
        return found

    def root_services(self) -> list[str]:
        """The services whose applications run as root."""
        return [name for name, who in self.identities.items() if identity.is_root(who)]

    def leavings(self) -> list[OwnedFile]:
        """The socket files that nobody would listen on if the master died."""
        if self.kept:
            return []
        return [each.file for listeners in self.listeners.values() for each in listeners if each.file is not None]

    def brief(
        self, service: str, generation: int, *, board: int, wake: int, log: int, leavings: Iterable[OwnedFile]
    ) -> Brief:
        """What a new fork server of the service is told."""
        master = self.settings.master
        return brief_of(
            self.settings,
            service,
            generation,
            who=self.identities[service],
            doors=[Door(each.socket.fileno(), each.bound, each.passed) for each in self.listeners[service]],
            board=board,
            wake=wake,
            log=LogBrief(log, master.log.level, master.log.format),
            leavings=[*leavings, *self.leavings()],
        )

    def hand_down(self) -> None:
        """Gives every listener the time limits of its service."""
        for name, listeners in self.listeners.items():
            for listener in listeners:
                settings = self.settings.services[name]
                listener.hand_down(settings.idle_timeout, settings.write_timeout)

    def mend(self, service: str) -> None:
        """Has the service's listeners listen again, if one of its workers has shut them down for everybody."""
        for listener in self.listeners.get(service, []):
            listener.mend(self.settings.services[service].backlog)

    def close_taps(self) -> None:
        """Lets nobody else in; what waits in the queues is still to be served."""
        for listeners in self.listeners.values():
            for listener in listeners:
                listener.close_tap()

    def leave_stored(self) -> None:
        """Leaves the files of sockets that the service manager keeps where they are: they are for the next start."""
        for listeners in self.listeners.values():
            for listener in listeners:
                if listener.stored:
                    listener.file = None

    def close_but(self, kept: Site | None) -> None:
        """Closes the listeners that `kept` does not share."""
        shared = set() if kept is None else {id(each) for found in kept.listeners.values() for each in found}
        for listeners in self.listeners.values():
            for listener in listeners:
                if id(listener) not in shared:
                    listener.close()


def open_site(settings: Settings, passed: Passed, old: Site | None = None) -> Site:
    """Opens all that the settings ask for, taking from `old` what it has already.

    Raises ListenError, ConfigError, or ForkdError for an unknown user, and then leaves `old` as it was.
    """
    have = [] if old is None else [(name, each) for name, found in old.listeners.items() for each in found]
    site = Site(settings, {}, {}, passed.stored.works)
    try:
        for name, service in settings.services.items():
            site.identities[name] = identity.runs_as(settings, name)
            opened = site.listeners[name] = []
            for wanted in service.listen:
                opened += _taken(name, wanted, service.backlog, have) or _opened(site, name, wanted, passed, old)
            _check_rpcbind(settings, name, opened)
    except ForkdError:
        if old is None:
            site.leave_stored()
        site.close_but(old)
        raise
    return site


def _check_rpcbind(settings: Settings, name: str, listeners: list[Listener]) -> None:
    """Refuses to tell the port mapper of a service that it has no word for: version 2 of its protocol is for IPv4."""
    if settings.services[name].rpcbind is not None and not _ipv4_port(listeners):
        raise settings.error(f"service.{name}.rpcbind", NO_IPV4)


def _ipv4_port(listeners: list[Listener]) -> int:
    """The port of the first listener that clients reach by IPv4, 0 if there is none."""
    return next((each.bound.port for each in listeners if each.takes_ipv4()), 0)


def brief_of(
    settings: Settings,
    name: str,
    generation: int,
    *,
    who: Identity | None,
    board: int,
    wake: int,
    log: LogBrief,
    doors: Iterable[Door] = (),
    leavings: Iterable[OwnedFile] = (),
) -> Brief:
    """The brief of a service's fork server, by its settings and by what the master has opened."""
    service = settings.services[name]
    return Brief(
        format=FORMAT,
        version=forkd.__version__,
        service=name,
        generation=generation,
        app=service.app,
        path=str(service.path),
        identity=who,
        fork_check=service.fork_check,
        doors=tuple(doors),
        board=board,
        wake=wake,
        log=log,
        worker=_worker_brief(service),
        legacy=Legacy(tuple(dict.fromkeys(leavings)), settings.master.stop_timeout),
    )


def _worker_brief(service: ServiceSettings) -> WorkerBrief:
    return WorkerBrief(
        kind=service.worker,
        threads=service.threads,
        exclusive=service.workers.max >= EXCLUSIVE_FROM,
        limits=Deadlines(service.idle_timeout, service.read_timeout, service.write_timeout, service.request_timeout),
        retirement=Retirement(service.max_requests, service.max_age, service.max_memory * 1024 * 1024),
        black_box=service.black_box,
        access=service.access,
    )


def _taken(name: str, wanted: Listen, backlog: int, have: list[tuple[str, Listener]]) -> list[Listener]:
    """What `have` holds for this entry, with the new backlog; a kernel-chosen port stays with its service."""
    fixed = wanted.address.port != 0 or wanted.address.kind != "tcp"
    found = [each for owner, each in have if each.wanted == wanted and (owner == name or fixed)]
    if not fixed:
        count = len({each.socket.family for each in found})
        found = found[:count]
    have[:] = [(owner, each) for owner, each in have if not any(each is one for one in found)]
    for listener in found:
        listener.socket.listen(backlog)
    return found


def _opened(site: Site, name: str, wanted: Listen, passed: Passed, old: Site | None) -> list[Listener]:
    try:
        return open_listeners(wanted, site.settings.services[name].backlog, passed, name)
    except ListenError as error:
        why = f"service {name}: {error}"
        ours = [each for _, each in old.addresses() if _overlap(each, wanted.address)] if old is not None else []
        if ours:
            why += f"; it is this forkd that listens on {ours[0]} already, and such a change takes a restart"
        raise ListenError(why, error.cause) from None


def _overlap(bound: Address, wanted: Address) -> bool:
    if bound.kind != wanted.kind:
        return False
    return bound.port == wanted.port if bound.kind == "tcp" else bound.host == wanted.host
