"""A site: one reading of the settings, with the open listeners of each service.

A reload opens a second site beside the first; they share every listener that both need. Then one of the
two closes what the other does not have.
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
from forkd.settings.reading import NO_IPV4_PORT
from forkd.settings.schema import Listen, ServiceSettings, Settings
from forkd.sockets.listener import Listener, open_listeners
from forkd.sockets.rpcbind.protocol import Mapping
from forkd.systemd.passed import Passed


class Site(Struct):
    """Settings, and each service's open listeners by name; if `kept`, they outlive a master that dies."""

    settings: Settings
    listeners: dict[str, list[Listener]]
    identities: dict[str, Identity | None]
    kept: bool = False

    def plans(self) -> tuple[Plan, ...]:
        """The part of the settings that the lifecycle needs."""
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
        """The port mapper's entry for each service that is to have one."""
        found = {}
        for name, service in self.settings.services.items():
            if (program := service.rpcbind) is not None:
                found[name] = Mapping(program.program, program.version, _ipv4_port(self.listeners[name]))
        return found

    def root_services(self) -> list[str]:
        """The services whose applications run as root."""
        return [name for name, who in self.identities.items() if identity.is_root(who)]

    def leavings(self) -> list[OwnedFile]:
        """The socket files that would have no listener if the master died."""
        if self.kept:
            return []
        return [each.file for listeners in self.listeners.values() for each in listeners if each.file is not None]

    def brief(
        self, service: str, generation: int, *, board: int, wake: int, log: int, leavings: Iterable[OwnedFile]
    ) -> Brief:
        """The brief of a new fork server of the service."""
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
        """Sets the time limits of its service on every listener."""
        for name, listeners in self.listeners.items():
            for listener in listeners:
                settings = self.settings.services[name]
                listener.hand_down(settings.idle_timeout, settings.write_timeout)

    def mend(self, service: str) -> None:
        """Makes the service's listeners listen again, in case one of its workers has shut them down for all."""
        for listener in self.listeners.get(service, []):
            listener.mend(self.settings.services[service].backlog)

    def close_taps(self) -> None:
        """Accepts no further clients; those in the accept queues are still to be served."""
        for listeners in self.listeners.values():
            for listener in listeners:
                listener.close_tap()

    def leave_stored(self) -> None:
        """Leaves the files of sockets that the service manager keeps: they are for the next start."""
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
    """Opens all that the settings need, sharing what `old` already has.

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
    """Refuses a service that the port mapper cannot name: version 2 of its protocol is for IPv4 only."""
    if settings.services[name].rpcbind is not None and not _ipv4_port(listeners):
        raise settings.error(f"service.{name}.rpcbind", NO_IPV4_PORT)


def _ipv4_port(listeners: list[Listener]) -> int:
    """The port of the first listener that clients can reach by IPv4; 0 if there is none."""
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
        limits=Deadlines(service.idle_timeout, service.read_timeout, service.write_timeout, service.request_timeout),
        retirement=Retirement(service.max_requests, service.max_age, service.max_memory * 1024 * 1024),
        black_box=service.black_box,
        access=service.access,
    )


def _taken(name: str, wanted: Listen, backlog: int, have: list[tuple[str, Listener]]) -> list[Listener]:
    """Takes the listeners for this entry from `have`, with the new backlog; a kernel's port keeps its service."""
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
            why += f"; this forkd already listens on {ours[0]}, and such a change needs a restart"
        raise ListenError(why, error.cause) from None


def _overlap(bound: Address, wanted: Address) -> bool:
    if bound.kind != wanted.kind:
        return False
    return bound.port == wanted.port if bound.kind == "tcp" else bound.host == wanted.host
