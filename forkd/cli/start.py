"""The words of `forkd start`, `stop` and `restart`: their options to calls; what becomes of them is told in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

from forkd.cli import check, launch, options, paths, running_master
from forkd.cli.launch import Launch
from forkd.errors import ControlError, UnreachableError, UsageError

quick_option = click.option("--quick", is_flag=True, help="Gives workers 2 s to end, and no more (as SIGINT does).")


@click.command()
@options.target_options
def start(**given: Any) -> int:
    """Serves as a daemon.

    Takes what `forkd run` takes. Ends when every service serves, or with the reason why not and the exit status
    that `forkd run` would have had.
    """
    return _start(_prepare(given))


@click.command()
@options.control_option
@quick_option
@click.option(
    "--timeout",
    type=float,
    callback=options.seconds,
    metavar="S",
    help="Seconds to wait for its end.  [default: for ever]",
)
def stop(file: str, control: Path | None, quick: bool, timeout: float | None) -> None:
    """Stops a running forkd, and ends when it is gone.

    No new callers are let in; requests that have begun are answered, for as long as stop_timeout lets them.
    """
    control, pidfile = options.premises(file, control)
    found = running_master.find(control, pidfile)
    if found is None:
        raise UnreachableError(f"no forkd is running with the control socket {control} or the pid file {pidfile}")
    found.stop(quick=quick, timeout=timeout)


@click.command()
@options.target_options
@quick_option
def restart(quick: bool, **given: Any) -> int:
    """Stops the daemon, if it runs, and starts it.

    Takes what `forkd start` takes. First the settings are checked and the applications imported, as by `forkd check`:
    what cannot be served leaves the running daemon as it is. Callers are refused in between, as they are not
    by `forkd reload` and `forkd upgrade`.
    """
    launched = _prepare(given)
    check.trial(launched.settings)
    found = running_master.find(launched.control, _pidfile(launched))
    if found is not None:
        if found.detached is False:
            raise ControlError(
                f"process {found.pid} was not started by forkd start: restart it where it was started "
                "(systemctl restart), or try forkd upgrade"
            )
        found.stop(quick=quick)
    return _start(launched)


COMMANDS: Final = (start, stop, restart)


def _prepare(given: dict[str, Any]) -> Launch:
    """What is to be served, in words that hold in any working folder."""
    if os.getpid() == 1:
        raise UsageError("a container ends with its process 1, which is this one: use forkd run")
    source = options.source(**given)
    if source.file is not None:
        source = source._replace(file=os.path.abspath(source.file))  # noqa: PTH100  # as in rundir
    return launch.prepare(source, detached=True)


def _start(launched: Launch) -> int:
    running_master.refuse(launched.control, _pidfile(launched))

    from forkd.cli import detach
    from forkd.master import master  # the other commands do without them, and start faster

    outcome = detach.start(lambda teller: master.serve(*launched, teller))
    if outcome.reason:
        options.complain(outcome.reason, outcome.status)
    for line in outcome.lines:
        click.echo(line, err=True)
    if outcome.lines and launched.settings.master.log.file == "-":
        click.echo("forkd: from here on nothing is logged: a daemon needs a file for that, master.log.file", err=True)
    if outcome.lines and launched.source.file is None:
        click.echo(f"forkd: to be stopped by: forkd stop --control {launched.control}", err=True)
    return outcome.status


def _pidfile(launched: Launch) -> Path:
    return launched.pidfile or paths.pidfile_beside(launched.control)
