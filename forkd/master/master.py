"""The master: waits in one place, tells the lifecycle what happened, and does what it answers.

It binds, spawns, reaps and answers the control socket. It never imports an application, never reads a byte of a
client's, and always has one thread. `lifecycle` decides what to do, `roster` knows which process is which,
`commands` says what a signal or a caller asks for, and here it is done.
"""

from __future__ import annotations

import os
import random
import signal
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any, Final

from msgspec import Struct

import forkd
from forkd.ipc.control_server import Answer
from forkd.kernel import process
from forkd.kernel.pidfile import Pidfile, claim
from forkd.kernel.poller import Poller
from forkd.kernel.signals import Inbox
from forkd.lifecycle import events
from forkd.lifecycle.clock import MasterClock
from forkd.lifecycle.events import Action, Ended, Event, Observed, Started, TimePassed
from forkd.lifecycle.server import Lifecycle, Phase
from forkd.log import log
from forkd.master import commands, reload, status
from forkd.master.boards import Boards
from forkd.master.estate import FORMAT, Estate
from forkd.master.own_files import OwnFiles, Starter
from forkd.master.reload import Changeover, after_upgrade
from forkd.master.roster import Roster
from forkd.master.service_manager import ServiceManager
from forkd.master.site import Site
from forkd.master.watches import Looker, StackCollection, Stacks
from forkd.security import privileges
from forkd.settings.config import Source
from forkd.settings.schema import Settings
from forkd.sockets.rpcbind.registry import Registry
from forkd.systemd import strays
from forkd.systemd.passed import Passed

TICK: Final = 1.0  # how often the master looks at the scoreboards and its own files when nothing wakes it


def serve(
    source: Source, settings: Settings, control_path: Path | None, pidfile: Path | None, starter: Starter | None = None
) -> Ended:
    """Serves `settings`, which a reload reads from `source` again, until the master is told to stop.

    A `starter` waits for a daemon. Returns the exit status and, after a failure, the reason.
    """
    with ExitStack() as undo:
        # First: of two masters with the same settings, the second should meet the first, not its address.
        claimed = None if pidfile is None else claim(pidfile)
        if claimed is not None:
            undo.callback(claimed.remove)
        passed = Passed()
        service_manager = ServiceManager(TICK)
        site = service_manager.open_site(settings, passed)
        undo.pop_all()
    jitter = random.Random(os.urandom(8))
    life = Lifecycle(site.plans(), stop_timeout=settings.master.stop_timeout, jitter=jitter)
    master = Master(Changeover(source, site, passed), life, service_manager, starter=starter)
    return master.run(lambda: master.open(control_path, claimed))


class Rounds(Struct):
    """When the master's next rounds are due, and by when it should be awake, in monotonic seconds."""

    awake_by: float
    look: float
    mend: float
    report: float


class Master:
    """One running forkd; `left` is what another program has left to it."""

    def __init__(
        self,
        changeover: Changeover,
        lifecycle: Lifecycle,
        service_manager: ServiceManager,
        left: Estate | None = None,
        starter: Starter | None = None,
    ) -> None:
        now = monotonic()
        self.changeover = changeover
        self.lifecycle = lifecycle
        self.service_manager = service_manager
        self.started = now if left is None else left.started
        self.attention = MasterClock() if left is None else left.attention
        self.rounds = Rounds(now, now, now, now)
        self.poller = Poller()
        self.inbox: Inbox | None = None
        self.lookers: list[Looker] = []
        self.events: deque[Event] = deque()
        self.ended: Ended | None = None
        self.roster = Roster(self.poller, Boards(self.poller), self.handle, changeover.explain)
        self.own_files = OwnFiles(self.roster.reopened, None if left is None else left.premises, starter)
        self.registry = Registry(self.poller)

    @property
    def site(self) -> Site:
        """The settings in force, with their listeners."""
        return self.changeover.site

    @property
    def settings(self) -> Settings:
        return self.site.settings

    @property
    def services(self) -> Collection[str]:
        return self.lifecycle.pools

    def run(self, begin: Callable[[], None]) -> Ended:
        """Runs until the end; returns how that was."""
        process.set_title("forkd: master")
        process.become_subreaper()
        try:
            begin()
            while self.ended is None:
                self.rounds.awake_by = self.next_due()
                self.poller.once(max(0.0, self.rounds.awake_by - monotonic()), self.clock)
                self.pass_time()
        finally:
            self.clean_up()
        return self.ended

    def open(self, control_path: Path | None, pidfile: Pidfile | None) -> None:
        """Begins to serve. The master's own files come first, because fork servers remove them if the master dies."""
        process.hold_signals()  # until there is an inbox; the process that started the master may have held them, too
        self.own_files.open(self.settings, control_path, pidfile, self.poller, self.obey)
        self.shed()
        self.listen_to_signals()
        process.unblock_signals()
        self.site.hand_down()
        self.handle(Started())

    def take_over(self, estate: Estate) -> None:
        """Continues with what another program has left; its callers learn how the reload ends that follows."""
        callers = self.own_files.resume(estate.premises, self.settings, self.poller, self.obey)
        self.shed()
        log.say("info", f"upgrade: forkd {forkd.__version__} has taken over from {estate.version}")
        self.listen_to_signals()
        process.unblock_signals()
        self.roster.resume(estate.roster, self.own_files.log_fd)
        self.registry.want(self.site.mappings())
        self.service_manager.resume(self.site)
        self.obey_signals(estate.signals)
        self.reload([after_upgrade(caller) for caller in callers])

    def shed(self) -> None:
        """Keeps the privileges that a master needs; the others are left only to applications that run as root."""
        for what in privileges.shed(for_all=not self.site.root_services()):
            log.say("debug", what)

    def listen_to_signals(self) -> None:
        self.inbox = Inbox([*commands.COMMANDS, signal.SIGCHLD])
        self.poller.watch(self.inbox.fd, self.take_signals)

    # What happens.

    def clock(self) -> float:
        """The time. If the master should have been awake long ago, that is noted first."""
        now = monotonic()
        if away := self.attention.returned(self.rounds.awake_by, now):
            log.say("warning", f"the master was stopped or starved for {away:.1f} s; no worker is killed for it")
        self.rounds.awake_by = now
        return now

    def next_due(self) -> float:
        life_due = self.lifecycle.due() + self.attention.missed
        lookers = [each.due for each in self.lookers]
        return min([self.rounds.look, life_due, self.registry.due, self.service_manager.due, *lookers])

    def pass_time(self) -> None:
        """Does what has become due, and passes on what the scoreboards show."""
        now, boards = self.clock(), self.roster.boards
        for over in [each for each in self.lookers if now >= each.due and each.look(now)]:
            self.lookers.remove(over)
        if now >= self.rounds.look or boards.woken:
            boards.woken = False
            self.rounds.look = now + TICK
            for service, pool in self.lifecycle.pools.items():
                boards.keep_spare(service, pool.plan)
            self.look()
        if now >= self.registry.due:
            self.registry.look(now)
        if now >= self.rounds.mend and self.lifecycle.phase in (Phase.SERVING, Phase.DRAINED):
            self.rounds.mend = now + TICK  # not at a stop, when a successor may have come
            self.own_files.mend()
        if self.attention.at(now) >= self.lifecycle.due():
            self.handle(TimePassed())
        if self.service_manager.on and now >= min(self.rounds.report, self.service_manager.due):
            self.rounds.report = now + TICK
            at, life = self.attention.at(now), self.lifecycle
            self.service_manager.tick(self.figures, unserved=life.unserved(at), left=life.left(at))
        if self.lifecycle.quiet and not self.lookers:  # a new program could not continue what a looker waits for
            reload.replace_program(self)

    def look(self) -> None:
        """Tells the lifecycle what the scoreboards show."""
        for event in self.roster.look(self.attention.at):
            self.handle(event)

    def take_signals(self) -> None:
        assert self.inbox is not None
        self.obey_signals(self.inbox.take())

    def obey_signals(self, numbers: Sequence[int]) -> None:
        commands.obey_signals(self, numbers)
        # Deaths last: a TERM for the whole process group is a stop, not a pool to be filled up again.
        if numbers:  # whichever came: a full inbox has no room for a SIGCHLD
            self.roster.reap()

    def obey(self, command: dict[str, Any], reply: Answer) -> None:
        commands.obey_control(self, command, reply)

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
            case events.StartForkServer(service, generation):
                self.start_fork_server(service, generation)
            case events.EndForkServer(service, generation, kill):
                self.roster.fork_servers.end(service, generation, kill=kill)
            case events.Fork(service, generation, slot, row):
                self.roster.fork(service, generation, slot, row)
            case events.Tell(service, generation, slot, order):
                self.roster.tell(service, generation, slot, order)
            case events.Abort(service, generation, slot, reason):
                self.roster.signal(service, generation, slot, signal.SIGABRT, reason)
            case events.Kill(service, generation, slot, reason):
                self.roster.signal(service, generation, slot, signal.SIGKILL, reason)
            case events.Mend(service):
                self.site.mend(service)
            case events.Announce():
                self.announce()
            case events.BeginStop():
                self.begin_stop()
            case events.Committed():
                reload.commit(self)
            case events.Abandoned(reason):
                reload.settle(self, self.changeover.abandon(reason))
            case events.Forgotten(service):
                self.roster.boards.forget(service)
            case Ended():
                self.ended = action

    def start_fork_server(self, service: str, generation: int) -> None:
        board, wake = self.roster.boards.open(service)
        leavings = [*self.own_files.leavings(), *self.site.leavings()]
        site, log_fd = self.changeover.site_of(service), self.own_files.log_fd
        brief = site.brief(service, generation, board=board.fd, wake=wake, log=log_fd, leavings=leavings)
        self.roster.fork_servers.start(brief)

    def announce(self) -> None:
        """Says that every service serves."""
        self.roster.fork_servers.quiet = False
        lines = [f"serving {name} on {address}" for name, address in self.site.addresses()]
        self.own_files.announce(lines, self.settings.master.log)
        self.registry.want(self.site.mappings())
        self.service_manager.serving(self.site, self.figures)

    def begin_stop(self) -> None:
        reload.settle(self, self.changeover.give_up_upgrade("forkd is stopping"))
        self.roster.boards.stopping()
        self.roster.fork_servers.quiet = True
        self.registry.want({})
        self.service_manager.stopping(self.site)
        self.site.close_taps()

    def reload(self, callers: list[Answer]) -> None:
        reload.begin(self, callers)

    def upgrade(self, callers: list[Answer]) -> None:
        reload.upgrade(self, callers)

    def estate(self, callers: Sequence[Answer] = (), signals_come: Sequence[int] = ()) -> Estate:
        """What another program needs to continue, with the callers to answer and the signals to obey."""
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
            self.own_files.leave(callers),
            list(signals_come),
        )

    def reopen_log(self) -> None:
        self.own_files.reopen_log(self.settings.master.log)

    def collect_stacks(self, service: str, done: Callable[[Stacks], None]) -> None:
        """Collects the Python stacks of the workers of a service, or of all if it is empty."""
        workers = [each for each in self.roster.all_workers() if service in ("", each.service)]
        self.lookers.append(StackCollection(workers, monotonic(), done))

    def snapshot(self) -> dict[str, Any]:
        """The status document."""
        detached = self.own_files.detached
        return status.snapshot(
            self.site, self.lifecycle, self.roster, self.registry, started=self.started, detached=detached
        )

    def figures(self) -> str:
        """The status in a line."""
        return status.summary(self.snapshot()["services"])

    def clean_up(self) -> None:
        """Closes all in the reverse order of opening, even if the master fails, so that nothing stays behind."""
        self.roster.close()
        strays.end()
        self.registry.close()
        self.site.close_but(None)
        self.own_files.close()
        self.service_manager.close()
        process.hold_signals()  # the interpreter resets its handlers before it ends: a TERM would then kill it
        if self.inbox is not None:
            self.inbox.close()
