"""Puts files in their places on a machine and removes them again, as a package would.

It keeps a record of what it put where, so it can tell if a file has been changed since; such a file is never
overwritten or removed. It knows neither what the files are for (`installation` does) nor how to report.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from forkd.cli.install.plan import InstallRecord, InstallStep, Piece, What, _digest
from forkd.errors import ForkdError

RECORD: Final = "/usr/local/share/forkd/installed.json"

_MODE: Final = 0o644


class Place:
    """The files below `root`, "/" for this machine itself, and the record of what was put there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.record = self._read_record()

    def on_disk(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def there(self, paths: Iterable[str]) -> dict[str, str]:
        """Returns the digests of those `paths` that exist."""
        return {path: found for path in paths if (found := self._found(path)) is not None}

    def do(self, steps: Sequence[InstallStep], options: Mapping[str, str]) -> None:
        """Carries out the steps, after writing to the record what there will be."""
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
        """Writes the file beside its place, then renames it, so that it appears whole."""
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

    def _read_record(self) -> InstallRecord:
        path = self.on_disk(RECORD)
        try:
            return InstallRecord(**json.loads(path.read_text()))
        except FileNotFoundError:
            return InstallRecord()
        except (ValueError, TypeError):
            raise ForkdError(f"{path}: this is not a record of an installation; look at it, then remove it") from None

    def _write_record(self) -> None:
        path = self.on_disk(RECORD)
        if not path.parent.is_dir():
            self._make_folder(path.parent)
            return  # which has written the record
        text = json.dumps(asdict(self.record), indent=1)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text + "\n")
        beside.chmod(_MODE)
        beside.replace(path)

    def _forget(self) -> None:
        """Removes the record, and those folders that were made and are empty, because nothing else is left."""
        self.on_disk(RECORD).unlink(missing_ok=True)
        for folder in reversed(self.record.folders):
            with suppress(OSError):
                self.on_disk(folder).rmdir()
