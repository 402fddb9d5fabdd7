"""The table of worker kinds."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

import forkd
from forkd.errors import BootError
from forkd.ipc.worker_kinds import DEFAULT_KIND, KINDS, those_that


def answer(request: bytes) -> bytes:
    return request


async def awaited(request: bytes) -> bytes:
    return request


def session(connection: forkd.Connection) -> None:
    connection.close()


async def awaited_session(connection: forkd.AsyncConnection) -> None:
    connection.close()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("is_async", [False, True])
def test_each_kind_has_its_loops(name: str, is_async: bool) -> None:
    kind = KINDS[name]
    if not is_async or kind.runs_coroutines(0):
        assert callable(import_module(kind.loop_for(is_async)).serve)


def test_the_default_is_a_kind() -> None:
    assert DEFAULT_KIND in KINDS


def test_a_message_names_the_kinds_that_can() -> None:
    assert those_that(lambda kind: kind.takes_threads) == 'worker = "event"'
    assert those_that(lambda kind: True) == 'worker = "sync" or worker = "event"'


@pytest.mark.parametrize(
    ("handler", "able"),
    [
        (answer, {"sync", "event", "threads"}),
        (awaited, {"event"}),
        (session, {"sync", "threads"}),
        (awaited_session, {"event"}),
    ],
)
def test_which_workers_suit_a_service(handler: Callable[..., Any], able: set[str]) -> None:
    service = (forkd.stream if "session" in handler.__name__ else forkd.service(forkd.Lines()))(handler)
    found = set()
    for name, kind, threads in (("sync", "sync", 0), ("event", "event", 0), ("threads", "event", 2)):
        try:
            service.suits(kind, threads)
        except BootError:
            continue
        found.add(name)
    assert found == able
