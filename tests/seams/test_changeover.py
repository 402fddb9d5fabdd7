"""A reload or an upgrade, as far as it can be followed without a master: the result of each request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forkd.errors import Exit
from forkd.lifecycle.events import ReloadAsked
from forkd.master.reload import Changeover, Settled, after_upgrade
from forkd.master.site import open_site
from forkd.settings.config import Source
from forkd.systemd.passed import Passed

FILE = '[service.{}]\napp = "forkd.services:echo"\nlisten = ["127.0.0.1:0", "unix:{}/door"]\n'


def nobody(_: dict[str, Any]) -> None: ...


def other(_: dict[str, Any]) -> None: ...


def write(folder: Path, name: str = "echo") -> None:
    (folder / "forkd.toml").write_text(FILE.format(name, folder))


@pytest.fixture
def changeover(tmp_path: Path) -> Iterator[Changeover]:
    write(tmp_path)
    source, passed = Source(cores=1, file=str(tmp_path / "forkd.toml")), Passed([])
    made = Changeover(source, open_site(source.read(), passed), passed)
    yield made
    made.abandon("the test is over")
    made.site.close_but(None)


def test_a_reload_shares_listeners_and_is_in_force_when_it_is_committed(changeover: Changeover, tmp_path: Path) -> None:
    before = changeover.site
    write(tmp_path, "other")
    asked = changeover.read([nobody])
    assert isinstance(asked, ReloadAsked)
    assert [plan.service for plan in asked.plans] == ["other"]
    assert changeover.site is before
    assert changeover.site_of("other") is not before
    assert changeover.site_of("echo") is before
    old, coming = changeover.commit()
    assert (old, coming.callers) == (before, [nobody])
    assert changeover.site is coming.site
    assert changeover.site.listeners["other"][1] is old.listeners["echo"][1]
    assert changeover.abandon("late") is None


def test_settings_that_are_wrong_change_nothing(changeover: Changeover, tmp_path: Path) -> None:
    (tmp_path / "forkd.toml").write_text("[service.echo]\n")
    settled = changeover.read([nobody])
    assert isinstance(settled, Settled)
    assert (settled.what, settled.callers, settled.answer["status"]) == ("reload", [nobody], Exit.CONFIG)
    assert "service.echo.app" in settled.failure
    assert changeover.coming is None


def test_all_who_ask_while_a_reload_is_under_way_share_the_next(changeover: Changeover) -> None:
    assert changeover.next_callers() is None
    assert isinstance(changeover.read([nobody]), ReloadAsked)
    changeover.wait([other])
    changeover.wait([nobody])
    assert changeover.next_callers() is None
    settled = changeover.abandon("no database")
    assert settled is not None
    assert (settled.callers, settled.failure) == ([nobody], "no database")
    assert changeover.next_callers() == [other, nobody]
    assert changeover.next_callers() is None


def test_a_reload_that_no_one_waits_for_still_follows(changeover: Changeover) -> None:
    """A reload requested by a signal is of this kind."""
    changeover.read([])
    changeover.wait([])
    changeover.abandon("no database")
    assert changeover.next_callers() == []


def test_a_new_program_takes_over_when_it_is_rehearsed_and_nothing_else_is_under_way(changeover: Changeover) -> None:
    assert changeover.upgrade([nobody])
    assert not changeover.upgrade([other])
    assert changeover.successor_callers is None
    assert changeover.rehearsed("2.0", "") is None
    assert changeover.successor_callers == [nobody, other]
    changeover.read([])
    assert changeover.successor_callers is None
    changeover.commit()
    assert changeover.successor_callers == [nobody, other]


def test_a_new_program_that_does_not_start_is_given_up(changeover: Changeover) -> None:
    changeover.upgrade([nobody])
    settled = changeover.rehearsed("", "SyntaxError")
    assert settled is not None
    assert (settled.what, settled.callers) == ("upgrade", [nobody])
    assert settled.failure == "the new program does not start: SyntaxError"
    assert changeover.give_up_upgrade("late") is None
    assert changeover.rehearsed("2.0", "") is None
    assert changeover.successor_callers is None


def test_who_asked_for_an_upgrade_learns_that_only_the_program_is_new() -> None:
    heard: list[dict[str, Any]] = []
    answer = after_upgrade(heard.append)
    answer({"ok": True})
    answer({"ok": False, "error": "absent"})
    assert heard[0] == {"ok": True}
    assert heard[1]["error"].endswith(" has taken over, but the services are the old ones: absent")
