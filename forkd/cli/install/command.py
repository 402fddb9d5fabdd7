"""The words of `forkd install`: its options to one call; what is done stands in `installation`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--systemd", is_flag=True, help="Units for systemd, first settings, manual pages and completion.")
@click.option(
    "--ports",
    type=click.Choice(("any", "high", "passed")),
    help="What the units let forkd listen on: any port, high ones (from 1024 on), or passed, which is sockets of "
    "forkd.socket alone; the less, the more confined.  [default: any, or as last time]",
)
@click.option(
    "--root", type=click.Path(path_type=Path), default="/", metavar="DIR", help="Another machine's root folder."
)
@click.option("--dry-run", is_flag=True, help="Tells what would be done, and does nothing.")
@click.option("--undo", is_flag=True, help="Removes what was installed and not changed since.")
def install(systemd: bool, ports: str | None, root: Path, dry_run: bool, undo: bool) -> None:
    """Makes forkd a service of this machine, which systemd runs.

    Files that were changed since they were installed are left as they are, and told.
    """
    if not systemd:
        raise click.UsageError("say what for: --systemd is all there is so far")
    if undo and ports:
        raise click.UsageError("--ports goes with an installation, not with --undo")
    if not root.is_dir():
        raise click.BadParameter(f"there is no folder {root}", param_hint="--root")
    from forkd.cli.install import installation  # the other commands do without it, and start faster

    installation.run(installation.InstallOptions(root, ports, dry_run, undo))
