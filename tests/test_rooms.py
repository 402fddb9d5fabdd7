"""The table of wings in ARCHITECTURE.md against the imports: who may know whom, and who may know the kernel."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.server import ROOT

PACKAGE = ROOT / "forkd"
MAP = (ROOT / "ARCHITECTURE.md").read_text()


def rooms_below(package: Path) -> dict[str, str]:
    """The source of every room, by its dotted name below `forkd`; the `__init__` of a wing has the wing's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path.read_text()
    return found


ROOMS = rooms_below(PACKAGE)
WINGS = {
    ".".join(path.parent.relative_to(PACKAGE).parts) for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE
}
# Rooms that must not import these modules of the standard library: deciding, framing and formatting are pure.
REFUSED = {
    "lifecycle.server": {"os", "signal", "socket", "time"},
    "lifecycle.pool": {"os", "signal", "socket", "time"},
    "lifecycle.generation": {"os", "signal", "socket", "time"},
    "lifecycle.states": {"os", "signal", "socket", "time"},
    "lifecycle.backoff": {"os", "signal", "socket", "time"},
    "lifecycle.events": {"os", "signal", "socket", "time"},
    "lifecycle.clock": {"os", "signal", "socket", "time"},
    "serving.framing": {"socket", "time"},
    "serving.holding": {"socket", "time"},
    "serving.delimited": {"socket", "time"},
    "serving.counted": {"socket", "time"},
    "log.record": {"os", "select", "socket", "time"},
    "sockets.rpcbind.protocol": {"os", "select", "socket", "time"},
    "systemd.reports": {"os", "signal", "socket", "time"},
    "cli.install.plan": {"os", "socket", "time"},
    "cli.load.plan": {"os", "select", "socket", "time"},
    "cli.load.schedule": {"os", "select", "socket", "time"},
    "cli.load.replies": {"os", "select", "socket", "time"},
    "cli.load.tally": {"os", "select", "socket", "time"},
    "cli.load.open_loop": {"os", "select", "socket", "time"},
}
# Modules too heavy for a worker: each is imported by no wing that a worker needs.
HEAVY = {"click", "msgspec", "rich", "hdrh", "matplotlib", "daemon", "dataclasses", "inspect"}
LIGHT = {"kernel", "log", "ipc", "serving", "workers", "security"}
LIGHT_BUT = {
    *("security.trust", "security.identity", "ipc.control_server"),  # the master's
    "serving.async_visit",  # asyncio imports inspect in any case
}
# A heavy room that one command needs is imported when that command runs.
LATE = {
    "cli.main": {"master.master", "cli.table"},
    "cli.install.command": {"cli.install.installation"},
    "cli.load.command": {"cli.load.run", "cli.load.plan"},
    "cli.start": {"cli.detach", "master.master"},
}
FEWEST, MOST = 3, 15
ENTRIES = 20


def read_map(text: str) -> dict[str, set[str]]:
    """Each row of the table "| wing | what it holds | may import |": the wings that it allows."""
    lines = iter(text.splitlines())
    for line in lines:
        if _cells(line) == ["wing", "what it holds", "may import"]:
            break
    rows: dict[str, set[str]] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        wing, _, allowed = _cells(line)
        if not set(wing) <= set("-: "):
            rows[wing.strip("`")] = set() if allowed == "nothing" else set(re.split(r"[\s,`]+", allowed.strip("`")))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def imported(room: str, source: str) -> Iterator[tuple[str, bool]]:
    """The name of each module that is imported, forkd's own as "forkd.NAME"; and whether that is inside a function.

    What `from forkd.x import y` names is "forkd.x.y": whether y is a room or a name in one, `room_of` knows.
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
    """The room that a dotted name below `forkd` leads to: the longest beginning of it that is one."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in rooms:
        parts.pop()
    return ".".join(parts) or "__init__"


def wing_of(room: str, wings: set[str]) -> str:
    """The wing that a room is in; a room at the top stands for itself."""
    above = room if room in wings else room.rpartition(".")[0]
    return above if above in wings else room


def breaches(rooms: Mapping[str, str], wings: set[str], rows: Mapping[str, set[str]]) -> list[str]:
    """What is wrong with the modules' sources by this map."""
    places = {wing_of(room, wings) for room in rooms}
    found = [f"{place} has no row" for place in sorted(places) if place not in rows]
    found += [f"{name} is neither a wing nor a module" for name in rows if name not in places]
    between_rooms: dict[str, set[str]] = {}
    between_wings: dict[str, set[str]] = {}
    for room, source in rooms.items():
        here = wing_of(room, wings)
        edges = between_rooms[room] = set()
        for name, late in imported(room, source):
            top = name.partition(".")[0]
            if top in REFUSED.get(room, ()):
                found.append(f"{room} imports {top}")
            if not late and top in HEAVY and here.partition(".")[0] in LIGHT and room not in LIGHT_BUT:
                found.append(f"{room} imports {top}")
            if top != "forkd":
                continue
            if room in wings:
                found.append(f"{room} imports something")
            other = room_of(name, rooms)
            edges.add(other)
            there = wing_of(other, wings)
            if there != here:
                between_wings.setdefault(here, set()).add(there)
                if there not in rows.get(here, ()):
                    found.append(f"{room} imports {other}")
            if late and other not in LATE.get(room, ()):
                found.append(f"{room} imports {other} inside a function")
    return found + cycles(between_rooms) + cycles(between_wings)


def cycles(graph: Mapping[str, set[str]]) -> list[str]:
    """Rings of imports, each as the path that closes it."""
    found: list[str] = []
    done: set[str] = set()

    def visit(room: str, path: tuple[str, ...]) -> None:
        if room in path:
            found.append("a ring: " + " -> ".join([*path[path.index(room) :], room]))
        elif room not in done:
            for other in sorted(graph.get(room, ())):
                visit(other, (*path, room))
            done.add(room)

    for room in graph:
        visit(room, ())
    return found


def used_wings(rooms: Mapping[str, str], wings: set[str]) -> dict[str, set[str]]:
    """The wings that each wing's rooms import."""
    found: dict[str, set[str]] = {wing_of(room, wings): set() for room in rooms}
    for room, source in rooms.items():
        names = [name for name, _ in imported(room, source) if name.partition(".")[0] == "forkd"]
        found[wing_of(room, wings)] |= {wing_of(room_of(name, rooms), wings) for name in names}
    return {wing: others - {wing} for wing, others in found.items()}


def test_the_modules_keep_to_the_map() -> None:
    assert breaches(ROOMS, WINGS, read_map(MAP)) == []


def test_the_map_allows_nothing_that_is_not_needed() -> None:
    assert read_map(MAP) == used_wings(ROOMS, WINGS)


def test_the_refused_are_there() -> None:
    assert REFUSED.keys() | LATE.keys() | LIGHT_BUT <= ROOMS.keys()
    assert LIGHT <= WINGS


def test_what_the_package_shows_is_the_architecture() -> None:
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert len(entries) <= ENTRIES, entries


@pytest.mark.parametrize("wing", sorted(WINGS))
def test_a_wing_lists_its_rooms_and_imports_nothing(wing: str) -> None:
    rooms = {room.rpartition(".")[2] for room in ROOMS if wing_of(room, WINGS) == wing and room != wing}
    inner = {each.rpartition(".")[2] for each in WINGS if each.rpartition(".")[0] == wing}
    assert FEWEST <= len(rooms) <= MOST, rooms
    [statement] = ast.parse(ROOMS[wing]).body
    assert isinstance(statement, ast.Expr)
    docstring = ast.get_docstring(ast.parse(ROOMS[wing]))
    assert docstring is not None
    assert set(re.findall(r"^(\w+)  ", docstring, re.MULTILINE)) == rooms | inner


ROWS = """\
| wing | what it holds | may import |
| --- | --- | --- |
| `__init__` | v | nothing |
| `low` | x | nothing |
| `serving` | y | low, `__init__` |
| `serving.inner` | z | serving |
"""
SOUND = {
    "__init__": "",
    "low": "import os\n",
    "serving": '"""A wing."""\n',
    "serving.framing": "import forkd\nfrom forkd.low import this\n",
    "serving.other": "from forkd.serving import framing",
    "serving.inner": '"""A wing in a wing."""\n',
    "serving.inner.room": "from forkd.serving.other import that",
}
SOUND_WINGS = {"serving", "serving.inner"}


def test_the_table_is_read_as_it_is_written() -> None:
    assert read_map(f"# Title\n\n| other | table |\n|---|---|\n\n{ROWS}\n| not | of | it |\n") == {
        "__init__": set(),
        "low": set(),
        "serving": {"low", "__init__"},
        "serving.inner": {"serving"},
    }
    assert breaches(SOUND, SOUND_WINGS, read_map(ROWS)) == []
    assert used_wings(SOUND, SOUND_WINGS) == read_map(ROWS)


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ({"low": "from forkd.serving import framing"}, "low imports serving.framing"),
        ({"low": "import forkd.serving.framing as f"}, "low imports serving.framing"),
        ({"low": "from forkd.serving.framing import Lines"}, "low imports serving.framing"),
        ({"low": "from .serving import framing"}, "low imports serving.framing"),
        ({"low": "from .serving.framing import Lines"}, "low imports serving.framing"),
        ({"low": "import forkd"}, "low imports __init__"),
        ({"low": "def f():\n    from forkd.serving import framing"}, "low imports serving.framing"),
        (
            {"low": "class C:\n    def f(self):\n        import forkd.serving.framing"},
            "low imports serving.framing inside a function",
        ),
        ({"serving.framing": "def f():\n    import forkd.low"}, "serving.framing imports low inside a function"),
        (
            {"low": "if True:\n    try:\n        import forkd.serving.framing\n    except E: pass"},
            "low imports serving.framing",
        ),
        ({"low": "from forkd.serving import framing"}, "a ring: low -> serving.framing -> low"),
        ({"low": "from forkd.serving.inner import room"}, "a ring: low -> serving.inner -> serving -> low"),
        ({"low": "import forkd.low"}, "a ring: low -> low"),
        ({"serving.framing": "from . import other"}, "a ring: serving.framing -> serving.other -> serving.framing"),
        ({"serving.framing": "import socket"}, "serving.framing imports socket"),
        ({"serving.framing": "from time import monotonic"}, "serving.framing imports time"),
        ({"serving.framing": "def f():\n    import time"}, "serving.framing imports time"),
        ({"serving.other": "import msgspec"}, "serving.other imports msgspec"),
        ({"lifecycle.pool": "import os.path"}, "lifecycle.pool imports os"),
        ({"new": "x = 1"}, "new has no row"),
        ({"serving.inner.room": "from forkd import low"}, "serving.inner.room imports low"),
        ({"serving": "from forkd.serving import framing"}, "serving imports something"),
    ],
)
def test_a_breach_is_noticed(planted: dict[str, str], told: str) -> None:
    rooms = {**SOUND, **planted}
    assert told in breaches(rooms, SOUND_WINGS, read_map(ROWS))


def test_a_row_without_a_module_is_noticed() -> None:
    assert "low is neither a wing nor a module" in breaches({"__init__": ""}, set(), read_map(ROWS))
