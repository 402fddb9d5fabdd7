"""Finds the files that come with forkd besides its code: units, initial settings, manual pages, completion.

In a clone they are beside the package. pip puts them below `share`, at places listed in the record of the
installation (importlib.metadata). `installation` decides what to do with them.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

from forkd.errors import ForkdError

DISTRIBUTION: Final = "forkd-server"

SHARE: Final = {
    "systemd": "share/forkd/systemd",
    "etc": "share/forkd/etc",
    "man": "share/man",
    "completion": "share",
}
"""Maps each folder of a clone to the folder that holds its files in an installation."""


def read(name: str) -> bytes:
    """Returns the content of a shipped file, named as in a clone, such as "systemd/forkd.service".

    Raises ForkdError if this installation lacks it.
    """
    beside = Path(__file__).parents[3] / name
    if beside.is_file():
        return beside.read_bytes()
    folder, _, file = name.partition("/")
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        files = []
    for each in files:
        if each.name == file and f"/{SHARE[folder]}/" in f"/{each.as_posix()}":
            found = Path(str(each.locate()))
            if found.is_file():
                return found.read_bytes()
    raise ForkdError(f"this installation lacks its file {name}: reinstall {DISTRIBUTION} with pip")
