"""Putting files in their places on a machine, and taking them away again, as a package would.

It keeps a record of what it has put where, and so can tell a file that somebody has changed
since: that one is never overwritten, nor removed. It must not know what the files are for
(`installation` does), nor whom to tell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from forkd.errors import ForkdError

RECORD: Final = "/usr/local/share/forkd/installed.json"
BESIDE: Final = ".new"  # of a new version that stands beside a changed file

_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class Piece:
    """A file for its place: its content, or where it leads to as a link.

    Settings belong to the administrator from the first day: once removed they are not put there again,
    and a changed one gets the new version beside it (as a changed unit does; nothing reads that one).
    """

    path: str
    content: bytes = b""
    link: str = ""
    settings: bool = False
    beside: bool = False

    @property
    def digest(self) -> str:
        return f"link:{self.link}" if self.link else _digest(self.content)


class What(Enum):
    """What is done about a file."""

    PUT = "put"
    REPLACE = "replace"
    REMOVE = "remove"
    LEAVE = "leave"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Step:
    """What is done about one file, and why where that is not plain. `now`: what to remember of it, if anything."""

    what: What
    path: str
    piece: Piece | None = None
    why: str = ""
    now: str | None = None


@dataclass(slots=True)
class Record:
    """What has been put where: each file's digest, the folders that were made, and the choices (`options`)."""

    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


def decide(pieces: Iterable[Piece], there: Mapping[str, str], record: Mapping[str, str]) -> list[Step]:
    """What is to be done to have `pieces` in place.

    `there` has the digest of each file that is there now, `record` of each that was put there.
    """
    steps: list[Step] = []
    wanted = {each.path: each for each in pieces}
    for path, piece in wanted.items():
        found, ours, new = there.get(path), record.get(path), piece.digest
        if found is None and piece.settings and ours is not None:
            steps.append(Step(What.NOTHING, path, why="removed since it was put there", now=ours))
        elif found is None:
            steps.append(Step(What.PUT, path, piece, now=new))
        elif found == new:  # whose it is does not change by that
            steps.append(Step(What.NOTHING, path, now=new if ours is not None else None))
        elif found == ours:
            steps.append(Step(What.REPLACE, path, piece, now=new))
        else:
            steps += _left(piece, there, record)
    for path, ours in record.items():
        known = path in wanted or any(each.path == path for each in steps)
        if not known:
            steps.append(_removal(path, there.get(path), ours))
    return steps


def undo(there: Mapping[str, str], record: Mapping[str, str]) -> list[Step]:
    """What is to be done to take away what was put there, but for what has changed since."""
    return [_removal(path, there.get(path), ours) for path, ours in record.items()]


def _left(piece: Piece, there: Mapping[str, str], record: Mapping[str, str]) -> list[Step]:
    """A file that was changed, or was not put there by us, stays; its new version may stand beside it."""
    path, new, ours = piece.path, piece.digest, record.get(piece.path)
    beside = path + BESIDE
    if ours == new:  # nothing new to tell
        steps = [Step(What.NOTHING, path, why="changed since it was put there", now=ours)]
        if beside in record:
            steps.append(Step(What.NOTHING, beside, now=record[beside]))
        return steps
    why = "changed since it was put there" if ours is not None else "was there before"
    if not piece.beside or there.get(beside) not in (None, record.get(beside)):
        return [Step(What.LEAVE, path, why=why, now=new)]
    return [
        Step(What.LEAVE, path, why=f"{why}; the new one is {beside}", now=new),
        Step(What.PUT, beside, Piece(beside, piece.content), now=new),
    ]


def _removal(path: str, found: str | None, ours: str) -> Step:
    if found is None:
        return Step(What.NOTHING, path)
    if found == ours:
        return Step(What.REMOVE, path)
    return Step(What.LEAVE, path, why="changed since it was put there")


class Place:
    """The machine's files below `root`, "/" for this machine itself, and the record of what was put there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.record = self._read_record()

    def on_disk(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def there(self, paths: Iterable[str]) -> dict[str, str]:
        """The digests of those of `paths` that are there."""
        return {path: found for path in paths if (found := self._found(path)) is not None}

    def do(self, steps: Sequence[Step], options: Mapping[str, str]) -> None:
        """Does it all, and writes down first what there will be."""
        self.record.files = {each.path: each.now for each in steps if each.now is not None}
        self.record.options = dict(options)
        if self.record.files:
            self._write_record()
        for step in steps:
            match step.what:
                case What.PUT | What.REPLACE:
                    assert step.piece is not None
                    self._put(step.piece)
                case What.REMOVE:
                    self.on_disk(step.path).unlink()
        if not self.record.files:
            self._forget()

    def _found(self, path: str) -> str | None:
        file = self.on_disk(path)
        try:
            if file.is_symlink():
                return f"link:{file.readlink()}"
            return _digest(file.read_bytes())
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            return "a folder"

    def _put(self, piece: Piece) -> None:
        """Beside its place first, and renamed there whole."""
        file = self.on_disk(piece.path)
        self._make_folder(file.parent)
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            if piece.link:
                beside.symlink_to(piece.link)
            else:
                beside.write_bytes(piece.content)
                beside.chmod(_MODE)
            beside.replace(file)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            each.mkdir(mode=0o755)
            each.chmod(0o755)  # whatever the umask
            self.record.folders.append("/" + str(each.relative_to(self._root)))
        if missing:
            self._write_record()

    def _read_record(self) -> Record:
        path = self.on_disk(RECORD)
        try:
            return Record(**json.loads(path.read_text()))
        except FileNotFoundError:
            return Record()
        except (ValueError, TypeError):
            raise ForkdError(
                f"{path}: this is no record of an installation (any more); see what it says, and remove it"
            ) from None

    def _write_record(self) -> None:
        path = self.on_disk(RECORD)
        if not path.parent.is_dir():
            self._make_folder(path.parent)
            return  # which has written it
        text = json.dumps(asdict(self.record), indent=1)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text + "\n")
        beside.chmod(_MODE)
        beside.replace(path)

    def _forget(self) -> None:
        """Nothing is left of us: the record goes, and the folders that were made, as far as they are empty."""
        self.on_disk(RECORD).unlink(missing_ok=True)
        for folder in reversed(self.record.folders):
            with suppress(OSError):
                self.on_disk(folder).rmdir()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
