"""The master: waits in one place, tells the lifecycle what happened, does what it answers.

It binds, spawns, reaps and answers the control socket; it never imports an application, never
reads a client's byte, and has one thread for ever. What to do is decided in `lifecycle`; which
process is which stands in `roster`; here it is done.
"""

from __future__ import annotations

import os
import random
import signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any, Final

import forkd
from forkd.errors import Exit
from forkd.ipc import control_server
from forkd.ipc.control_server import failure, success
from forkd.kernel import process, procfs, signals
from forkd.kernel.pidfile import Pidfile, claim
from forkd.kernel.poller import Poller
from forkd.kernel.signals import Inbox
from forkd.lifecycle.clock import MasterClock
from forkd.lifecycle.events import (
    Abandoned,
    Abort,
    Action,
    Announce,
    BeginStop,
    Committed,
    DrainAsked,
    Ended,
    EndForkServer,
    Event,
    Forgotten,
    Fork,
    Kill,
    Mend,
    Observed,
    ScaleAsked,
    Started,
    StartForkServer,
    StopAsked,
    Tell,
    TimePassed,
)
from forkd.lifecycle.pool import Pool
from forkd.lifecycle.server import Lifecycle, Phase
from forkd.log import log
from forkd.master import commands, status, upgrade
from forkd.master.commands import Command
from forkd.master.estate import FORMAT, Estate
from forkd.master.handles import WorkerHandle
from forkd.master.own_files import OwnFiles, Starter
from forkd.master.reload import Changeover, Looker, told_of_upgrade
from forkd.master.roster import Roster
from forkd.master.service_manager import ServiceManager
from forkd.master.site import Site
from forkd.master.upgrade import Rehearsal
from forkd.master.watches import StackCollection, Stacks
from forkd.security import privileges
from forkd.settings.config import Source
from forkd.settings.schema import Settings
from forkd.sockets.rpcbind.registry import Registry
from forkd.systemd import strays
from forkd.systemd.passed import Passed

_TICK: Final = 1.0  # how often the scoreboard is looked at when nobody has said anything


def serve(
    source: Source, settings: Settings, control_path: Path | None, pidfile: Path | None, starter: Starter | None = None
) -> Ended:
    """Serves `settings`, which `source` gives anew for a reload, until told to stop.

    A `starter` waits for a daemon. Gives the exit status and, where it failed, the reason.
    """
    with ExitStack() as undo:
        # First of all, so that of two with the same settings the second hears of the first, and not of its address.
        claimed = None if pidfile is None else claim(pidfile)
        if claimed is not None:
            undo.callback(claimed.remove)
        passed = Passed()
        supervision = ServiceManager(_TICK)
        site = supervision.open_site(settings, passed)
        undo.pop_all()
    jitter = random.Random(os.urandom(8))
    life = Lifecycle(site.plans(), stop_timeout=settings.master.stop_timeout, jitter=jitter)
    master = Master(source, site, passed, life, supervision, starter=starter)
    return master.run(lambda: master.open(control_path, claimed))


def resume(estate: Estate, jitter: random.Random) -> Ended:
    """Goes on where another program stood, and reloads."""
    stop_timeout = estate.site.settings.master.stop_timeout
    life = Lifecycle.resumed(estate.phase, estate.pools, stop_timeout=stop_timeout, jitter=jitter)
    passed = Passed(estate.passed)
    supervision = ServiceManager(_TICK)
    supervision.look_for_store(passed)
    master = Master(estate.source, estate.site, passed, life, supervision, estate)
    return master.run(lambda: master.take_over(estate))


class Master:
    """One running forkd; `left` is what another program has left to it."""

    def __init__(
        self,
        source: Source,
        site: Site,
        passed: Passed,
        lifecycle: Lifecycle,
        supervision: ServiceManager,
        left: Estate | None = None,
        starter: Starter | None = None,
    ) -> None:
        self.lifecycle = lifecycle
        self.supervision = supervision
        self.started = monotonic() if left is None else left.started
        self.attention = MasterClock() if left is None else left.attention
        self.wait = Poller()
        self.inbox: Inbox | None = None
        self.lookers: list[Looker] = []
        self.events: deque[Event] = deque()
        self.ended: Ended | None = None
        self.awake_by = self.next_tick = self.next_mend = self.next_report = monotonic()
        self.roster = Roster(self.wait, self.handle, lambda service, why: self.changeover.explain(service, why))
        self.premises = OwnFiles(self.roster.reopened, None if left is None else left.premises, starter)
        self.registry = Registry(self.wait)
        self.changeover = Changeover(
            source,
            site,
            passed,
            lifecycle,
            self.roster,
            self.premises,
            attend=self.lookers.append,
            handle=self.handle,
            rehearse=lambda done: Rehearsal(self.estate(), self.wait, monotonic(), done),
            replace=self.replace,
            begun=supervision.reload_begun,
            over=lambda what, failure: supervision.change_over(what, failure, self.figures),
        )

    @property
    def site(self) -> Site:
        """The settings in force, with their listeners."""
        return self.changeover.site

    @property
    def settings(self) -> Settings:
        return self.site.settings

    def run(self, begin: Callable[[], None]) -> Ended:
        """Lives until told to stop."""
        process.set_title("forkd: master")
        process.become_subreaper()
        try:
            begin()
            while self.ended is None:
                self.awake_by = self.next_due()
                self.wait.once(max(0.0, self.awake_by - monotonic()), self.clock)
                self.pass_time()
        finally:
            self.clean_up()
        return self.ended

    def open(self, control_path: Path | None, pidfile: Pidfile | None) -> None:
        """Begins to serve. The premises come before the fork servers, which remove them should the master die."""
        process.hold_signals()  # until there is an inbox; and whoever started us may have had them held, too
        self.premises.open(self.settings, control_path, pidfile, self.wait, self.obey_control)
        self.shed()
        self.listen_to_signals()
        process.unblock_signals()
        self.site.hand_down()
        self.handle(Started())

    def take_over(self, estate: Estate) -> None:
        """Goes on with what another program has left; its callers hear how the reload ends that follows."""
        callers = self.premises.resume(estate.premises, self.settings, self.wait, self.obey_control)
        self.shed()
        log.say("info", f"upgrade: forkd {forkd.__version__} has taken over from {estate.version}")
        self.listen_to_signals()
        process.unblock_signals()
        self.roster.resume(estate.roster, self.premises.log_fd)
        self.registry.want(self.site.mappings())
        self.supervision.resume(self.site)
        self.obey_signals(estate.signals)
        self.changeover.reload([told_of_upgrade(caller) for caller in callers])

    def shed(self) -> None:
        """Keeps the privileges that a master needs; root's others are left to applications only that run as root."""
        for what in privileges.shed(for_all=not self.site.root_services()):
            log.say("debug", what)

    def listen_to_signals(self) -> None:
        self.inbox = Inbox([*commands.COMMANDS, signal.SIGCHLD])
        self.wait.watch(self.inbox.fd, self.take_signals)

    # What happens.

    def clock(self) -> float:
        """The time; and if the master was to look at it long ago, that is noted first."""
        now = monotonic()
        if away := self.attention.returned(self.awake_by, now):
            log.say("warning", f"the master was stopped or starved for {away:.1f} s; nobody is ended for that")
        self.awake_by = now
        return now

    def next_due(self) -> float:
        life_due = self.lifecycle.due() + self.attention.missed
        return min(
            [self.next_tick, life_due, self.registry.due, self.supervision.due, *(each.due for each in self.lookers)]
        )

    def pass_time(self) -> None:
        """What has become due, and what the scoreboards say."""
        now = self.clock()
        for over in [each for each in self.lookers if now >= each.due and each.look(now)]:
            self.lookers.remove(over)
        if now >= self.next_tick or self.roster.woken:
            self.roster.woken = False
            self.next_tick = now + _TICK
            for service, pool in self.lifecycle.pools.items():
                self.roster.spare(service, pool.plan)
            self.look()
        if now >= self.registry.due:
            self.registry.look(now)
        if now >= self.next_mend and self.lifecycle.phase in (Phase.SERVING, Phase.DRAINED):
            self.next_mend = now + _TICK  # not at a stop, when a successor may have come
            self.premises.mend()
        if self.attention.at(now) >= self.lifecycle.due():
            self.handle(TimePassed())
        if self.supervision.on and now >= min(self.next_report, self.supervision.due):
            self.next_report = now + _TICK
            self.supervise(self.attention.at(now))
        if self.lifecycle.quiet and not self.lookers:  # else something is under way that another could not go on with
            self.changeover.replace_when_quiet()

    def supervise(self, at: float) -> None:
        """Tells the service manager how it stands, by the master's time."""
        life = self.lifecycle
        self.supervision.tick(self.figures, unserved=life.unserved(at), left=life.left(at))

    def look(self) -> None:
        """Tells the lifecycle what the scoreboards say."""
        for event in self.roster.look(self.attention.at):
            self.handle(event)

    def scale(self, asked: ScaleAsked) -> None:
        """Changes the size of a pool, by what its workers do now: the last look may be a second old."""
        self.look()
        self.handle(asked)

    def drain(self) -> None:
        """Sends the workers away, unless it is a terminal that says so whenever its window changes its size."""
        if not procfs.has_terminal():
            self.handle(DrainAsked())

    def take_signals(self) -> None:
        assert self.inbox is not None
        self.obey_signals(self.inbox.take())

    def obey_signals(self, numbers: Sequence[int]) -> None:
        asked = [number for number in numbers if number != signal.SIGCHLD]
        for number, times in signals.runs(asked):
            command = commands.COMMANDS[signal.Signals(number)]
            facts: dict[str, object] = {"signal": signal.Signals(number).name, "times": times if times > 1 else None}
            log.say("info", f"signal: {command.value}", facts)
            self.obey_signal(command, times)
        # Deaths last: a TERM for the whole process group is a stop, not a pool to be filled up again.
        if numbers:  # a full inbox has no room for a death's
            self.roster.reap()

    def obey_signal(self, command: Command, times: int) -> None:
        match command:
            case Command.STOP:
                for _ in range(min(times, 2)):  # a second one means more than the first, a third does not
                    self.handle(StopAsked())
            case Command.QUICK_STOP:
                self.handle(StopAsked(quick=True))
            case Command.DUMP_STOP:
                self.collect_stacks("", self.log_stacks_and_stop)
            case Command.RELOAD:
                self.changeover.reload([])
            case Command.REOPEN:
                self.premises.reopen_log(self.settings.master.log)
            case Command.MORE:
                self.scale(ScaleAsked(by=times))
            case Command.FEWER:
                self.scale(ScaleAsked(by=-times))
            case Command.DRAIN:
                self.drain()
            case Command.UPGRADE:
                self.changeover.upgrade([])

    def obey_control(self, command: dict[str, Any], reply: control_server.Answer) -> None:
        """A command that came over the control socket."""
        service = command.get("service", "")
        if service and service not in self.lifecycle.pools:
            reply(failure(f"there is no service {service!r}; there are {', '.join(self.lifecycle.pools)}", Exit.USAGE))
            return
        match command:
            case {"command": "status"}:
                reply(success(self.snapshot()))
            case {"command": "reload"}:
                self.changeover.reload([reply])
            case {"command": "upgrade"}:
                self.changeover.upgrade([reply])
            case {"command": "scale", "service": str(name), "size": int(size)} if 1 <= size <= 1024 and name:
                self.scale(ScaleAsked(name, size))
                reply(success({"service": name, "size": size}))
            case {"command": "stacks"}:
                self.collect_stacks(service, lambda stacks: reply(success(_stacks(stacks))))
            case _:
                reply(failure(f"forkd {forkd.__version__} does not know how to do {command}", Exit.USAGE))

    def handle(self, event: Event) -> None:
        """Every event and action passes here: this is the whole life of the server.

        An event that comes of an action waits until those before it are done, in the order decided.
        """
        self.events.append(event)
        if len(self.events) > 1:
            return
        while self.events:
            if not isinstance(self.events[0], Observed | TimePassed):
                log.say("debug", f"event: {self.events[0]}")
            for action in self.lifecycle.handle(self.events[0], self.attention.at(self.clock())):
                log.say("debug", f"action: {action}")
                self.perform(action)
            self.events.popleft()

    # What is done.

    def perform(self, action: Action) -> None:
        match action:
            case StartForkServer(service, generation):
                self.start_fork_server(service, generation)
            case EndForkServer(service, generation, kill):
                self.roster.end(service, generation, kill=kill)
            case Fork(service, generation, slot, row):
                self.roster.fork(service, generation, slot, row)
            case Tell(service, generation, slot, order):
                self.roster.tell(service, generation, slot, order)
            case Abort(service, generation, slot, reason):
                self.roster.signal(service, generation, slot, signal.SIGABRT, reason)
            case Kill(service, generation, slot, reason):
                self.roster.signal(service, generation, slot, signal.SIGKILL, reason)
            case Mend(service):
                self.site.mend(service)
            case Announce():
                self.announce()
            case BeginStop():
                self.begin_stop()
            case Committed():
                before = self.site
                self.changeover.commit()
                self.shed()
                self.supervision.keep(self.site, before)
                self.registry.want(self.site.mappings())
            case Abandoned(reason):
                self.changeover.abandon(reason)
            case Forgotten(service):
                self.roster.forget(service)
            case Ended():
                self.ended = action

    def start_fork_server(self, service: str, generation: int) -> None:
        board, wake = self.roster.board(service)
        leavings = [*self.premises.leavings(), *self.site.leavings()]
        log_fd = self.premises.log_fd
        site = self.changeover.site_of(service)
        self.roster.start(site.brief(service, generation, board=board.fd, wake=wake, log=log_fd, leavings=leavings))

    def announce(self) -> None:
        """Every service serves: says so to whoever waits for it."""
        self.roster.quiet = False
        lines = [f"serving {name} on {address}" for name, address in self.site.addresses()]
        self.premises.announce(lines, self.settings.master.log)
        self.registry.want(self.site.mappings())
        self.supervision.serving(self.site, self.figures)

    def begin_stop(self) -> None:
        self.changeover.give_up_upgrade("forkd was told to stop")
        self.roster.stopping()
        self.registry.want({})
        self.supervision.stopping(self.site)
        self.site.close_taps()

    def estate(self, callers: Sequence[control_server.Answer] = (), signals_come: Sequence[int] = ()) -> Estate:
        """What another program would have to know: whom it is to answer, and which signals it has still to obey."""
        return Estate(
            FORMAT,
            forkd.__version__,
            self.started,
            self.attention,
            self.changeover.source,
            self.site,
            self.changeover.passed.sockets,
            self.lifecycle.phase,
            self.lifecycle.pools,
            self.roster.leave(),
            self.premises.leave(callers),
            list(signals_come),
        )

    def replace(self, callers: Sequence[control_server.Answer]) -> None:
        """Becomes the new program; ForkdError if it cannot."""
        assert self.inbox is not None
        # What has come into the inbox would be lost with it; what comes from now on waits for the new program's.
        with process.signals_blocked():
            come = self.inbox.take()
            try:
                upgrade.replace(self.estate(callers, come))
            finally:
                self.obey_signals(come)

    def snapshot(self) -> dict[str, Any]:
        """The status document."""
        now = monotonic()
        services: dict[str, Any] = {}
        workers: list[dict[str, Any]] = []
        for name, settings in self.settings.services.items():
            pool = self.lifecycle.pools[name]
            handles = self.roster.workers_of(name)
            board, _ = self.roster.board(name)
            listen = [str(address) for service, address in self.site.addresses() if service == name]
            services[name] = status.service(settings.app, listen, pool, board, handles)
            services[name]["rpcbind"] = self.registry.state(name)
            workers += [status.worker(handle, _state(pool, handle), now) for handle in handles]
        master = {
            "pid": os.getpid(),
            "version": forkd.__version__,
            "phase": self.lifecycle.phase.value,
            "uptime": round(now - self.started, 3),
            "config": self.settings.file,
            "detached": self.premises.detached,
        }
        return {"master": master, "services": services, "workers": workers}

    def figures(self) -> str:
        """The status in a line."""
        return status.summary(self.snapshot()["services"])

    def collect_stacks(self, service: str, done: Callable[[Stacks], None]) -> None:
        workers = [each for each in self.roster.all_workers() if service in ("", each.service)]
        self.lookers.append(StackCollection(workers, monotonic(), done))

    def log_stacks_and_stop(self, stacks: Stacks) -> None:
        for worker, stack in stacks:
            log.say("info", "stack", worker.name(), block=stack or "(it did not answer)")
        self.handle(StopAsked(quick=True))

    # What is opened and put away.

    def clean_up(self) -> None:
        """In the reverse order of opening; also when the master fails, so that nothing stays behind."""
        self.roster.close()
        strays.end()
        self.registry.close()
        self.site.close_but(None)
        self.premises.close()
        self.supervision.close()
        process.hold_signals()  # the interpreter gives its handlers up before it ends: a TERM then would be its end
        if self.inbox is not None:
            self.inbox.close()


def _state(pool: Pool, handle: WorkerHandle) -> str:
    found = pool.worker(handle.generation, handle.slot)
    return found.state.value if found is not None else "gone"


def _stacks(stacks: Stacks) -> list[dict[str, Any]]:
    return [worker.name() | {"stack": stack} for worker, stack in stacks]
