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
    MORE = "a worker more"
    FEWER = "a worker fewer"
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
    Command.STOP: "graceful stop: queued connections are served, begun requests answered; a second one is quick",
    Command.QUICK_STOP: "quick stop: workers that are not done after 2 s are killed",
    Command.DUMP_STOP: "quick stop, with every worker's Python stack in the log first",
    Command.RELOAD: "reloads, as `forkd reload` does",
    Command.REOPEN: "reopens the log file",
    Command.UPGRADE: "upgrades, as `forkd upgrade` does",
    Command.MORE: "a worker more in every service",
    Command.FEWER: "an idle worker fewer in every service",
    Command.DRAIN: "the workers leave, callers wait in the queue; HUP brings workers back (ignored on a terminal)",
}
