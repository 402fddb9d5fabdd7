"""Commands, by signal and over the control socket: what each asks of the master."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Any, Final, Protocol

import forkd
from forkd.errors import Exit
from forkd.ipc.control_server import Answer, failure, success
from forkd.kernel import procfs, signals
from forkd.lifecycle.events import DrainAsked, Event, ScaleAsked, StopAsked
from forkd.log import log
from forkd.master.watches import Stacks
from forkd.settings.schema import MAX_WORKERS


class Command(Enum):
    """What a signal asks of the master."""

    STOP = "stop"
    QUICK_STOP = "quick stop"
    DUMP_STOP = "quick stop with stacks"
    RELOAD = "reload"
    REOPEN = "reopen logs"
    UPGRADE = "upgrade"
    MORE = "add a worker"
    FEWER = "remove a worker"
    DRAIN = "drain"


COMMANDS: Final = {
    signal.SIGTERM: Command.STOP,
    signal.SIGINT: Command.QUICK_STOP,
    signal.SIGQUIT: Command.DUMP_STOP,
    signal.SIGHUP: Command.RELOAD,
    signal.SIGUSR1: Command.REOPEN,
    signal.SIGUSR2: Command.UPGRADE,
    signal.SIGTTIN: Command.MORE,
    signal.SIGTTOU: Command.FEWER,
    signal.SIGWINCH: Command.DRAIN,
}

# For the README and the manual.
MEANINGS: Final = {
    Command.STOP: "graceful stop: queued connections are served, begun requests answered; a second TERM makes it quick",
    Command.QUICK_STOP: "quick stop: workers that are still busy after 2 s are killed",
    Command.DUMP_STOP: "quick stop, after logging every worker's Python stack",
    Command.RELOAD: "reload, as `forkd reload` does",
    Command.REOPEN: "reopen the log file",
    Command.UPGRADE: "upgrade, as `forkd upgrade` does",
    Command.MORE: "add one worker to every service",
    Command.FEWER: "remove one idle worker from every service",
    Command.DRAIN: "drain: workers leave, callers wait in the queue; HUP starts workers again (ignored on a terminal)",
}


class Commandable(Protocol):
    """The master, as commands see it."""

    @property
    def services(self) -> Collection[str]: ...

    def handle(self, event: Event) -> None: ...

    def look(self) -> None: ...

    def reload(self, callers: list[Answer]) -> None: ...

    def upgrade(self, callers: list[Answer]) -> None: ...

    def reopen_log(self) -> None: ...

    def snapshot(self) -> dict[str, Any]: ...

    def collect_stacks(self, service: str, done: Callable[[Stacks], None]) -> None: ...


def obey_signals(master: Commandable, numbers: Sequence[int]) -> None:
    """Obeys signals in the order in which they came; a death (SIGCHLD) is no command."""
    asked = [number for number in numbers if number != signal.SIGCHLD]
    for number, times in signals.runs(asked):
        command = COMMANDS[signal.Signals(number)]
        facts: dict[str, object] = {"signal": signal.Signals(number).name, "times": times if times > 1 else None}
        log.say("info", f"signal: {command.value}", facts)
        _obey_signal(master, command, times)


def obey_control(master: Commandable, command: dict[str, Any], reply: Answer) -> None:
    """Obeys a command from the control socket; the reply may come later."""
    service = command.get("service", "")
    if service and service not in master.services:
        reply(failure(f"there is no service {service!r}; there are {', '.join(master.services)}", Exit.USAGE))
        return
    match command:
        case {"command": "status"}:
            reply(success(master.snapshot()))
        case {"command": "reload"}:
            master.reload([reply])
        case {"command": "upgrade"}:
            master.upgrade([reply])
        case {"command": "scale", "service": str(name), "size": int(size)} if 1 <= size <= MAX_WORKERS and name:
            _scale(master, ScaleAsked(name, size))
            reply(success({"service": name, "size": size}))
        case {"command": "stacks"}:
            master.collect_stacks(service, lambda stacks: reply(success(_as_document(stacks))))
        case _:
            reply(failure(f"forkd {forkd.__version__} does not know the command {command}", Exit.USAGE))


def _obey_signal(master: Commandable, command: Command, times: int) -> None:
    match command:
        case Command.STOP:
            for _ in range(min(times, 2)):  # a second one means more than the first, a third does not
                master.handle(StopAsked())
        case Command.QUICK_STOP:
            master.handle(StopAsked(quick=True))
        case Command.DUMP_STOP:
            master.collect_stacks("", lambda stacks: _log_and_stop(master, stacks))
        case Command.RELOAD:
            master.reload([])
        case Command.REOPEN:
            master.reopen_log()
        case Command.MORE:
            _scale(master, ScaleAsked(by=times))
        case Command.FEWER:
            _scale(master, ScaleAsked(by=-times))
        case Command.DRAIN:
            if not procfs.has_terminal():  # a terminal sends this signal whenever its window changes its size
                master.handle(DrainAsked())
        case Command.UPGRADE:
            master.upgrade([])


def _scale(master: Commandable, asked: ScaleAsked) -> None:
    master.look()  # the last look may be a second old, and who is idle matters now
    master.handle(asked)


def _log_and_stop(master: Commandable, stacks: Stacks) -> None:
    for worker, stack in stacks:
        log.say("info", "stack", worker.name(), block=stack or "(it did not answer)")
    master.handle(StopAsked(quick=True))


def _as_document(stacks: Stacks) -> list[dict[str, Any]]:
    return [worker.name() | {"stack": stack} for worker, stack in stacks]
