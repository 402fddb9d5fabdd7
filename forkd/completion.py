"""What a shell offers while a command is being typed, where the shell cannot know it.

Called in place of the command, after each press of a key: it is quick, and where it knows nothing it
says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from forkd import config, control, rundir
from forkd.errors import ForkdError

_ASK_SECONDS: Final = 1.0


def services(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The services of the forkd that the words so far name; of its file, if it is not running."""
    names: list[str] = []
    with suppress(ForkdError, OSError):
        path: Path | None = context.params.get("control")
        if path is None:
            settings = config.load(context.params["file"], cores=1)
            names = list(settings.services)
            path = rundir.control_path(settings)
        names = list(control.ask(path, {"command": "status"}, _ASK_SECONDS)["services"])
    return [name for name in names if name.startswith(incomplete)]


def one_of(*words: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Of these words those that begin as what is typed."""
    return lambda context, parameter, incomplete: [word for word in words if word.startswith(incomplete)]
