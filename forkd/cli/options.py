"""Options that several commands have, and what they come to."""

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
from forkd.log import log
from forkd.settings import config
from forkd.settings.config import Source
from forkd.settings.schema import MAX_SECONDS

DEFAULT_FILE: Final = "/etc/forkd.toml"
CORES: Final = len(os.sched_getaffinity(0))

# A path so that shells complete it; whether it may be read is told by an attempt, with its own exit status.
FILE: Final = click.Path(readable=False)

config_option = click.option(
    "-c",
    "--config",
    "file",
    type=FILE,
    default=DEFAULT_FILE,
    show_default=True,
    metavar="FILE",
    help="The settings' file.",
)


insecure_option = click.option(
    "--insecure",
    is_flag=True,
    help="As root, serve also what others than root and the service's user could change.",
)


def control_option(command: Any) -> Any:
    """Options by which a command finds a running forkd."""
    path = click.Path(path_type=Path, readable=False)
    command = click.option("--control", type=path, metavar="PATH", help="The control socket, instead of a file's.")(
        command
    )
    return config_option(command)


def premises(file: str, control: Path | None) -> tuple[Path, Path]:
    """Control socket and pid file of a running forkd, which `control_option` tells.

    What is wrong with its file by now does not matter, as long as it can be found all the same.
    """
    pidfile = None
    if control is None:
        try:
            settings = config.load(file, cores=CORES)
        except ConfigError as error:
            control = paths.last_known(Path(file))
            if not os.path.exists(control):  # noqa: PTH110  # which tells nothing of a folder that is closed to us
                raise _with_a_way_out(error, file) from None
        else:
            control, pidfile = paths.control_path(settings), settings.master.pidfile
    return control, pidfile or paths.pidfile_beside(control)


def _with_a_way_out(error: ConfigError, file: str) -> ConfigError:
    if os.path.exists(file):  # noqa: PTH110
        return error
    other = "name the file of the forkd that runs with -c, or its control socket with --control"
    return ConfigError([each._replace(what=f"{each.what}; {other}") for each in error.problems])


def target_options(command: Any) -> Any:
    """What is to be served, for a command that serves it; `source` makes one value of it."""
    for each in (
        insecure_option,
        click.option(
            "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any key of a service; may be given again."
        ),
        click.option("--name", metavar="NAME", help="What to call the service."),
        click.option(
            "--worker",
            metavar="KIND",
            shell_complete=one_of("sync", "event"),
            help="The kind of worker: sync or event.",
        ),
        click.option("--workers", type=int, metavar="N", help="How many workers."),
        click.option("--listen", multiple=True, metavar="ADDRESS", help="Where to listen; may be given again."),
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
    """Where the settings come from that `target_options` name."""
    if target is not None and _is_application(target):
        return Source(CORES, None, target, name, listen, workers, worker, sets, str(Path.cwd()), insecure)
    if target is not None and (target.endswith(".py") or _is_word(target)):
        module = target.removesuffix(".py")
        raise UsageError(f"{target}: an application is named as module:name, such as {module}:NAME")
    if listen or sets or any(each is not None for each in (workers, worker, name)):
        raise click.UsageError("options go with an application (module:name); a file says all itself")
    return Source(CORES, target or DEFAULT_FILE, insecure=insecure)


def seconds(context: click.Context, parameter: click.Parameter, seconds: float | None) -> float | None:
    """Lets through what a setting may be, and no nan, to which a clock has no answer."""
    if seconds is not None and not 0 < seconds <= MAX_SECONDS:
        raise click.BadParameter(f"{seconds:g} is no number of seconds above 0 and up to {MAX_SECONDS}")
    return seconds


def complain(message: str, status: int) -> None:
    """Says on standard error why a command failed."""
    click.echo(log.marked("error", last_word(message, status)), err=True)


def last_word(message: str, status: int) -> str:
    """What stands last on standard error; mistakes in the settings begin with their place, not with our name."""
    return message if status == Exit.CONFIG else f"forkd: {message}"


def _is_word(target: str) -> bool:
    """Whether it is no file, and looks like a module."""
    return target.replace(".", "").isidentifier() and not target.endswith(".toml") and not Path(target).exists()


def _is_application(target: str) -> bool:
    return ":" in target and "/" not in target and not target.endswith(".toml")


_COMPLETION_SECONDS: Final = 1.0  # someone waits with a half-typed line


def services(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The services of the forkd that the words so far name; of its file, if it is not running."""
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
    """Of these words those that begin as what is typed."""
    return lambda context, parameter, incomplete: [word for word in words if word.startswith(incomplete)]
