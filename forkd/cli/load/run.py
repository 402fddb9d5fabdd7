"""`forkd load`: a load test of any TCP service, from the first connection to the verdict.

One process per share of the plan does the work (`loop`) and counts in memory shared with this process, which watches,
shows the figures and reports at the end (`report`, `chart`). It forks before anything starts a thread.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from forkd.cli.load import chart, report
from forkd.cli.load.link import Target
from forkd.cli.load.loop import ClientLoop
from forkd.cli.load.plan import LoadPlan, Share, shares
from forkd.cli.load.tally import BYTES, Tally, total
from forkd.errors import Exit, ForkdError, UsageError
from forkd.kernel.address import Address
from forkd.sockets import dial, explain

INTERRUPTED: Final = 128 + signal.SIGINT
"""The exit status after Ctrl-C, as a shell reports it for a program that SIGINT ended."""

# Seconds between two samples, and how many of them to keep of a test whose length is known.
_STEP: Final = 0.25
_MOST_MOMENTS: Final = 240
_SPARE_DESCRIPTORS: Final = 16
_STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a test produces besides the table: files, and limits beyond which it fails."""

    json: str | None = None  # a file; "-" for standard output, in place of the table
    plot: str | None = None
    max_errors: int | None = None
    max_p99: float | None = None


def run(plan: LoadPlan, address: Address, options: LoadOptions) -> int:
    """Runs the whole test and prints its figures. Returns the exit status; raises ForkdError if it failed."""
    if options.max_p99 is not None and not options.max_p99 > 0:
        raise UsageError(f"--max-p99 {options.max_p99:g}: must be a number of seconds above 0")
    if options.plot is not None:
        chart.require()
    for path in (options.json, options.plot):
        if path is not None and path != "-":
            _write(path, b"", "ab")  # so that a long test does not end without its file
    _raise_descriptor_limit(plan)
    target = _reach(plan, address)
    with Clients(plan, target) as clients:
        timeline = _watch(clients, plan, address)
    tally = total(clients.tallies)
    connecting = None
    if tally["errno"]:
        failure = OSError(tally["errno"], os.strerror(tally["errno"]))
        connecting = explain.explain(failure, address, timeout=plan.connect_timeout)
        if not tally["connected"]:
            raise connecting
    document = report.document(plan, address, tally, timeline, interrupted=clients.interrupted)
    document["connect_failure"] = connecting and str(connecting)
    complaints = verdict(document, options)
    document["passed"] = not complaints
    _report(document, options)
    if clients.crashed:
        complaints.insert(0, f"{clients.crashed} of {plan.workers} client processes crashed; their last figures count")
    if complaints:
        raise ForkdError("; ".join(complaints))
    return INTERRUPTED if clients.interrupted else Exit.DONE


def verdict(document: dict[str, Any], options: LoadOptions) -> list[str]:
    """Returns what is wrong with the outcome, by the limits that were set."""
    complaints = []
    failed = sum(document["failures"].values())
    p99 = document["latency"]["p99"]
    if not document["requests"] and failed:
        complaints.append(f"no request was answered; {report.failures(document)}")
    if options.max_errors is not None and failed > options.max_errors:
        complaints.append(f"{failed} failures are more than --max-errors {options.max_errors}")
    if options.max_p99 is not None and p99 is not None and p99 > options.max_p99:
        complaints.append(f"p99 of {p99:g} s is more than --max-p99 {options.max_p99:g}")
    return complaints


class Clients:
    """The processes that run a plan's shares, for the length of a `with` block; all are gone after it."""

    def __init__(self, plan: LoadPlan, target: Target) -> None:
        self.interrupted = False
        self.crashed = 0
        self._plan = plan
        self._target = target
        self._pids: list[int] = []
        memory = memoryview(mmap.mmap(-1, plan.workers * BYTES))
        self.tallies = [Tally(memory[at : at + BYTES]) for at in range(0, len(memory), BYTES)]

    def __enter__(self) -> Clients:
        # `held` stays open while a client lives, our end of `leash` while we do.
        self._alive, held = os.pipe()
        leash, self._leash = os.pipe()
        self._signals, noted = os.pipe()
        os.set_blocking(noted, False)
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            for share, tally in zip(shares(self._plan), self.tallies, strict=True):
                pid = os.fork()
                if not pid:
                    for fd in (self._alive, self._leash, self._signals, noted):
                        os.close(fd)
                    _be_client(self._plan, share, self._target, tally, leash)
                self._pids.append(pid)
            os.close(held)
            os.close(leash)
            self._noted = noted
            self._before = [(number, signal.signal(number, _note)) for number in _STOPPING]
            self._wakeup = signal.set_wakeup_fd(noted, warn_on_full_buffer=False)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        return self

    def wait(self, seconds: float) -> bool:
        """Waits at most this many seconds. Returns True if all clients are done."""
        ready, _, _ = select.select((self._alive, self._signals), (), (), max(0.0, seconds))
        if self._signals in ready:
            os.read(self._signals, 512)
            self.interrupted = True
            self.stop()
        return self._alive in ready

    def stop(self) -> None:
        """Ends all clients at once."""
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.crashed = sum(os.waitpid(pid, 0)[1] != 0 for pid in self._pids)
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before:
            signal.signal(number, handler)
        for fd in (self._alive, self._signals, self._noted):
            os.close(fd)


def _note(number: int, frame: object) -> None:
    """Does nothing: the byte in the wakeup pipe is the message."""


def _be_client(plan: LoadPlan, share: Share, target: Target, tally: Tally, leash: int) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first process decides
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        gc.disable()  # the loop creates no cycles, and a collection would show in the figures
        with contextlib.suppress(OSError):
            # By default timers run up to 50 us late to save power: prctl(2), PR_SET_TIMERSLACK.
            Path("/proc/self/timerslack_ns").write_text("1")
        ClientLoop(plan, share, target, tally, leash).run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _reach(plan: LoadPlan, address: Address) -> Target:
    """Returns the address that answers, of all that the name may have. Raises the same errors as `forkd call`."""
    with dial.connect(address, timeout=plan.connect_timeout) as sock:
        # The name that a unix socket reports may be out of date, because its file may have been renamed.
        return Target(sock.family, dial.unix_path(address) if address.kind == "unix" else sock.getpeername())


def _watch(clients: Clients, plan: LoadPlan, address: Address) -> list[report.Moment]:
    """Samples the figures until all clients are done, and shows them on a terminal."""
    apart = max(_STEP, (plan.limit or 0) / _MOST_MOMENTS)
    timeline: list[report.Moment] = []
    with report.live(plan, address) as show:
        following = time.monotonic()
        while not clients.wait(following - time.monotonic()):
            if (now := time.monotonic()) < following:
                continue  # a signal
            following = now + _STEP
            moment = _moment(clients.tallies)
            if moment.seconds >= (timeline[-1].seconds if timeline else 0) + apart:
                timeline.append(moment)
            show(clients.tallies)
    return [*timeline, _moment(clients.tallies)]


def _moment(tallies: Sequence[Tally]) -> report.Moment:
    answered, failed = sum(tally["answered"] for tally in tallies), sum(tally.failed for tally in tallies)
    return report.Moment(max(tally.seconds for tally in tallies), answered, failed)


def _report(document: dict[str, Any], options: LoadOptions) -> None:
    if options.json != "-":
        report.show(document)
    if options.json is not None:
        text = report.text(document)
        if options.json == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            _write(options.json, text.encode(), "wb")
    if options.plot is not None:
        _write(options.plot, chart.drawn(document), "wb")


def _write(path: str, content: bytes, mode: Literal["ab", "wb"]) -> None:
    try:
        with Path(path).open(mode) as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; name another file") from None


def _raise_descriptor_limit(plan: LoadPlan) -> None:
    """Raises the limit so that each process has a descriptor per connection, as far as getrlimit(2) allows."""
    wanted = -(-plan.connections // plan.workers) + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise UsageError(
            f"--connections {plan.connections}: a process may open {hard} files here; "
            "raise that limit (ulimit -Hn) or use more --workers"
        )
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
