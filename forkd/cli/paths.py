"""Where a forkd has its control socket when the settings name none, so that commands find it again."""

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
_STEM: Final = 16  # characters of a file's name; unix(7) has no room for long paths


def control_path(settings: Settings) -> Path:
    """The control socket for these settings: the one they name, else one derived from their file's path.

    Two files, and so two servers, never share one.
    """
    if settings.master.control is not None:
        return settings.master.control
    return _derived(Path(settings.file)) if settings.places else _folder() / f"{next(iter(settings.services))}.sock"


def last_known(file: Path) -> Path:
    """The same for a file that may have mistakes by now, or be gone: what it says of `control`, if that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        named: str = tomllib.loads(file.read_text())["master"]["control"]
        return file.parent.absolute() / named
    return _derived(file)


def pidfile_beside(path: Path) -> Path:
    """The pid file that goes with a control socket when the settings name none."""
    return path.with_suffix(".pid") if path.suffix != ".pid" else path.with_name(f"{path.name}.pid")


def make_folder(path: Path) -> None:
    """Makes the folder of a derived control socket, and refuses one that others could meddle with."""
    folder = path.parent
    if folder != _folder():
        return
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True)
    try:
        found = folder.lstat()
    except OSError:
        return  # there can be no control socket then, which the master will warn of
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ControlError(f"{folder} is not a folder of this user alone: remove it, or set master.control")


def _derived(file: Path) -> Path:
    path = os.path.abspath(file)  # noqa: PTH100  # as written, but for "..": a link may point elsewhere tomorrow
    name = f"{file.stem[:_STEM]}-{zlib.crc32(os.fsencode(path)):08x}.sock"
    folder = _folder()
    if folder == _ROOTS:
        instance = folder.with_name(f"{folder.name}-{file.stem}") / name
        if instance.exists():  # what systemd runs as an instance (forkd@.service) has a folder of its own
            return instance
    return folder / name


def _folder() -> Path:
    """systemd's RuntimeDirectory, or the user's own, or one in the folder for temporary files."""
    told = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if told:
        return Path(told)
    if os.geteuid() == 0:
        return _ROOTS
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own) / "forkd" if own else Path(f"/tmp/forkd-{os.geteuid()}")
