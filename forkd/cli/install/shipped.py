"""Where the files are that come with forkd beside its code: units, first settings, manual pages, completion.

In a clone they stand beside the package; pip puts them below `share`, where the record of the
installation tells (importlib.metadata). What becomes of them is for `install` to say.
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
"""The folders of a clone, and the folder below which the files of each are in an installation."""


def read(name: str) -> bytes:
    """The content of a shipped file by its name in a clone, such as "systemd/forkd.service".

    Raises ForkdError where this installation has come without it.
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
    raise ForkdError(f"this installation has come without its file {name}: install {DISTRIBUTION} anew, with pip")
