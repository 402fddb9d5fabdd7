"""The master: waits in one place, tells the lifecycle what happened, does what it answers.

It binds, spawns, reaps and answers the control socket; it never imports an application, never
reads a client's byte, and has one thread for ever. What to do is decided in `lifecycle`; which
process is which stands in `roster`; here it is done.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final

import forkd
from forkd import config, control, log, process, signals, status, systemd
from forkd.attention import Attention
from forkd.brief import Brief, Door
from forkd.control import failure, success
from forkd.errors import Exit, ForkdError
from forkd.events import (
    Abandoned,
    Abort,
    Action,
    Announce,
    BeginStop,
    Committed,
    Departure,
    DrainAsked,
    EndForkServer,
    Event,
    Forgotten,
    Fork,
    Kill,
    Observed,
    ReloadAsked,
    ScaleAsked,
    Started,
    StartForkServer,
    StopAsked,
    Tell,
    TimePassed,
    WorkerGone,
)
from forkd.events import Exit as Ended
from forkd.handles import WorkerHandle
from forkd.handover import Handover
from forkd.lifecycle import Lifecycle, Phase
from forkd.pool import Pool
from forkd.premises import Premises
from forkd.roster import Roster
from forkd.settings import Settings
from forkd.signals import Command, Inbox
from forkd.site import EXCLUSIVE_FROM, Site, limits, open_site, retirement
from forkd.stacks import Collection, Stacks
from forkd.systemd import Passed
from forkd.wait import Wait

_TICK: Final = 1.0  # how often the scoreboard is looked at when nobody has said anything
_STATUS_EVERY: Final = 10.0
_SERVES: Final = "reload: the new generation serves"

Read = Callable[[], Settings]


@dataclass(slots=True)
class Coming:
    """A reload under way: what it would serve, who waits for its end, and the log if that moves."""

    site: Site
    callers: list[control.Reply]
    log_fd: int | None


class Master:
    """One running forkd. `read` gives the settings anew, for a reload."""

    def __init__(self, settings: Settings, read: Read, control_path: Path | None) -> None:
        self.read = read
        self.settings = settings
        self.control_path = control_path
        self.started = monotonic()
        self.passed = Passed()
        self.wait = Wait()
        self.attention = Attention()
        self.inbox: Inbox | None = None
        self.site = open_site(settings, self.passed)
        self.coming: Coming | None = None
        self.waiting: list[control.Reply] | None = None
        self.lookers: list[Collection | Handover] = []
        self.events: deque[Event] = deque()
        self.ended: Ended | None = None
        self.next_tick = self.started
        self.next_status = self.started
        self.lifecycle = Lifecycle(
            self.site.plans(), stop_timeout=settings.master.stop_timeout, jitter=random.Random(os.urandom(8))
        )
        self.roster = Roster(self.wait, self.handle)
        self.premises = Premises(self.roster.reopened)

    def run(self) -> Ended:
        """Serves until told to stop; gives the exit status and, where it failed, the reason."""
        process.set_title("forkd: master")
        process.become_subreaper()
        try:
            # Before the fork servers begin, which remove what is left should the master die.
            self.premises.open(self.settings, self.control_path, self.wait, self.obey_control)
            self.inbox = Inbox(signals.COMMANDS)
            self.wait.watch(self.inbox.fd, self.take_signals)
            self.site.hand_down()
            self.handle(Started())
            while self.ended is None:
                due = self.next_due()
                self.wait.once(max(0.0, due - monotonic()), partial(self.be_awake, due))
                self.pass_time()
        finally:
            self.clean_up()
        return self.ended

    # What happens.

    def be_awake(self, due: float) -> None:
        if away := self.attention.returned(due, monotonic()):
            log.say("warning", f"the master was stopped or starved for {away:.1f} s; nobody is ended for that")

    def next_due(self) -> float:
        life_due = self.lifecycle.due() + self.attention.missed
        return min([self.next_tick, life_due, *(each.due for each in self.lookers)])

    def pass_time(self) -> None:
        """What has become due, and what the scoreboards say."""
        now = monotonic()
        over = [each for each in self.lookers if now >= each.due and each.look(now)]
        self.lookers = [each for each in self.lookers if each not in over]
        if now >= self.next_tick or self.roster.woken:
            self.roster.woken = False
            self.next_tick = now + _TICK
            for service, pool in self.lifecycle.pools.items():
                self.roster.spare(service, pool.plan)
            self.look()
        if self.attention.at(now) >= self.lifecycle.due():
            self.handle(TimePassed())
        if now >= self.next_status and self.lifecycle.phase is Phase.SERVING:
            self.next_status = now + _STATUS_EVERY
            systemd.notify(f"STATUS={status.summary(self.snapshot()['services'])}")

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
        if not process.has_terminal():
            self.handle(DrainAsked())

    def take_signals(self) -> None:
        assert self.inbox is not None
        # Deaths last: a TERM for the whole process group is a stop, not a pool to be filled up again.
        for number in sorted(set(self.inbox.take()), key=lambda each: each == signal.SIGCHLD):
            command = signals.COMMANDS[signal.Signals(number)]
            if command is not Command.REAP:
                log.say("info", f"signal: {command.value}", {"signal": signal.Signals(number).name})
            self.obey_signal(command)

    def obey_signal(self, command: Command) -> None:
        match command:
            case Command.REAP:
                self.roster.reap()
            case Command.STOP:
                self.handle(StopAsked())
            case Command.QUICK_STOP:
                self.handle(StopAsked(quick=True))
            case Command.DUMP_STOP:
                self.collect_stacks("", self.log_stacks_and_stop)
            case Command.RELOAD:
                self.reload([])
            case Command.REOPEN:
                self.premises.reopen_log(self.settings.master.log)
            case Command.MORE:
                self.scale(ScaleAsked(by=1))
            case Command.FEWER:
                self.scale(ScaleAsked(by=-1))
            case Command.DRAIN:
                self.drain()
            case Command.UPGRADE:
                log.say("warning", "this forkd cannot replace its own program; restart it instead")

    def obey_control(self, command: dict[str, Any], reply: control.Reply) -> None:
        """A command that came over the control socket."""
        service = command.get("service", "")
        if service and service not in self.lifecycle.pools:
            reply(failure(f"there is no service {service!r}; there are {', '.join(self.lifecycle.pools)}", Exit.USAGE))
            return
        match command:
            case {"command": "status"}:
                reply(success(self.snapshot()))
            case {"command": "reload"}:
                self.reload([reply])
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
            if isinstance(self.events[0], WorkerGone) and self.events[0].departure is not Departure.LEFT:
                self.site.mend(self.events[0].service)
            for action in self.lifecycle.handle(self.events[0], self.attention.at(monotonic())):
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
            case Announce():
                self.announce()
            case BeginStop():
                self.begin_stop()
            case Committed():
                self.commit()
            case Abandoned(reason):
                self.abandon(reason)
            case Forgotten(service):
                self.roster.forget(service)
            case Ended():
                self.ended = action

    def start_fork_server(self, service: str, generation: int) -> None:
        """Starts a fork server with the settings that are on their way, where there are any for it."""
        site = self.site if self.coming is None or service not in self.coming.site.listeners else self.coming.site
        settings = site.settings.services[service]
        board, wake = self.roster.board(service)
        doors = tuple(Door(each.socket.fileno(), each.bound, each.passed) for each in site.listeners[service])
        leavings = dict.fromkeys([*self.premises.leavings(), *self.site.leavings(), *site.leavings()])
        self.roster.start(
            Brief(
                version=forkd.__version__,
                service=service,
                generation=generation,
                app=settings.app,
                path=str(settings.path),
                limits=limits(settings),
                doors=doors,
                board=board.fd,
                wake=wake,
                log=self.premises.log_fd,
                log_level=site.settings.master.log.level,
                log_format=site.settings.master.log.format,
                identity=site.identities[service],
                exclusive=settings.workers.max >= EXCLUSIVE_FROM,
                leavings=tuple(leavings),
                stop_timeout=site.settings.master.stop_timeout,
                retirement=retirement(settings),
                black_box=settings.black_box,
                fork_check=settings.fork_check,
            ),
            lambda reason: str(site.settings.error(f"service.{service}.app", reason)),
        )

    def announce(self) -> None:
        """Every service serves: says so to whoever waits for it."""
        self.roster.quiet = False
        for name, address in self.site.addresses():
            _tell_person(f"serving {name} on {address}")
        systemd.notify("READY=1", f"STATUS={status.summary(self.snapshot()['services'])}")

    def begin_stop(self) -> None:
        self.roster.stopping()
        self.site.close_taps()
        systemd.notify("STOPPING=1")

    def reload(self, callers: list[control.Reply]) -> None:
        """Reads the settings again and begins new generations; calls that come meanwhile share one more reload."""
        if self.coming is not None:
            self.waiting = [*(self.waiting or []), *callers]
            return
        if self.lifecycle.phase is Phase.SERVING:
            systemd.reloading()
        log_fd = None
        try:
            settings = self.read()
            if settings.master.log.file != self.settings.master.log.file:
                log_fd = log.open_file(settings.master.log.file)
            self.coming = Coming(open_site(settings, self.passed, self.site), callers, log_fd)
        except ForkdError as error:
            self.refuse(callers, log_fd, str(error), error.exit_status)
            return
        self.handle(ReloadAsked(self.coming.site.plans()))

    def commit(self) -> None:
        """The new generations serve: their settings are the settings now."""
        assert self.coming is not None
        coming, self.coming = self.coming, None
        before = set(self.site.addresses())
        old, self.site = self.site, coming.site
        old.close_but(self.site)
        self.site.hand_down()
        for key in config.changes(self.settings, self.site.settings).restart:
            log.say("warning", f"reload: a change of {key} takes a restart")
        self.settings = self.site.settings
        self.lifecycle.stop_timeout = self.settings.master.stop_timeout
        if coming.log_fd is not None:
            self.premises.lead_log(coming.log_fd)
        self.premises.set_up_log(self.settings.master.log)
        for name, address in self.site.addresses():
            if (name, address) not in before:
                _tell_person(f"serving {name} on {address}")
        generations = {name: pool.serving.number for name, pool in self.lifecycle.pools.items() if pool.serving}
        self.roster.retire(generations)
        self.lookers.append(
            Handover(
                [each for each in self.roster.all_workers() if each.generation != generations.get(each.service)],
                monotonic(),
                partial(self.answer, coming.callers, success({"generations": generations}), _SERVES),
            )
        )
        self.reload_once_more()

    def abandon(self, reason: str) -> None:
        """The reload came to nothing."""
        if self.coming is not None:
            coming, self.coming = self.coming, None
            coming.site.close_but(self.site)
            self.refuse(coming.callers, coming.log_fd, reason, Exit.FAILED)

    def refuse(self, callers: list[control.Reply], log_fd: int | None, reason: str, status: Exit) -> None:
        """Nothing has changed: tells why, and sees to those who asked meanwhile."""
        if log_fd is not None:
            os.close(log_fd)
        self.answer(callers, failure(reason, status), f"reload: nothing changed: {reason}")
        self.reload_once_more()

    def reload_once_more(self) -> None:
        """One reload for all who asked for one while the last was under way."""
        if self.waiting is not None:
            callers, self.waiting = self.waiting, None
            self.reload(callers)

    def answer(self, callers: list[control.Reply], answer: dict[str, Any], line: str) -> None:
        """Tells everybody who asked for a reload how it ended."""
        level = "info" if answer["ok"] else "error"
        first, _, rest = line.partition("\n")
        log.say(level, first, block=rest)
        if self.coming is None and self.lifecycle.phase is Phase.SERVING:
            systemd.notify("READY=1", f"STATUS={first}")
        for reply in callers:
            reply(answer)

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
            workers += [status.worker(handle, _state(pool, handle), now) for handle in handles]
        master = {
            "pid": os.getpid(),
            "version": forkd.__version__,
            "phase": self.lifecycle.phase.value,
            "uptime": round(now - self.started, 3),
            "config": self.settings.file,
        }
        return {"master": master, "services": services, "workers": workers}

    def collect_stacks(self, service: str, done: Callable[[Stacks], None]) -> None:
        workers = [each for each in self.roster.all_workers() if service in ("", each.service)]
        self.lookers.append(Collection(workers, monotonic(), done))

    def log_stacks_and_stop(self, stacks: Stacks) -> None:
        for worker, stack in stacks:
            log.say("info", "stack", worker.name(), block=stack or "(it did not answer)")
        self.handle(StopAsked(quick=True))

    # What is opened and put away.

    def clean_up(self) -> None:
        """In the reverse order of opening; also when the master fails, so that nothing stays behind."""
        self.roster.close()
        self.premises.close()
        self.site.close_but(None)
        if self.inbox is not None:
            self.inbox.close()


def _state(pool: Pool, handle: WorkerHandle) -> str:
    found = pool.worker(handle.generation, handle.slot)
    return found.state.value if found is not None else "gone"


def _stacks(stacks: Stacks) -> list[dict[str, Any]]:
    return [worker.name() | {"stack": stack} for worker, stack in stacks]


def _tell_person(line: str) -> None:
    with suppress(OSError, ValueError, AttributeError):
        print(line, file=sys.stderr, flush=True)
