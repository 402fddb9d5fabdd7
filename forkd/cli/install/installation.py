"""Decides what `forkd install` puts where on a machine with systemd, and reports what it did."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final, NamedTuple

import click

from forkd.cli.install import shipped
from forkd.cli.install.place import Place
from forkd.cli.install.plan import BESIDE, InstallStep, Piece, What, decide, undo
from forkd.errors import ForkdError
from forkd.kernel import process

UNITS: Final = "/usr/local/lib/systemd/system"
SETTINGS: Final = "/etc/forkd.toml"
_ROTATION: Final = "/etc/logrotate.d/forkd"  # logrotate would also obey a ".new" beside it
SYSUSERS: Final = "/usr/local/lib/sysusers.d/forkd.conf"
PROGRAM: Final = "/usr/local/bin/forkd"

_DROP_IN: Final = {"high": "systemd/high-ports.conf", "passed": "systemd/passed-sockets.conf"}
_FIRST_SETTINGS: Final = {"passed": "etc/passed.toml"}

_UNITS: Final = ("forkd.service", "forkd@.service", "forkd.socket", "forkd@.socket")
_SHARED: Final = {
    "man/forkd.1": "/usr/local/share/man/man1/forkd.1",
    "man/forkd.toml.5": "/usr/local/share/man/man5/forkd.toml.5",
    "completion/forkd": "/usr/local/share/bash-completion/completions/forkd",
    "completion/_forkd": "/usr/local/share/zsh/site-functions/_forkd",
    "completion/forkd.fish": "/usr/local/share/fish/vendor_completions.d/forkd.fish",
}
_INSTANCES: Final = """\
Each settings file in this folder belongs to an instance: forkd@NAME serves NAME.toml.

    systemctl enable --now forkd@NAME           # start it now
    systemctl enable --now forkd@NAME.socket    # or at the first connection; see forkd@.socket
"""

_EXAMPLE: Final = "/opt/forkd/bin/forkd"  # the program named in the shipped units
_HIDDEN: Final = ("/home", pwd.getpwuid(0).pw_dir, "/run/user", "/tmp", "/var/tmp")  # by ProtectHome=, PrivateTmp=
_NOBODY: Final = 65534
_BOOTED: Final = Path("/run/systemd/system")  # sd_booted(3)
_SAID: Final = {What.PUT: "put", What.REPLACE: "replaced", What.REMOVE: "removed", What.LEAVE: "left"}


class InstallOptions(NamedTuple):
    """What `forkd install` should do. `ports` is None for the previous choice."""

    root: Path
    ports: str | None
    dry_run: bool
    undo: bool


def run(asked: InstallOptions) -> None:
    """Installs or removes, or shows what that would do. Raises ForkdError with what prevents it."""
    place = Place(asked.root.absolute())
    here = place.on_disk("/") == Path("/")
    options = place.record.options | ({"ports": asked.ports} if asked.ports else {})
    if asked.undo:
        if here and not asked.dry_run:
            _refuse_in_use()
        steps, options = undo(place.there(place.record.files), place.record.files), {}
    else:
        program = _program()
        if unseen := _unseen_by_others(program):
            if here:
                raise ForkdError(unseen)
            click.echo(f"warning: {unseen}", err=True)
        pieces = _pieces(program, options.get("ports", "any"))
        paths = {*place.record.files, *(each.path + end for each in pieces for end in ("", BESIDE))}
        steps = decide(pieces, place.there(paths), place.record.files)
    if not asked.dry_run:
        place.do(steps, options)
    if here and not asked.undo:
        _warn_of_hidden()
    _report(steps, asked.dry_run)
    if any(each.what in (What.PUT, What.REPLACE, What.REMOVE) for each in steps):
        _afterwards(here=here, asked=asked, passed=options.get("ports") == "passed")


def _pieces(program: str, ports: str) -> list[Piece]:
    """Returns everything that should be in place."""
    found = [
        Piece(f"{UNITS}/{name}", with_program(shipped.read(f"systemd/{name}"), program), beside=True) for name in _UNITS
    ]
    if ports in _DROP_IN:
        content = shipped.read(_DROP_IN[ports])
        found += [Piece(f"{UNITS}/{name}.d/ports.conf", content, beside=True) for name in _UNITS[:2]]
    found.append(Piece(SYSUSERS, shipped.read("systemd/forkd.sysusers")))
    first = shipped.read(_FIRST_SETTINGS.get(ports, "etc/forkd.toml"))
    found.append(Piece(SETTINGS, first.replace(b" etc/forkd.toml", b" /etc/forkd.toml"), settings=True, beside=True))
    found.append(Piece(_ROTATION, shipped.read("etc/forkd.logrotate"), settings=True))
    found.append(Piece("/etc/forkd/README", _INSTANCES.encode()))
    found += [Piece(path, shipped.read(name)) for name, path in _SHARED.items()]
    if program != PROGRAM:
        found.append(Piece(PROGRAM, link=program))
    return found


def with_program(unit: bytes, program: str) -> bytes:
    """Returns the unit with the path of this installation's program, quoted as systemd.service(5) requires.

    Raises ForkdError for a path that a unit cannot contain.
    """
    if re.search(r"[^\w/.,:@+~% -]", program):
        raise ForkdError(
            f"systemd cannot start a program with this path: {program}; install forkd in a folder with a plainer name"
        )
    path = program.replace("%", "%%")
    return unit.replace(_EXAMPLE.encode(), os.fsencode(f'"{path}"' if " " in path else path))


def _program() -> str:
    """Returns the program `forkd` of the environment that we run from."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if os.access(folder / "forkd", os.X_OK):
            return str(folder / "forkd")
    raise ForkdError(
        f"there is no program forkd beside {sys.executable} that a unit could start; "
        f"install one: {sys.executable} -m pip install {shipped.DISTRIBUTION}"
    )


def _unseen_by_others(program: str) -> str:
    """Returns why the service's user could not run the program, "" if it could."""
    why = _closed_folder(program)
    if not why and os.geteuid() == 0:
        why = _failure_as_nobody([program, "--version"])
    if not why:
        return ""
    return (
        f"the service does not run as root and could not run {program}: {why}; install forkd with a Python that all "
        f"users may run: python3 -m venv /opt/forkd && /opt/forkd/bin/pip install {shipped.DISTRIBUTION}"
    )


def _failure_as_nobody(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, user=_NOBODY, group=_NOBODY, extra_groups=[], cwd="/", capture_output=True, text=True, check=False
        )
    except OSError as error:
        return error.strerror or str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"


def _closed_folder(program: str) -> str:
    """Returns the first folder or file that closes off the program, forkd or Python, "" if none does."""
    python = Path(sys.executable)
    for path in (
        Path(program),
        Path(process.package_folder()),
        python,
        Path(os.path.realpath(python)),
        Path(sys.base_prefix),
    ):
        for each in (path, *path.parents):
            if str(each) in _HIDDEN or not each.stat().st_mode & 0o001:
                return f"it needs {path}, but cannot enter {each}"
    return ""


def _warn_of_hidden() -> None:
    """Warns of the administrator's own units, or those of an earlier forkd, which hide ours (systemd.unit(5))."""
    for name in _UNITS:
        if (hiding := Path("/etc/systemd/system") / name).exists():
            click.echo(f"warning: systemd reads {hiding} instead of {UNITS}/{name}", err=True)


def _refuse_in_use() -> None:
    """Raises ForkdError rather than remove the units of a running forkd."""
    if not _BOOTED.is_dir():
        return
    names = [name.replace("@.", "@*.") for name in _UNITS]
    states = [
        ["list-units", "--state=active,activating,reloading,deactivating"],
        ["list-unit-files", "--state=enabled"],
    ]
    found: dict[str, None] = {}
    for state in states:
        command = ["systemctl", *state, "--plain", "--no-legend", "--no-pager", *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found |= dict.fromkeys(line.split()[0] for line in done.stdout.splitlines() if line.split())
    if found:
        raise ForkdError(f"still running or enabled; first run: systemctl disable --now {' '.join(found)}")


def _report(steps: list[InstallStep], dry_run: bool) -> None:
    done = [each for each in steps if each.what is not What.NOTHING]
    for step in done:
        verb = f"would {step.what.value}" if dry_run else _SAID[step.what]
        leads = f", a link to {step.piece.link}" if step.piece is not None and step.piece.link else ""
        why = f" ({step.why})" if step.why else ""
        click.echo(f"{verb} {step.path}{leads}{why}", err=step.what is What.LEAVE)
    for step in steps:
        if step.what is What.NOTHING and step.why:
            click.echo(f"kept {step.path} ({step.why})")
    if not done:
        click.echo("nothing to do: everything is already in place")


def _afterwards(*, here: bool, asked: InstallOptions, passed: bool) -> None:
    """Notifies systemd, and prints what is left to do."""
    commands = [] if asked.undo else [["systemd-sysusers", Path(SYSUSERS).name]]
    if _BOOTED.is_dir():
        commands.append(["systemctl", "daemon-reload"])
    for command in commands:
        if not here or shutil.which(command[0]) is None:
            continue
        click.echo(f"{'would run' if asked.dry_run else 'ran'} {' '.join(command)}")
        if not asked.dry_run:
            _run(command)
    if asked.dry_run or not here:
        return
    if asked.undo:
        click.echo("left in place: the user forkd, and the data of forkd and its instances in /var/lib and /var/log")
    else:
        unit = "forkd.socket" if passed else "forkd"
        click.echo(
            f"next: check {SETTINGS}, then systemctl enable --now {unit} (or, if it runs, systemctl restart forkd)"
        )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ForkdError(f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}")
