"""Checks that the reference pages list what the code has: commands, options, keys, framings and public names."""

from __future__ import annotations

import inspect
import os
import random
import re
from ast import literal_eval
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import click
import pytest

import forkd
import forkd.services
import forkd.testing
from forkd.cli.main import cli
from forkd.ipc.scoreboard import ROW_BYTES, Board
from forkd.kernel import address
from forkd.lifecycle.pool import Pool
from forkd.lifecycle.server import Phase
from forkd.lifecycle.states import WorkerState
from forkd.master import commands, status
from forkd.sockets.rpcbind.protocol import Mapping as Registration
from forkd.sockets.rpcbind.registry import Registry
from forkd.workers.account import Account
from tests.server import ROOT
from tests.test_shipped import table

REFERENCE = ROOT / "docs/reference"


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text()


def firsts(text: str, *header: str) -> list[str]:
    """Returns the first column of the table with this header; AssertionError if there is none."""
    rows = table(text, *header)
    assert rows, header
    return [row[0] for row in rows]


def sections(text: str) -> dict[str, str]:
    """Returns what is below each heading of the second level, by its title."""
    parts = re.split(r"(?m)^## (.+)$", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def keys(value: Any, name: str = "") -> Iterator[str]:
    """Yields the path of each leaf of a document, with dots."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from keys(each, f"{name}.{key}" if name else key)
    else:
        yield name


def test_commands() -> None:
    rows = table(page("commands"), "command", "does")
    names = [re.sub(r"\W*(\w+).*", r"\1", row[0]) for row in rows]
    assert sorted(names) == sorted(cli.commands)
    found = sections(page("commands"))
    assert [f"forkd {name}" for name in names] == [title for title in found if title.startswith("forkd ")]


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_options_of_a_command(name: str) -> None:
    found = sections(page("commands"))
    told = found[f"forkd {name}"]
    shared = {"start": ["forkd run"], "restart": ["forkd run"]}.get(name, [])
    if f"`{name}`" in found["How a command finds the running forkd"]:
        shared = ["How a command finds the running forkd"]
    options = {
        option
        for each in cli.commands[name].params
        if isinstance(each, click.Option)
        for option in each.opts
        if option.startswith("--")
    }
    listed = {
        option
        for text in [told, *(found[title] for title in shared)]
        for row in re.findall(r"(?m)^\| (`-.*?) \|", text)
        for option in re.findall(r"--[a-z0-9-]+", row)
    }
    assert listed == options


def test_addresses() -> None:
    for text in firsts(page("addresses"), "address", "forkd listens on"):
        assert str(address.parse(text)) == text


def test_framings() -> None:
    shown = firsts(page("framings"), "framing", "a request is")
    built_in = {name for name in forkd.__all__ if hasattr(getattr(forkd, name), "feed")} - {"Framing"}
    assert {text.partition("(")[0] for text in shown} == built_in
    for text in shown:
        name, _, parameters = text.removesuffix(")").partition("(")
        given = [each.partition("=") for each in filter(None, parameters.split(", "))]
        wanted = inspect.signature(getattr(forkd, name)).parameters.values()
        assert [(key, literal_eval(value) if value else inspect.Parameter.empty) for key, _, value in given] == [
            (each.name, each.default) for each in wanted
        ], name


def test_the_framing_on_the_page_is_one() -> None:
    (source,) = re.findall(r'(?ms)^```python title="words.py"\n(.*?)^```$', page("framings"))
    module: dict[str, Any] = {"__name__": "words"}
    exec(source, module)
    assert isinstance(module["Words"](), forkd.Framing)
    with forkd.testing.connect(module["shout"]) as client:
        client.send(b"one tw")
        client.send(b"o three")
        assert client.read_all() == b"ONE TWO THREE "


def test_public_names() -> None:
    listed = re.findall(r"(?m)^::: forkd\.(\S+)$", page("api"))
    services = [f"services.{name}" for name, each in vars(forkd.services).items() if isinstance(each, forkd.Service)]
    assert sorted(listed) == sorted([*forkd.__all__, "testing.connect", "testing.Client", *services])


def test_members_on_the_page_exist() -> None:
    for name, members in re.findall(r"(?m)^::: forkd\.(\S+)\n(?:    .*\n)*?      members: \[(.*)\]$", page("api")):
        owner: Any = forkd
        for part in name.split("."):
            owner = getattr(owner, part)
        assert [each for each in members.split(", ") if not hasattr(owner, each)] == [], name


def test_fields_of_access_records() -> None:
    assert firsts(page("log"), "access field", "meaning") == [*Account._fields, "end"]


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create("reference")
    yield made
    os.close(made.fd)


def test_keys_of_the_status(board: Board) -> None:
    site: Any = SimpleNamespace(settings=SimpleNamespace(file="", services={}))
    life: Any = SimpleNamespace(phase=Phase.SERVING)
    none: Any = None
    document = status.snapshot(site, life, none, none, started=0.0, detached=False)
    assert firsts(page("status"), "key of the master", "meaning") == list(document["master"])
    plan: Any = None
    service = status.service("a:b", [], Pool(plan, random.Random(0)), board, [])
    assert firsts(page("status"), "key of a service", "meaning") == [*keys(service), "rpcbind"]
    row = memoryview(bytearray(ROW_BYTES)).cast("Q")
    handle: Any = SimpleNamespace(
        service="a", slot=0, pid=os.getpid(), generation=1, born=0.0, row=row, counted=lambda name: 0
    )
    assert firsts(page("status"), "key of a worker", "meaning") == list(status.worker(handle, "serving", 1.0))
    registry: Any = SimpleNamespace(_wanted={"a": Registration(1, 1)}, _wrong={})
    assert firsts(page("status"), "key of the registration", "meaning") == list(Registry.state(registry, "a") or ())


def test_words_of_the_status() -> None:
    def words(key: str) -> set[str]:
        (meaning,) = re.findall(rf"(?m)^\| `{key}` \| (.*) \|$", page("status"))
        return set(re.findall(r"`([a-z]+)`", meaning))

    assert words("phase") == {phase.value for phase in Phase} - {Phase.ENDED.value}
    assert words("state") == {state.value for state in WorkerState} - {WorkerState.SERVING.value} | {"idle", "busy"}


def test_commands_of_the_control_socket() -> None:
    obeyed = re.findall(r'case \{"command": "(\w+)"', inspect.getsource(commands.obey_control))
    told = re.findall(r'(?m)^\| `\{"command": "(\w+)"', page("status"))
    assert sorted(told) == sorted(obeyed)
