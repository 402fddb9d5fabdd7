"""The manual pages, forkd(1) and forkd.toml(5), written from the program itself.

Commands and options come from `cli`, signals and exit statuses from their tables, keys from
`settings`; only what none of them can say stands here. `python -m docs.tools.manual FOLDER` writes the
pages anew; a test compares. No command of the program needs this room.
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
from forkd.master import commands
from forkd.settings.schema import Key, keys

DATE: Final = "2026-11-25"  # of the words below; a day of the program's own would make each build another

_ABOUT: Final = "a preforking server that turns a Python function into a TCP service"

_DESCRIPTION: Final = """\
`forkd` turns a Python function into a TCP service. It binds the port, keeps a pool of forked workers, cuts the stream
into requests, watches the deadlines, replaces what crashes, and changes to new code without refusing anybody.

A *master* binds the sockets and never imports an application. For each service it starts a fork server, which imports
the application once and forks the workers on the master's order. Workers accept connections, pass each request to the
handler and send its replies. The titles of all these processes tell in `ps` what they are.

How a service is written is told in the README of the distribution, what stands in a settings file in `forkd.toml`(5).

`forkd --version` prints the version. `-h` or `--help`, after `forkd` or after a command, prints a summary.
"""

_COMMANDS: Final = """\
`stop`, `reload`, `upgrade`, `status`, `stacks` and `scale` find the running forkd by its settings file,
`/etc/forkd.toml` unless `-c` names another, or by its control socket. Only root and the user that the master runs as
are heard.
"""

# What a command's help leaves out, which is read in a hurry.
_MORE: Final = {
    "install": """\
It runs as root, from the environment in which the service is to run; the units start the `forkd` that stands there.
Once more, it brings what is there up to the version that is installed now. Units go to `/usr/local/lib/systemd/system`,
the user `forkd` is made by `systemd-sysusers`(8), and what was put where is written down in
`/usr/local/share/forkd/installed.json`. A file that was changed since, or was there before, is neither overwritten nor
removed; a new version of it is put beside it, with `.new` after its name.""",
    "start": """\
A daemon works in `/`, with umask 022, without a terminal and with nothing on its standard streams; relative paths in
the settings start at their file, relative folders in `PYTHONPATH` at the working folder of the start. It has a pid
file, `master.pidfile` or one beside the control socket, which it keeps locked: of many that are started at once one
runs, and the others end with exit status 1 and name its process. What it logs goes to `master.log.file`; while that is
`-`, it is shown until the services serve, and lost then. Started as root, it refuses to run a service for which no user
is named; `user = "root"` insists. Ctrl-C before it serves ends the daemon, too. Process 1 of a container is
`forkd run`.""",
    "stop": """\
Where none runs, the exit status is 69. It stops what `forkd run` serves, too. No process is signalled that does not
hold the pid file, or listen at the control socket and answer like a forkd.""",
    "restart": """\
What was not started by `forkd start` is not restarted either: it would no longer be watched by what had started
it.""",
    "call": """\
Bytes are copied as they are. At the end of its input forkd ends its side of the connection, and prints what still comes
until the server ends its own. A connection that cannot be made is explained in words, with the name of the error.""",
    "load": r"""
Without `--duration` and `--requests` a test goes on for 10 seconds. Replies that are on their way at the end are waited
for. In a *MARK*, `\0`, `\n`, `\r`, `\t`, `\\` and `\xHH` stand for bytes that a shell cannot pass on. The table of
figures tells failures by class: refused, unreachable, timed out, reset, cut short and wrong.""",
}

_SIGNALS: Final = "The master obeys these; `forkd status --json` and the key `pidfile` tell its process number."

_OTHER_SIGNALS: Final = """\
A worker that is sent TERM answers the requests that have begun and is replaced. The other signals are for the master
alone.
"""

_ENVIRONMENT: Final = (
    (
        "`RUNTIME_DIRECTORY`, `XDG_RUNTIME_DIR`",
        (
            "Where the control socket and a daemon's pid file are when the settings do not name them; see FILES. "
            "The first is set by systemd."
        ),
    ),
    (
        "`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`",
        (
            "Listening sockets that systemd passes in, for the addresses `systemd:NAME`, and those that it has kept "
            "for forkd since its last run."
        ),
    ),
    (
        "`NOTIFY_SOCKET`",
        (
            "Where systemd is told that forkd serves, reloads or stops, or why it does not start; and given the "
            "listening sockets to keep through a restart, if the unit has `FileDescriptorStoreMax=`: at least one more "
            "than there are listeners."
        ),
    ),
    (
        "`WATCHDOG_USEC`, `WATCHDOG_PID`",
        "How often systemd wants to be told that all is well, which it is while every service has a worker.",
    ),
    (
        "`_FORKD_COMPLETE`",
        "With `bash_source`, `zsh_source` or `fish_source`, forkd prints the completion for that shell and ends.",
    ),
)

_FILES: Final = (
    ("`/etc/forkd.toml`", "The settings, unless another file is named."),
    ("`/etc/forkd/`*NAME*`.toml`", "The settings of the instance that systemd knows as `forkd@`*NAME*."),
    (
        "`/run/forkd/`",
        (
            "The folder of root's control sockets and pid files, where the settings name none; each is named after its "
            "settings file, or its service where there is no file. Others have theirs in `$XDG_RUNTIME_DIR/forkd/`, or "
            "in `/tmp/forkd-`*UID* if that is not set; whoever has `RUNTIME_DIRECTORY` set, in that folder."
        ),
    ),
)

_INTERRUPTED: Final = "A command that Ctrl-C ends has exit status 130; `forkd run` takes it for a quick stop."

_EXAMPLES: Final = (
    (
        "To serve a function `shout` of a module `shouting` in this folder:",
        "forkd run shouting:shout --listen 127.0.0.1:7000",
    ),
    ("To ask it something:", "forkd call 127.0.0.1:7000 hello"),
    (
        "To try out changed settings and code, and to take them into use if they are good:",
        "forkd check && forkd reload",
    ),
    (
        "To have a pipeline of tests fail when one reply in a hundred takes longer than 5 ms:",
        "forkd load 127.0.0.1:7000 --request hello --expect HELLO --max-p99 0.005",
    ),
)

_SETTINGS: Final = f"""\
`forkd`(1) reads its settings from a TOML file (https://toml.io), `/etc/forkd.toml` unless it is told another one.

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
    """The text of each page, by the name of its file."""
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
    for number, asked in commands.COMMANDS.items():
        yield entry(f"`{number.name.removeprefix('SIG')}`", _sentence(commands.MEANINGS[asked]))
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
    """Each command by its name, with what is typed after it."""
    context = click.Context(cli, info_name="forkd")
    for name, command in cli.commands.items():
        pieces = command.collect_usage_pieces(click.Context(command, parent=context, info_name=name))
        yield name, (command, " ".join(pieces))


def _help(command: click.Command) -> str:
    """What `--help` says, with what is typed in place of a word marked as such."""
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
    """The words in capitals as what they are, stand-ins for something else."""
    return re.sub(r"\b[A-Z]+\b", r"*\g<0>*", usage)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(sys.argv[1]) / name).write_text(text)
