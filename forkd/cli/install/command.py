"""The command `forkd install`: turns its options into one call of `installation`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--systemd", is_flag=True, help="Install systemd units, initial settings, manual pages and completion.")
@click.option(
    "--ports",
    type=click.Choice(("any", "high", "passed")),
    help="Where the units let forkd listen: any port, only high ports (from 1024), or only on sockets passed by "
    "forkd.socket; each is more confined than the one before.  [default: any, or the previous choice]",
)
@click.option(
    "--root", type=click.Path(path_type=Path), default="/", metavar="DIR", help="Root folder of another system."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; do nothing.")
@click.option("--undo", is_flag=True, help="Remove installed files that have not been changed since.")
def install(systemd: bool, ports: str | None, root: Path, dry_run: bool, undo: bool) -> None:
    """Makes forkd a service of this machine, run by systemd.

    Files that have been changed since they were installed stay as they are, and are listed.
    """
    if not systemd:
        raise click.UsageError("name the service manager: --systemd")
    if undo and ports:
        raise click.UsageError("--ports cannot be used with --undo")
    if not root.is_dir():
        raise click.BadParameter(f"no such folder: {root}", param_hint="--root")
    from forkd.cli.install import installation  # late, because other commands start faster without it

    installation.run(installation.InstallOptions(root, ports, dry_run, undo))
