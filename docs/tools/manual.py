"""Writes the manual pages, forkd(1) and forkd.toml(5), from the program itself.

Commands and options come from `forkd.cli`, signals and exit statuses from their tables, and keys from the settings'
schema. This room adds only what none of those can say. `make reference` writes the pages; a test compares.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from msgspec import Struct

import forkd
from docs.tools.roff import entry, example, heading, page, prose, running, subheading
from docs.tools.settings_page import RULES, TABLES, default
from forkd import errors
from forkd.cli.main import cli
from forkd.master import commands as signals
from forkd.settings.schema import Key, keys

DATE: Final = "2026-12-01"  # when the text below last changed; the date of the build would make every build differ

_ABOUT: Final = "a preforking server that turns a Python function into a TCP service"

_DESCRIPTION: Final = """\
`forkd` turns a Python function into a TCP service. It binds the port, keeps a pool of forked workers, cuts the stream
into requests, enforces deadlines, replaces workers that crash, and rolls out new code without refusing a connection.

The *master* binds the sockets and never imports an application. For each service it starts a fork server, which imports
the application once and forks workers when the master says so. Workers accept connections, pass each request to the
handler and send its replies. Each of these processes shows its role in `ps`.

The README in the distribution explains how to write a service; `forkd.toml`(5) describes the settings file.

`forkd --version` prints the version. `-h` or `--help`, after `forkd` or a command, prints a summary.
"""

_COMMANDS: Final = """\
`stop`, `reload`, `upgrade`, `status`, `stacks` and `scale` find the running forkd by its settings file
(`/etc/forkd.toml`, unless `-c` names another) or by its control socket. Only root and the user that the master runs as
may use them.
"""

# What a command's help leaves out, because people read that in a hurry.
_MORE: Final = {
    "install": """\
Run it as root, from the environment that the service is to use: the units start the `forkd` of that environment. Run it
again after an update to bring the installed files up to date. Units go to `/usr/local/lib/systemd/system`,
`systemd-sysusers`(8) creates the user `forkd`, and `/usr/local/share/forkd/installed.json` records which files were
installed where. Files that you have edited, or that were there before, are never overwritten or removed; forkd puts the
new version beside yours, with `.new` added to its name.""",
    "start": """\
A daemon runs in `/` with umask 022, without a terminal, and with its standard streams at `/dev/null`. Relative paths
in the settings start at the folder of the settings file, relative folders in `PYTHONPATH` at the folder where `forkd
start` was typed. The daemon keeps its pid file locked, which is `master.pidfile` or a file beside the control
socket. If several daemons start at once, one wins; the others end with exit status 1 and report its PID. Log records
go to `master.log.file`; if that is `-`, they are shown until the services are ready and lost after that. As root,
`forkd start` refuses to run a service that names no user; `user = "root"` overrides that. Ctrl-C before the services
are ready also ends the daemon. In a container, use `forkd run` as process 1.""",
    "stop": """\
If no forkd is running, the exit status is 69. It also stops a forkd started with `forkd run`. It signals only a process
that holds the pid file, or that listens at the control socket and answers as forkd does.""",
    "restart": """\
It refuses to restart a forkd that `forkd start` did not start, because whatever started that one would no longer
watch it.""",
    "call": """\
Bytes are copied unchanged. At the end of its input, forkd ends its side of the connection and prints what still arrives
until the server ends the other side. If a connection fails, forkd explains why and names the error.""",
    "load": r"""
Without `--duration` and `--requests`, a test lasts 10 seconds. At the end it waits for the replies that are still
due. In a *MARK*, `\0`, `\n`, `\r`, `\t`, `\\` and `\xHH` stand for bytes that a shell cannot pass on. The report
counts failures by class: refused, unreachable, timed out, reset, cut short and wrong.""",
}

_SIGNALS: Final = "The master obeys these signals. Find its PID with `forkd status --json`, or in the pid file."

_OTHER_SIGNALS: Final = """\
A worker that receives TERM answers the requests it has started, and is replaced. Send all other signals only to the
master.
"""

_ENVIRONMENT: Final = (
    (
        "`RUNTIME_DIRECTORY`, `XDG_RUNTIME_DIR`",
        (
            "The folder of the control socket and of a daemon's pid file, if the settings do not name them; see FILES. "
            "systemd sets the first."
        ),
    ),
    (
        "`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`",
        (
            "Listening sockets from systemd: those for addresses `systemd:NAME`, and those that it has kept for forkd "
            "since the last run."
        ),
    ),
    (
        "`NOTIFY_SOCKET`",
        (
            "Where forkd reports to systemd that it serves, reloads or stops, or why it does not start. If the unit "
            "has `FileDescriptorStoreMax=`, forkd also hands its listening sockets to systemd, to keep through a "
            "restart; set it to at least one more than there are listeners."
        ),
    ),
    (
        "`WATCHDOG_USEC`, `WATCHDOG_PID`",
        "How often systemd expects a watchdog ping; forkd sends them while every service has a worker.",
    ),
    (
        "`_FORKD_COMPLETE`",
        "With `bash_source`, `zsh_source` or `fish_source`, forkd prints the completion script of that shell and ends.",
    ),
)

_FILES: Final = (
    ("`/etc/forkd.toml`", "The settings, unless you name another file."),
    ("`/etc/forkd/`*NAME*`.toml`", "The settings of the systemd instance `forkd@`*NAME*."),
    (
        "`/run/forkd/`",
        (
            "The folder of root's control sockets and pid files, if the settings do not name them. Each is named after "
            "its settings file or, if there is none, its service. Other users have theirs in `$XDG_RUNTIME_DIR/forkd/` "
            "or, if that is not set, in `/tmp/forkd-`*UID*. If `RUNTIME_DIRECTORY` is set, that folder is used instead."
        ),
    ),
)

_INTERRUPTED: Final = "A command ended by Ctrl-C has exit status 130; `forkd run` treats Ctrl-C as a quick stop."

_EXAMPLES: Final = (
    (
        "Serve the function `shout` of the module `shouting` in this folder:",
        "forkd run shouting:shout --listen 127.0.0.1:7000",
    ),
    ("Send it a request:", "forkd call 127.0.0.1:7000 hello"),
    (
        "Check changed settings and code, and reload if they are good:",
        "forkd check && forkd reload",
    ),
    (
        "Make a test pipeline fail if one reply in a hundred takes longer than 5 ms:",
        "forkd load 127.0.0.1:7000 --request hello --expect HELLO --max-p99 0.005",
    ),
)

_SETTINGS: Final = f"""\
`forkd`(1) reads its settings from a TOML file (https://toml.io): `/etc/forkd.toml`, unless you name another one.

{RULES}"""

EXAMPLE: Final = """\
[master]
user = "forkd"
pidfile = "/run/forkd/forkd.pid"

[master.log]
file = "/var/log/forkd.log"

[service.shout]
app = "shouting:shout"
path = "/srv/shouting"
listen = ["127.0.0.1:7000", "unix:/run/forkd/shout.sock"]
workers = { min = 2, max = 16, spare = 1 }
idle_timeout = 300

[service.ticker]
app = "ticker:ticker"
path = "/srv/ticker"
listen = "*:7001"
worker = "event"
threads = 8
max_age = 86400
"""


def pages() -> dict[str, str]:
    """Returns the text of each page, by file name."""
    source = f"forkd {forkd.__version__}"
    return {
        "forkd.1": page("forkd", 1, date=DATE, source=source, about="User Commands", parts=_program()),
        "forkd.toml.5": page("forkd.toml", 5, date=DATE, source=source, about="File Formats", parts=_settings()),
    }


def _program() -> Iterator[str]:
    described = dict(_commands())
    yield from (heading("NAME"), rf"forkd \- {_ABOUT}")
    yield heading("SYNOPSIS")
    yield "\n.br\n".join(running(_marked(f"`forkd {name}` {usage}")) for name, (_, usage) in described.items())
    yield from (heading("DESCRIPTION"), prose(_DESCRIPTION), heading("COMMANDS"), prose(_COMMANDS))
    for name, (command, usage) in described.items():
        yield subheading(f"forkd {name} {usage}")
        yield prose("\n\n".join(filter(None, (_help(command), _MORE.get(name)))))
        yield from (_option(each) for each in command.params if isinstance(each, click.Option))
    yield from (heading("SIGNALS"), prose(_SIGNALS))
    for number, asked in signals.COMMANDS.items():
        yield entry(f"`{number.name.removeprefix('SIG')}`", _sentence(signals.MEANINGS[asked]))
    yield from (".PP", prose(_OTHER_SIGNALS))
    yield from (heading("ENVIRONMENT"), *(entry(*each) for each in _ENVIRONMENT))
    yield from (heading("FILES"), *(entry(*each) for each in _FILES))
    yield heading("EXIT STATUS")
    yield from (entry(f"`{each.value}`", _sentence(errors.MEANINGS[each])) for each in errors.Exit)
    yield from (".PP", prose(_INTERRUPTED), heading("EXAMPLES"))
    for place, (what, typed) in enumerate(_EXAMPLES):
        yield from ((".PP", prose(what)) if place else (prose(what),))
        yield example(typed)
    yield heading("SEE ALSO")
    yield prose(
        "`forkd.toml`(5), `kill`(1), `ps`(1), `systemctl`(1), `systemd.service`(5), `systemd.socket`(5), `unix`(7)"
    )


def _settings() -> Iterator[str]:
    yield from (heading("NAME"), r"forkd.toml \- the settings of forkd")
    yield from (heading("DESCRIPTION"), prose(_SETTINGS))
    tables = {title: (table, about) for title, table, about in TABLES}
    addresses = tables.pop("listen")
    for title, of in tables.items():
        yield from _table(heading(title) if title.startswith("[") else subheading(title), *of)
    yield from _table(heading("ADDRESSES"), *addresses)
    yield from (heading("EXAMPLE"), example(EXAMPLE), heading("SEE ALSO"), prose("`forkd`(1)"))


def _table(head: str, table: type[Struct], about: str) -> Iterator[str]:
    yield from (head, prose(about))
    yield from (entry(f"`{key.name}`", _said_of(key)) for key in keys(table).values() if key.meaning)


def _said_of(key: Key) -> str:
    wants = re.sub(r'"[^"]+"', r"`\g<0>`", key.wants)
    return f"{_sentence(key.meaning)} Value: {wants}. {'Required.' if key.required else f'Default: {default(key)}.'}"


def _commands() -> Iterator[tuple[str, tuple[click.Command, str]]]:
    """Yields the name of each command, with the command and its arguments as typed."""
    context = click.Context(cli, info_name="forkd")
    for name, command in cli.commands.items():
        pieces = command.collect_usage_pieces(click.Context(command, parent=context, info_name=name))
        yield name, (command, " ".join(pieces))


def _help(command: click.Command) -> str:
    """Returns the text of `--help`, with placeholders marked."""
    names = {each.human_readable_name.upper() for each in command.params if isinstance(each, click.Argument)}
    names |= {each.metavar for each in command.params if each.metavar and each.metavar.isupper()}
    lines = inspect.cleandoc(command.help or "").split("\n")
    word = re.compile(rf"\b({'|'.join(sorted(names))})\b")
    return "\n".join(line if line.startswith(" ") else word.sub(r"*\1*", line) for line in lines)


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{each}`" for each in option.opts)
    value = "" if option.is_flag else f" {_marked(option.metavar or option.human_readable_name.upper())}"
    said, _, unset = (option.help or "").partition("  [default: ")
    if option.show_default is True:
        unset = f"{option.default:g}" if isinstance(option.default, float) else str(option.default)
    return entry(f"{names}{value}", f"{said} Default: {unset.removesuffix(']')}." if unset else said)


def _marked(usage: str) -> str:
    """Marks words in capitals as placeholders."""
    return re.sub(r"\b[A-Z]+\b", r"*\g<0>*", usage)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(sys.argv[1]) / name).write_text(text)
