"""The commands `forkd start`, `stop` and `restart`: turns their options into calls and prints the outcome."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

from forkd.cli import check, launch, options, paths, running_master
from forkd.cli.launch import Launch
from forkd.errors import ControlError, UnreachableError, UsageError

quick_option = click.option("--quick", is_flag=True, help="Give workers only 2 s to end (as SIGINT does).")


@click.command()
@options.target_options
def start(**given: Any) -> int:
    """Serves as a daemon.

    Takes the same arguments as `forkd run`. Returns when every service serves, or reports why not, with the exit
    status of `forkd run`.
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
    help="Seconds to wait for it to end.  [default: no limit]",
)
def stop(file: str, control: Path | None, quick: bool, timeout: float | None) -> None:
    """Stops a running forkd and waits until it is gone.

    It accepts no new connections, and answers the requests it has started, within stop_timeout.
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

    Takes the same arguments as `forkd start`. First checks the settings and imports the applications, as
    `forkd check` does; if that fails, the running daemon stays as it is. Connections are refused in between;
    `forkd reload` and `forkd upgrade` refuse none.
    """
    launched = _prepare(given)
    check.trial(launched.settings)
    found = running_master.find(launched.control, _pidfile(launched))
    if found is not None:
        if found.detached is False:
            raise ControlError(
                f"process {found.pid} was not started by forkd start: restart it the way it was started "
                "(systemctl restart), or try forkd upgrade"
            )
        found.stop(quick=quick)
    return _start(launched)


COMMANDS: Final = (start, stop, restart)


def _prepare(given: dict[str, Any]) -> Launch:
    """Prepares what to serve, with paths that hold in any working folder."""
    if os.getpid() == 1:
        raise UsageError("this is process 1 of a container, which ends with it: use forkd run")
    source = options.source(**given)
    if source.file is not None:
        source = source._replace(file=os.path.abspath(source.file))  # noqa: PTH100  # as in paths
    return launch.prepare(source, detached=True)


def _start(launched: Launch) -> int:
    running_master.refuse(launched.control, _pidfile(launched))

    from forkd.cli import detach
    from forkd.master import master  # late, because other commands start faster without them

    outcome = detach.start(lambda teller: master.serve(*launched, teller))
    if outcome.reason:
        options.complain(outcome.reason, outcome.status)
    for line in outcome.lines:
        click.echo(line, err=True)
    if outcome.lines and launched.settings.master.log.file == "-":
        click.echo("forkd: nothing is logged from here on: a daemon needs a log file, master.log.file", err=True)
    if outcome.lines and launched.source.file is None:
        click.echo(f"forkd: to stop it: forkd stop --control {launched.control}", err=True)
    return outcome.status


def _pidfile(launched: Launch) -> Path:
    return launched.pidfile or paths.pidfile_beside(launched.control)
