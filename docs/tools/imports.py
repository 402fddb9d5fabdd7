"""Reads the imports of the package: its rooms, its wings, and which wing uses which."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path


def rooms_below(package: Path) -> dict[str, str]:
    """Returns the source of every room by its dotted name below `forkd`; a wing's `__init__` has the wing's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def wings_below(package: Path) -> set[str]:
    """Returns the dotted name of every package below `forkd`."""
    return {".".join(path.parent.relative_to(package).parts) for path in package.rglob("*/__init__.py")}


def imported(room: str, source: str) -> Iterator[tuple[str, bool]]:
    """Yields the name of each module that a room imports, and whether it does so inside a function.

    Modules of forkd are named "forkd.NAME". `from forkd.x import y` yields "forkd.x.y"; `room_of` finds out whether y
    is a room or a name in one.
    """
    tree = ast.parse(source)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        late = id(node) in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["forkd", *room.split(".")[: -node.level]] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if module.partition(".")[0] == "forkd":
                yield from ((f"{module}.{alias.name}", late) for alias in node.names)
            else:
                yield module, late


def room_of(name: str, rooms: Mapping[str, str]) -> str:
    """Returns the room that a dotted name below `forkd` leads to: the longest prefix that is a room."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in rooms:
        parts.pop()
    return ".".join(parts) or "__init__"


def wing_of(room: str, wings: set[str]) -> str:
    """Returns the wing that a room is in; a room at the top level counts as its own wing."""
    above = room if room in wings else room.rpartition(".")[0]
    return above if above in wings else room


def used_wings(rooms: Mapping[str, str], wings: set[str]) -> dict[str, set[str]]:
    """Returns the wings that each wing's rooms import."""
    found: dict[str, set[str]] = {wing_of(room, wings): set() for room in rooms}
    for room, source in rooms.items():
        names = [name for name, _ in imported(room, source) if name.partition(".")[0] == "forkd"]
        found[wing_of(room, wings)] |= {wing_of(room_of(name, rooms), wings) for name in names}
    return {wing: others - {wing} for wing, others in found.items()}
