"""Checks the imports against the table of wings in ARCHITECTURE.md, and that pure rooms stay free of the kernel."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

import pytest

from docs.tools.imports import imported, room_of, rooms_below, used_wings, wing_of, wings_below
from tests.server import ROOT

PACKAGE = ROOT / "forkd"
MAP = (ROOT / "ARCHITECTURE.md").read_text()


ROOMS = rooms_below(PACKAGE)
WINGS = wings_below(PACKAGE)
# Standard modules that these rooms must not import, because deciding, framing and formatting are pure.
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
    "serving.delimited_framings": {"socket", "time"},
    "serving.counted_framings": {"socket", "time"},
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
# Modules too heavy for a worker: no wing that a worker needs may import them.
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
    """Returns, for each row of the table "| wing | what it holds | may import |", the wings that it allows."""
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


def breaches(rooms: Mapping[str, str], wings: set[str], rows: Mapping[str, set[str]]) -> list[str]:
    """Returns everything in the modules' sources that breaks this map."""
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
    """Returns the rings of imports, each as the path that closes it."""
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
