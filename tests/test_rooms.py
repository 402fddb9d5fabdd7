"""The map of ARCHITECTURE.md against the imports: who may know whom, and who may know the kernel."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.server import ROOT

ROOMS = {path.stem: path.read_text() for path in sorted((ROOT / "forkd").glob("*.py"))}
MAP = (ROOT / "ARCHITECTURE.md").read_text()

# No rooms, and so without a row: the public names, and the name of the program.
DOORWAYS = {
    "__init__": {"address", "asyncconnection", "connection", "errors", "framing", "handler", "limits"},
    "__main__": {"cli"},
}
# What a room may not know of the standard library: deciding and framing are pure.
REFUSED = {
    "lifecycle": {"os", "signal", "socket", "time"},
    "pool": {"os", "signal", "socket", "time"},
    "generation": {"os", "signal", "socket", "time"},
    "events": {"os", "signal", "socket", "time"},
    "framing": {"socket", "time"},
    "record": {"os", "select", "socket", "time"},
    "portmap": {"os", "select", "socket", "time"},
    "reports": {"os", "signal", "socket", "time"},
    "loadplan": {"os", "select", "socket", "time"},
    "loadreplies": {"os", "select", "socket", "time"},
    "loadtally": {"os", "select", "socket", "time"},
    "loadturns": {"os", "select", "socket", "time"},
}
# A heavy room that a command of its own needs, and the others do without.
LATE = {
    "cli": {"master", "table"},
    "installcommand": {"installation"},
    "loadcommand": {"load", "loadplan"},
    "startcommands": {"detach", "master"},
    "worker": {"tasks"},
}


def read_map(text: str) -> dict[str, set[str]]:
    """Each row of the table "| module | purpose | may import |": the rooms that it allows."""
    lines = iter(text.splitlines())
    for line in lines:
        if _cells(line) == ["module", "purpose", "may import"]:
            break
    rows: dict[str, set[str]] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        module, _, allowed = _cells(line)
        if not set(module) <= set("-: "):
            rows[module.strip("`")] = set() if allowed == "nothing" else set(re.split(r"[\s,`]+", allowed.strip("`")))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def imported(source: str) -> Iterator[tuple[str, bool]]:
    """The name of each module that is imported, forkd's own as "forkd.NAME"; and whether that is inside a function."""
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
            module = "forkd" + (f".{node.module}" if node.module else "") if node.level else node.module or ""
            if module == "forkd":
                yield from ((f"forkd.{alias.name}", late) for alias in node.names)
            else:
                yield module, late


def breaches(rooms: Mapping[str, str], rows: Mapping[str, set[str]]) -> list[str]:
    """What is wrong with the modules' sources by this map."""
    allowed = {**rows, **DOORWAYS}
    found = [f"{name} has no row" for name in rooms if name not in allowed]
    found += [f"{name} is no module" for name in rows if name not in rooms]
    graph: dict[str, set[str]] = {}
    for room, source in rooms.items():
        edges = graph[room] = set()
        for name, late in imported(source):
            top, _, rest = name.partition(".")
            if top in REFUSED.get(room, ()):
                found.append(f"{room} imports {top}")
            if top != "forkd":
                continue
            other = rest.partition(".")[0] or "__init__"
            edges.add(other)
            if other not in {"__init__" if each == "forkd" else each for each in allowed.get(room, ())}:
                found.append(f"{room} imports {other}")
            if late and other not in LATE.get(room, ()):
                found.append(f"{room} imports {other} inside a function")
    return found + cycles(graph)


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


def test_the_modules_keep_to_the_map() -> None:
    assert breaches(ROOMS, read_map(MAP)) == []


def test_the_map_allows_nothing_that_is_not_needed() -> None:
    for room, allowed in read_map(MAP).items():
        used = {name.removeprefix("forkd.") for name, _ in imported(ROOMS[room]) if name.partition(".")[0] == "forkd"}
        assert allowed == {name.partition(".")[0] for name in used}, room


def test_the_refused_are_there() -> None:
    assert REFUSED.keys() | LATE.keys() <= ROOMS.keys()


ROWS = """\
| module | purpose | may import |
| --- | --- | --- |
| `low` | x | nothing |
| `framing` | y | low, `forkd` |
"""
SOUND = {"low": "import os\n", "framing": "import forkd\nfrom forkd.low import this\n"}


def test_the_table_is_read_as_it_is_written() -> None:
    assert read_map(f"# Title\n\n| other | table |\n|---|---|\n\n{ROWS}\n| not | of | it |\n") == {
        "low": set(),
        "framing": {"low", "forkd"},
    }
    assert breaches(SOUND, read_map(ROWS)) == []


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ({"low": "from forkd import framing"}, "low imports framing"),
        ({"low": "import forkd.framing as f"}, "low imports framing"),
        ({"low": "from forkd.framing import Lines"}, "low imports framing"),
        ({"low": "from . import framing"}, "low imports framing"),
        ({"low": "from .framing import Lines"}, "low imports framing"),
        ({"low": "import forkd"}, "low imports __init__"),
        ({"low": "def f():\n    from forkd import framing"}, "low imports framing"),
        ({"low": "class C:\n    def f(self):\n        import forkd.framing"}, "low imports framing inside a function"),
        ({"framing": "def f():\n    import forkd.low"}, "framing imports low inside a function"),
        ({"low": "if True:\n    try:\n        import forkd.framing\n    except E: pass"}, "low imports framing"),
        ({"low": "from forkd import framing"}, "a ring: low -> framing -> low"),
        ({"low": "import forkd.low"}, "a ring: low -> low"),
        ({"framing": "import socket"}, "framing imports socket"),
        ({"framing": "from time import monotonic"}, "framing imports time"),
        ({"framing": "def f():\n    import time"}, "framing imports time"),
        ({"pool": "import os.path"}, "pool imports os"),
        ({"new": "x = 1"}, "new has no row"),
        ({"__main__": "from forkd import low"}, "__main__ imports low"),
    ],
)
def test_a_breach_is_noticed(planted: dict[str, str], told: str) -> None:
    rooms = {**SOUND, **planted}
    assert told in breaches(rooms, read_map(ROWS))


def test_a_row_without_a_module_is_noticed() -> None:
    assert breaches({"framing": ""}, read_map(ROWS)) == ["low is no module"]


def test_everything_is_in_one_folder() -> None:
    assert [path for path in (ROOT / "forkd").rglob("*.py") if path.parent != Path(ROOT / "forkd")] == []
