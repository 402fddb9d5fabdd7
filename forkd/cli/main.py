"""The command line: turns arguments into one call and errors into exit statuses. It holds no sockets or decisions."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

import forkd
from forkd.cli import check, client, launch, options, start
from forkd.cli.install import command as install_command
from forkd.cli.load import command as load_command
from forkd.cli.options import CORES, FILE, complain, config_option, control_option, seconds
from forkd.cli.running_master import ASK_SECONDS
from forkd.errors import ConfigError, ControlError, Exit, ForkdError
from forkd.ipc import control_client
from forkd.kernel import address
from forkd.log import log
from forkd.security import trust
from forkd.settings import config
from forkd.settings.schema import MAX_WORKERS
from forkd.sockets import dial
from forkd.sockets.rpcbind import lookup
from forkd.systemd import notify, reports

_INTERRUPTED: Final = 128 + signal.SIGINT  # as a shell reports it


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The program `forkd`."""
    _open_standard_three()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, it would hide how our children end (wait(2))
    try:
        status = cli.main(arguments, prog_name="forkd", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ForkdError as error:
        complain(str(error), error.exit_status)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit would complain
        sys.exit(Exit.FAILED)
    except OSError as error:  # such as a deleted working folder, or a full disk behind standard output
        complain(f"{error.strerror}: {error.filename}" if error.filename else f"{error.strerror or error}", Exit.FAILED)
        sys.exit(Exit.FAILED)
    sys.exit(status if isinstance(status, int) else Exit.DONE)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(forkd.__version__, prog_name="forkd", message="%(prog)s %(version)s")
def cli() -> None:
    """Turns a Python function into a TCP service with preforked workers."""


@cli.command()
@options.target_options
def run(**given: Any) -> int:
    """Serves in the foreground.

    TARGET is a settings file (default: /etc/forkd.toml) or an application, as in

        forkd run mymodule:shout --listen 127.0.0.1:7000
    """
    source = options.source(**given)

    from forkd.master import master  # late, because other commands start faster without it

    try:
        ended = master.serve(*launch.prepare(source))
    except (ForkdError, OSError) as error:
        cause = error.cause if isinstance(error, ForkdError) else error.errno
        notify.last_words(reports.failed(f"{error}", cause or 0))
        raise
    if ended.reason:  # log.tell: a standard error that no one reads must not keep a server from ending
        log.tell(log.marked("error", options.last_word(ended.reason, ended.status)))
        notify.last_words(reports.failed(ended.reason, 0))
    return ended.status


for command in start.COMMANDS:
    cli.add_command(command)


@cli.command()
@control_option
def reload(file: str, control: Path | None) -> int:
    """Reads the settings again and starts a new generation; if that fails, the old one stays.

    Returns when the new generation serves, or reports why it does not, with exit status 1.
    """
    return _change(file, control, "reload")


@cli.command()
@control_option
def upgrade(file: str, control: Path | None) -> int:
    """Replaces the master's program with the version installed now (of forkd or Python), then reloads.

    First tries the new program; if it would not start, nothing changes. Returns when the new generation serves, or
    reports why it does not, with exit status 1.
    """
    return _change(file, control, "upgrade")


@cli.command()
@control_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def status(file: str, control: Path | None, as_json: bool) -> None:
    """Shows what every service and worker is doing."""
    document = _ask(file, control, {"command": "status"})
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    from forkd.cli import table  # only this command needs rich

    table.show(document)


@cli.command()
@control_option
@click.argument("service", default="", shell_complete=options.services)
def stacks(file: str, control: Path | None, service: str) -> None:
    """Shows the current Python stack of every worker."""
    for each in _ask(file, control, {"command": "stacks", "service": service}):
        click.echo(f"{each['service']} worker={each['worker']} gen={each['gen']} pid={each['pid']}")
        text = each["stack"] or "no answer: the process is stopped, or stuck in the kernel"
        click.echo("".join(f"    {line}\n" for line in text.splitlines()))


@cli.command()
@control_option
@click.argument("service", shell_complete=options.services)
@click.argument("size", type=click.IntRange(1, MAX_WORKERS), metavar="N")
def scale(file: str, control: Path | None, service: str, size: int) -> None:
    """Sets the size of SERVICE's pool to N workers, until the next reload."""
    _ask(file, control, {"command": "scale", "service": service, "size": size})


@cli.command("check")
@click.argument("target", required=False, type=FILE)
@config_option
@options.insecure_option
def check_(target: str | None, file: str, insecure: bool) -> None:
    """Checks a settings file and imports its applications in separate processes; binds nothing."""
    source = config.Source(CORES, target or file, insecure=insecure)
    settings = source.read()
    trust.examine(source, settings, lambda line: click.echo(f"warning: {line}", err=True))
    for warning in [*check.trial(settings), *check.warnings(settings), *trust.tools()]:
        click.echo(f"warning: {warning}", err=True)
    count = len(settings.services)
    click.echo(f"{settings.file}: good, {count} service{'' if count == 1 else 's'}")


@cli.command()
@click.argument("target", metavar="ADDRESS")
@click.argument("requests", nargs=-1, metavar="[REQUEST]...")
@click.option(
    "--connect-timeout",
    type=float,
    callback=seconds,
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds allowed to connect.",
)
@click.option(
    "--timeout", type=float, callback=seconds, metavar="S", help="Seconds of silence allowed.  [default: no limit]"
)
@click.option("--source", metavar="ADDRESS", help="Local address to call from; the kernel picks one by default.")
@click.option("--rpc", metavar="PROGRAM[:VERSION]", help="Ask the port mapper for the port; ADDRESS is only a host.")
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


cli.add_command(load_command.load)
cli.add_command(install_command.install)


def _open_standard_three() -> None:
    """Opens those of descriptors 0 to 2 that were closed, so that no socket takes their place."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is fd
            os.set_inheritable(fd, True)


def _change(file: str, control: Path | None, command: str) -> int:
    """Asks for a new generation and reports the outcome. Returns the exit status."""
    try:
        result = _ask(file, control, {"command": command}, timeout=None)
    except (ConfigError, ControlError) as error:
        complain(str(error), error.exit_status)
        return Exit.FAILED
    if command == "upgrade":
        click.echo(f"the master runs forkd {result['version']}")
    for service, generation in result["generations"].items():
        click.echo(f"{service}: generation {generation} serves")
    return Exit.DONE


def _ask(file: str, path: Path | None, command: dict[str, Any], timeout: float | None = ASK_SECONDS) -> Any:
    """Sends a command to the forkd that serves `file`, or to the one at `path`."""
    path, _ = options.premises(file, path)
    return control_client.ask(path, command, timeout)
