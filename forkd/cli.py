"""The command line: arguments to one call, errors to exit statuses; no sockets and no decisions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

import forkd
from forkd import address, check, client, completion, config, control, dial, launch, loadcommand, log, lookup, rundir
from forkd.errors import ConfigError, ControlError, Exit, ForkdError
from forkd.settings import MAX_SECONDS

DEFAULT_FILE: Final = "/etc/forkd.toml"
_ASK_SECONDS: Final = 10.0
_CORES: Final = len(os.sched_getaffinity(0))

# A path so that shells complete it; whether it may be read is told by an attempt, with its own exit status.
_FILE: Final = click.Path(readable=False)

config_option = click.option(
    "-c",
    "--config",
    "file",
    type=_FILE,
    default=DEFAULT_FILE,
    show_default=True,
    metavar="FILE",
    help="The settings' file.",
)


def control_option(command: Any) -> Any:
    """Options by which a command finds a running forkd."""
    path = click.Path(path_type=Path, readable=False)
    command = click.option("--control", type=path, metavar="PATH", help="The control socket, instead of a file's.")(
        command
    )
    return config_option(command)


def _seconds(context: click.Context, parameter: click.Parameter, seconds: float | None) -> float | None:
    """Lets through what a setting may be, and no nan, to which a clock has no answer."""
    if seconds is not None and not 0 < seconds <= MAX_SECONDS:
        raise click.BadParameter(f"{seconds:g} is no number of seconds above 0 and up to {MAX_SECONDS}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The program `forkd`."""
    _open_standard_three()
    try:
        status = cli.main(arguments, prog_name="forkd", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ForkdError as error:
        _complain(str(error), error.exit_status)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        sys.exit(Exit.FAILED)
    except OSError as error:  # a working folder that is gone, a full disk behind standard output
        _complain(
            f"{error.strerror}: {error.filename}" if error.filename else f"{error.strerror or error}", Exit.FAILED
        )
        sys.exit(Exit.FAILED)
    sys.exit(status if isinstance(status, int) else Exit.DONE)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(forkd.__version__, prog_name="forkd", message="%(prog)s %(version)s")
def cli() -> None:
    """Turns a Python function into a TCP service with preforked workers."""


@cli.command()
@click.argument("target", required=False, type=_FILE)
@click.option("--listen", multiple=True, metavar="ADDRESS", help="Where to listen; may be given again.")
@click.option("--workers", type=int, metavar="N", help="How many workers.")
@click.option(
    "--worker",
    metavar="KIND",
    shell_complete=completion.one_of("sync", "event"),
    help="The kind of worker: sync or event.",
)
@click.option("--name", metavar="NAME", help="What to call the service.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any key of a service; may be given again.")
def run(
    target: str | None,
    listen: tuple[str, ...],
    workers: int | None,
    worker: str | None,
    name: str | None,
    sets: tuple[str, ...],
) -> int:
    """Serves in the foreground.

    TARGET is a settings file (by default /etc/forkd.toml), or an application, as in

        forkd run mymodule:shout --listen 127.0.0.1:7000
    """

    if target is not None and _is_application(target):
        source = config.Source(_CORES, None, target, name, listen, workers, worker, sets, str(Path.cwd()))
    elif listen or sets or any(each is not None for each in (workers, worker, name)):
        raise click.UsageError("options go with an application (module:name); a file says all itself")
    else:
        source = config.Source(_CORES, target or DEFAULT_FILE)

    from forkd import master  # the other commands do without it, and start faster

    ended = master.serve(*launch.prepare(source))
    if ended.reason:  # a standard error that nobody reads must not keep a server from ending
        log.tell(log.marked("error", _last_word(ended.reason, ended.status)))
    return ended.status


@cli.command()
@control_option
def reload(file: str, control: Path | None) -> int:
    """Starts a new generation, with the file read again; the old one stays if it does not serve.

    Ends when the new one serves, or with the reason and exit status 1.
    """
    return _change(file, control, "reload")


@cli.command()
@control_option
def upgrade(file: str, control: Path | None) -> int:
    """Replaces the master's program by what is installed now (forkd, or Python), then reloads.

    The new program is tried out first; one that would not start changes nothing. Ends when the new generation
    serves, or with the reason and exit status 1.
    """
    return _change(file, control, "upgrade")


@cli.command()
@control_option
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def status(file: str, control: Path | None, as_json: bool) -> None:
    """Shows what every service and worker is doing."""
    document = _ask(file, control, {"command": "status"})
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    from forkd import table  # rich is for this command alone

    table.show(document)


@cli.command()
@control_option
@click.argument("service", default="", shell_complete=completion.services)
def stacks(file: str, control: Path | None, service: str) -> None:
    """Shows every worker's Python stack, now."""
    for each in _ask(file, control, {"command": "stacks", "service": service}):
        click.echo(f"{each['service']} worker={each['worker']} gen={each['gen']} pid={each['pid']}")
        text = each["stack"] or "it did not answer: stopped, or stuck in the kernel"
        click.echo("".join(f"    {line}\n" for line in text.splitlines()))


@cli.command()
@control_option
@click.argument("service", shell_complete=completion.services)
@click.argument("size", type=click.IntRange(1, 1024), metavar="N")
def scale(file: str, control: Path | None, service: str, size: int) -> None:
    """Sets the size of SERVICE's pool to N workers, until the next reload."""
    _ask(file, control, {"command": "scale", "service": service, "size": size})


@cli.command("check")
@click.argument("target", required=False, type=_FILE)
@config_option
def check_(target: str | None, file: str) -> None:
    """Checks a settings file and imports its applications, in processes of their own; binds nothing."""
    settings = config.load(target or file, cores=_CORES)
    for warning in [*check.trial(settings), *check.warnings(settings)]:
        click.echo(f"warning: {warning}", err=True)
    count = len(settings.services)
    click.echo(f"{settings.file}: good, {count} service{'' if count == 1 else 's'}")


@cli.command()
@click.argument("target", metavar="ADDRESS")
@click.argument("requests", nargs=-1, metavar="[REQUEST]...")
@click.option(
    "--connect-timeout",
    type=float,
    callback=_seconds,
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds to connect.",
)
@click.option(
    "--timeout", type=float, callback=_seconds, metavar="S", help="Seconds of silence to bear.  [default: for ever]"
)
@click.option("--source", metavar="ADDRESS", help="Where to call from; otherwise the kernel picks.")
@click.option("--rpc", metavar="PROGRAM[:VERSION]", help="Ask the port mapper for the port; ADDRESS is a host alone.")
def call(
    target: str, requests: tuple[str, ...], connect_timeout: float, timeout: float | None, source: str, rpc: str | None
) -> None:
    """Sends each REQUEST, or each line of standard input, to ADDRESS and prints each reply."""
    texts = [os.fsencode(request) for request in requests]
    if rpc is None:
        whom = address.parse(target)
    else:
        host, program = lookup.parse_host(target), lookup.parse_program(rpc)
        whom = lookup.look_up(host, program, timeout=connect_timeout, source=source)
    with dial.connect(whom, timeout=connect_timeout, source=source) as sock:
        stdin = None if sys.stdin is None else sys.stdin.buffer
        stdout = None if sys.stdout is None else sys.stdout.buffer
        client.call(sock, texts or None, stdin, stdout, timeout=timeout, name=target if whom.kind == "unix" else "")


cli.add_command(loadcommand.load)


def _open_standard_three() -> None:
    """Fills descriptors 0 to 2 where they were closed, or the next sockets would be taken for them."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free one, which is this
            os.set_inheritable(fd, True)


def _complain(message: str, status: int) -> None:
    click.echo(log.marked("error", _last_word(message, status)), err=True)


def _last_word(message: str, status: int) -> str:
    """What stands last on standard error; mistakes in the settings begin with their place, not with our name."""
    return message if status == Exit.CONFIG else f"forkd: {message}"


def _is_application(target: str) -> bool:
    return ":" in target and "/" not in target and not target.endswith(".toml")


def _change(file: str, control: Path | None, command: str) -> int:
    """Asks for a new generation and tells how that ended."""
    try:
        result = _ask(file, control, {"command": command}, timeout=None)
    except (ConfigError, ControlError) as error:
        _complain(str(error), error.exit_status)
        return Exit.FAILED
    if command == "upgrade":
        click.echo(f"the master runs forkd {result['version']}")
    for service, generation in result["generations"].items():
        click.echo(f"{service}: generation {generation} serves")
    return Exit.DONE


def _ask(file: str, path: Path | None, command: dict[str, Any], timeout: float | None = _ASK_SECONDS) -> Any:
    """Asks the forkd that serves `file`, or the one at `path`."""
    if path is None:
        path = rundir.control_path(config.load(file, cores=_CORES))
    return control.ask(path, command, timeout)
