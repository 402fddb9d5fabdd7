"""Options that several commands share, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click

from forkd.cli import paths
from forkd.errors import ConfigError, Exit, ForkdError, UsageError
from forkd.ipc import control_client
from forkd.ipc.worker_kinds import KINDS
from forkd.log import log
from forkd.settings import config
from forkd.settings.config import Source
from forkd.settings.schema import MAX_SECONDS

DEFAULT_FILE: Final = "/etc/forkd.toml"
CORES: Final = len(os.sched_getaffinity(0))

# A path, so that shells complete it. Opening it will show whether it can be read, with its own exit status.
FILE: Final = click.Path(readable=False)

config_option = click.option(
    "-c",
    "--config",
    "file",
    type=FILE,
    default=DEFAULT_FILE,
    show_default=True,
    metavar="FILE",
    help="The settings file.",
)


insecure_option = click.option(
    "--insecure",
    is_flag=True,
    help="As root, serve even files that users other than root and the service's own could change.",
)


def control_option(command: Any) -> Any:
    """Adds the options by which a command finds a running forkd."""
    path = click.Path(path_type=Path, readable=False)
    command = click.option("--control", type=path, metavar="PATH", help="The control socket, instead of the file's.")(
        command
    )
    return config_option(command)


def premises(file: str, control: Path | None) -> tuple[Path, Path]:
    """Returns the control socket and the pid file of a running forkd, from the values of `control_option`.

    Mistakes that its file has by now do not matter, as long as the socket can be found.
    """
    pidfile = None
    if control is None:
        try:
            settings = config.load(file, cores=CORES)
        except ConfigError as error:
            control = paths.last_known(Path(file))
            if not os.path.exists(control):  # noqa: PTH110  # False, not an error, if the folder is closed to us
                raise _with_a_way_out(error, file) from None
        else:
            control, pidfile = paths.control_path(settings), settings.master.pidfile
    return control, pidfile or paths.pidfile_beside(control)


def _with_a_way_out(error: ConfigError, file: str) -> ConfigError:
    if os.path.exists(file):  # noqa: PTH110
        return error
    other = "name the running forkd's file with -c, or its control socket with --control"
    return ConfigError([each._replace(what=f"{each.what}; {other}") for each in error.problems])


def target_options(command: Any) -> Any:
    """Adds the arguments that say what to serve; `source` turns them into one value."""
    for each in (
        insecure_option,
        click.option(
            "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set any key of the service; repeatable."
        ),
        click.option("--name", metavar="NAME", help="Name of the service."),
        click.option(
            "--worker",
            metavar="KIND",
            shell_complete=one_of(*KINDS),
            help=f"Kind of worker: {' or '.join(KINDS)}.",
        ),
        click.option("--workers", type=int, metavar="N", help="Number of workers."),
        click.option("--listen", multiple=True, metavar="ADDRESS", help="Address to listen on; repeatable."),
        click.argument("target", required=False, type=FILE),
    ):
        command = each(command)
    return command


def source(
    target: str | None,
    listen: tuple[str, ...],
    workers: int | None,
    worker: str | None,
    name: str | None,
    sets: tuple[str, ...],
    insecure: bool,
) -> Source:
    """Returns the source of the settings, from the values of `target_options`."""
    if target is not None and _is_application(target):
        return Source(CORES, None, target, name, listen, workers, worker, sets, str(Path.cwd()), insecure)
    if target is not None and (target.endswith(".py") or _is_word(target)):
        module = target.removesuffix(".py")
        raise UsageError(f"{target}: name an application as module:name, such as {module}:NAME")
    if listen or sets or any(each is not None for each in (workers, worker, name)):
        raise click.UsageError("options need an application (module:name); with a settings file, set the keys there")
    return Source(CORES, target or DEFAULT_FILE, insecure=insecure)


def seconds(context: click.Context, parameter: click.Parameter, seconds: float | None) -> float | None:
    """Accepts the same range as the settings, and so no nan, which no clock can wait for."""
    if seconds is not None and not 0 < seconds <= MAX_SECONDS:
        raise click.BadParameter(f"{seconds:g} is not a number of seconds above 0 and up to {MAX_SECONDS}")
    return seconds


def complain(message: str, status: int) -> None:
    """Prints to standard error why a command failed."""
    click.echo(log.marked("error", last_word(message, status)), err=True)


def last_word(message: str, status: int) -> str:
    """Returns the last line for standard error. Mistakes in settings begin with their place, not with our name."""
    return message if status == Exit.CONFIG else f"forkd: {message}"


def _is_word(target: str) -> bool:
    """True if it is not a file and looks like a module."""
    return target.replace(".", "").isidentifier() and not target.endswith(".toml") and not Path(target).exists()


def _is_application(target: str) -> bool:
    return ":" in target and "/" not in target and not target.endswith(".toml")


_COMPLETION_SECONDS: Final = 1.0  # a user is waiting in the middle of a line


def services(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Completes the services of the forkd named so far on the line, or of its file if it is not running."""
    names: list[str] = []
    with suppress(ForkdError, OSError):
        path: Path | None = context.params.get("control")
        if path is None:
            settings = config.load(context.params["file"], cores=1)
            names = list(settings.services)
            path = paths.control_path(settings)
        names = list(control_client.ask(path, {"command": "status"}, _COMPLETION_SECONDS)["services"])
    return [name for name in names if name.startswith(incomplete)]


def one_of(*words: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Returns a completion that offers these words."""
    return lambda context, parameter, incomplete: [word for word in words if word.startswith(incomplete)]
