"""Decides what to do about each file of an installation, from what is there and what was put there before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

BESIDE: Final = ".new"  # suffix of a new version, beside a file that was changed


@dataclass(frozen=True, slots=True)
class Piece:
    """A file to install: its content or, for a link, its target.

    Settings belong to the administrator from the first day: once removed they are not installed again. With `beside`,
    the new version of a changed file goes beside it, where nothing reads it.
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
    """What to do about a file."""

    PUT = "put"
    REPLACE = "replace"
    REMOVE = "remove"
    LEAVE = "leave"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class InstallStep:
    """What to do about one file, and why, if that is not obvious. `now` is the digest to remember, if any."""

    what: What
    path: str
    piece: Piece | None = None
    why: str = ""
    now: str | None = None


@dataclass(slots=True)
class InstallRecord:
    """What was put where: each file's digest, the folders that were made, and the choices (`options`)."""

    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


def decide(pieces: Iterable[Piece], there: Mapping[str, str], record: Mapping[str, str]) -> list[InstallStep]:
    """Returns the steps that put `pieces` in place.

    `there` has the digest of each file that exists now, `record` of each that was put there.
    """
    steps: list[InstallStep] = []
    wanted = {each.path: each for each in pieces}
    for path, piece in wanted.items():
        found, ours, new = there.get(path), record.get(path), piece.digest
        if found is None and piece.settings and ours is not None:
            steps.append(InstallStep(What.NOTHING, path, why="removed since it was installed", now=ours))
        elif found is None:
            steps.append(InstallStep(What.PUT, path, piece, now=new))
        elif found == new:  # this does not change who owns it
            steps.append(InstallStep(What.NOTHING, path, now=new if ours is not None else None))
        elif found == ours:
            steps.append(InstallStep(What.REPLACE, path, piece, now=new))
        else:
            steps += _left(piece, there, record)
    for path, ours in record.items():
        known = path in wanted or any(each.path == path for each in steps)
        if not known:
            steps.append(_removal(path, there.get(path), ours))
    return steps


def undo(there: Mapping[str, str], record: Mapping[str, str]) -> list[InstallStep]:
    """Returns the steps that remove what was put there, except what has changed since."""
    return [_removal(path, there.get(path), ours) for path, ours in record.items()]


def _left(piece: Piece, there: Mapping[str, str], record: Mapping[str, str]) -> list[InstallStep]:
    """Keeps a file that was changed, or that forkd did not put there; its new version may go beside it."""
    path, new, ours = piece.path, piece.digest, record.get(piece.path)
    beside = path + BESIDE
    if ours == new:  # nothing new to report
        steps = [InstallStep(What.NOTHING, path, why="changed since it was installed", now=ours)]
        if beside in record:
            steps.append(InstallStep(What.NOTHING, beside, now=record[beside]))
        return steps
    why = "changed since it was installed" if ours is not None else "was there before"
    if not piece.beside or there.get(beside) not in (None, record.get(beside)):
        return [InstallStep(What.LEAVE, path, why=why, now=new)]
    return [
        InstallStep(What.LEAVE, path, why=f"{why}; the new version is {beside}", now=new),
        InstallStep(What.PUT, beside, Piece(beside, piece.content), now=new),
    ]


def _removal(path: str, found: str | None, ours: str) -> InstallStep:
    if found is None:
        return InstallStep(What.NOTHING, path)
    if found == ours:
        return InstallStep(What.REMOVE, path)
    return InstallStep(What.LEAVE, path, why="changed since it was installed")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
