"""Decides where the control socket is if the settings do not name one, so that commands find it."""

from __future__ import annotations

import os
import stat
import tomllib
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

from forkd.errors import ControlError
from forkd.settings.schema import Settings

_ROOTS: Final = Path("/run/forkd")
_STEM: Final = 16  # characters of the file name to keep, because unix(7) limits paths


def control_path(settings: Settings) -> Path:
    """Returns the control socket for these settings: the one they name, or one derived from their file's path.

    Two files, and so two servers, never share one.
    """
    if settings.master.control is not None:
        return settings.master.control
    return _derived(Path(settings.file)) if settings.places else _folder() / f"{next(iter(settings.services))}.sock"


def last_known(file: Path) -> Path:
    """Returns the same for a file that may now have mistakes or be gone, from its `control` if that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        named: str = tomllib.loads(file.read_text())["master"]["control"]
        return file.parent.absolute() / named
    return _derived(file)


def pidfile_beside(path: Path) -> Path:
    """Returns the pid file that goes with a control socket if the settings do not name one."""
    return path.with_suffix(".pid") if path.suffix != ".pid" else path.with_name(f"{path.name}.pid")


def make_folder(path: Path) -> None:
    """Creates the folder of a derived control socket; raises ControlError if others could tamper with it."""
    folder = path.parent
    if folder != _folder():
        return
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True)
    try:
        found = folder.lstat()
    except OSError:
        return  # then there will be no control socket, and the master warns of that
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ControlError(f"{folder} is not a private folder of this user: remove it, or set master.control")


def _derived(file: Path) -> Path:
    path = os.path.abspath(file)  # noqa: PTH100  # resolves "..", but no links: those may point elsewhere later
    name = f"{file.stem[:_STEM]}-{zlib.crc32(os.fsencode(path)):08x}.sock"
    folder = _folder()
    if folder == _ROOTS:
        instance = folder.with_name(f"{folder.name}-{file.stem}") / name
        if instance.exists():  # an instance of forkd@.service has a folder of its own
            return instance
    return folder / name


def _folder() -> Path:
    """Returns systemd's RuntimeDirectory, the user's runtime folder, or a folder below /tmp."""
    provided = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if provided:
        return Path(provided)
    if os.geteuid() == 0:
        return _ROOTS
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own) / "forkd" if own else Path(f"/tmp/forkd-{os.geteuid()}")
