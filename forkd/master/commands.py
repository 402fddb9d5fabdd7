"""What a signal asks of the master."""

from __future__ import annotations

import signal
from enum import Enum
from typing import Final


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

# What a person is told of each, in the README and the manual.
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
