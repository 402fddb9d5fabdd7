"""The inbox: signals become bytes in a pipe and have no other effect."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

import pytest

from forkd.kernel import process, signals
from forkd.kernel.signals import Inbox
from forkd.master import commands
from forkd.master.commands import Command
from tests.seams.test_process import in_child


def apart(work: Callable[[], None]) -> Callable[[], None]:
    """Runs a test in its own process, because signals and their handlers belong to the whole process."""

    def test() -> None:
        assert in_child(work) == 0

    test.__doc__ = work.__doc__
    return test


def raised(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@apart
def test_signals_come_in_their_order() -> None:
    inbox = Inbox([signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD])
    assert inbox.take() == []
    raised(signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    assert inbox.take() == [signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]
    assert inbox.take() == []


@apart
def test_the_inbox_can_be_waited_on() -> None:
    inbox = Inbox([signal.SIGTERM])
    assert select.select([inbox.fd], [], [], 0)[0] == []
    raised(signal.SIGTERM)
    assert select.select([inbox.fd], [], [], 5)[0] == [inbox.fd]
    inbox.take()
    assert select.select([inbox.fd], [], [], 0)[0] == []


@apart
def test_a_full_inbox_loses_no_kind_of_signal_that_was_there() -> None:
    """A pipe holds 65536 signals. More are dropped silently, and nothing blocks."""
    inbox = Inbox([signal.SIGTERM, signal.SIGHUP])
    raised(signal.SIGHUP)
    for _ in range(70_000):
        signal.raise_signal(signal.SIGTERM)
    taken = inbox.take()
    assert len(taken) == 65536
    assert set(taken) == {signal.SIGHUP, signal.SIGTERM}
    raised(signal.SIGHUP)
    assert inbox.take() == [signal.SIGHUP]


@apart
def test_a_storm_of_one_signal_is_one_run() -> None:
    term, hup = signal.SIGTERM, signal.SIGHUP
    assert list(signals.runs([])) == []
    assert list(signals.runs([term, hup, *[term] * 60_000, hup])) == [(term, 1), (hup, 1), (term, 60_000), (hup, 1)]


def test_a_signal_of_a_child_does_not_land_in_the_parents_inbox() -> None:
    inbox = Inbox([signal.SIGTERM])
    with process.signals_blocked():
        pid = os.fork()
        if pid == 0:
            signals.forget_inbox()
            os.kill(os.getpid(), signal.SIGTERM)
            process.unblock_signals()
            os._exit(7)  # it still has Python's handler, which does nothing
    os.waitpid(pid, 0)
    assert inbox.take() == []


@apart
def test_a_closed_inbox_hears_nothing() -> None:
    inbox = Inbox([signal.SIGTERM])
    inbox.close()
    raised(signal.SIGTERM)
    with pytest.raises(OSError, match="Bad file descriptor"):
        inbox.take()


@apart
def test_ignored_signals_do_nothing() -> None:
    signals.ignore(signals.IGNORED_BELOW_MASTER)
    raised(*signals.IGNORED_BELOW_MASTER)


@apart
def test_descriptors_of_an_inbox_do_not_pass_an_exec() -> None:
    inbox = Inbox([signal.SIGTERM])
    assert not os.get_inheritable(inbox.fd)
    assert not os.get_blocking(inbox.fd)


def test_every_command_has_one_signal() -> None:
    assert sorted(commands.COMMANDS.values(), key=str) == sorted(Command, key=str)


def test_what_the_master_acts_on_reaches_nobody_else_by_the_terminal() -> None:
    acted_on = set(commands.COMMANDS) - {signal.SIGTERM}
    assert acted_on <= set(signals.IGNORED_BELOW_MASTER)
