"""What an installation does with each file, given what should be there, what is there, and what was installed."""

from __future__ import annotations

import pytest

from forkd.cli.install.plan import InstallStep, Piece, What, decide, undo

OLD, NEW, CHANGED = (Piece("/unit", content, beside=True) for content in (b"old", b"new", b"changed"))
SETTINGS = Piece("/settings", b"new", settings=True, beside=True)
PAGE = Piece("/page", b"new")


def done(steps: list[InstallStep]) -> dict[str, tuple[What, str | None]]:
    return {each.path: (each.what, each.now) for each in steps}


@pytest.mark.parametrize(
    ("piece", "there", "record", "expected"),
    [
        pytest.param(NEW, {}, {}, {"/unit": (What.PUT, NEW.digest)}, id="nothing is there"),
        pytest.param(NEW, {}, {"/unit": OLD.digest}, {"/unit": (What.PUT, NEW.digest)}, id="a unit was removed"),
        pytest.param(
            SETTINGS,
            {},
            {"/settings": OLD.digest},
            {"/settings": (What.NOTHING, OLD.digest)},
            id="settings were removed",
        ),
        pytest.param(
            NEW, {"/unit": NEW.digest}, {"/unit": NEW.digest}, {"/unit": (What.NOTHING, NEW.digest)}, id="in place"
        ),
        pytest.param(NEW, {"/unit": NEW.digest}, {}, {"/unit": (What.NOTHING, None)}, id="identical, but not ours"),
        pytest.param(
            NEW, {"/unit": OLD.digest}, {"/unit": OLD.digest}, {"/unit": (What.REPLACE, NEW.digest)}, id="an update"
        ),
        pytest.param(
            NEW,
            {"/unit": CHANGED.digest},
            {"/unit": OLD.digest},
            {"/unit": (What.LEAVE, NEW.digest), "/unit.new": (What.PUT, NEW.digest)},
            id="an update of a changed file",
        ),
        pytest.param(
            NEW,
            {"/unit": CHANGED.digest},
            {"/unit": NEW.digest},
            {"/unit": (What.NOTHING, NEW.digest)},
            id="changed, without an update",
        ),
        pytest.param(
            NEW,
            {"/unit": CHANGED.digest, "/unit.new": NEW.digest},
            {"/unit": NEW.digest, "/unit.new": NEW.digest},
            {"/unit": (What.NOTHING, NEW.digest), "/unit.new": (What.NOTHING, NEW.digest)},
            id="changed, and the new one is already beside it",
        ),
        pytest.param(
            NEW,
            {"/unit": CHANGED.digest},
            {},
            {"/unit": (What.LEAVE, NEW.digest), "/unit.new": (What.PUT, NEW.digest)},
            id="not ours",
        ),
        pytest.param(
            NEW,
            {"/unit": CHANGED.digest, "/unit.new": CHANGED.digest},
            {},
            {"/unit": (What.LEAVE, NEW.digest)},
            id="not ours, nor is the one beside it",
        ),
        pytest.param(
            PAGE, {"/page": CHANGED.digest}, {}, {"/page": (What.LEAVE, PAGE.digest)}, id="nothing is put beside a page"
        ),
    ],
)
def test_each_file_has_its_step(
    piece: Piece, there: dict[str, str], record: dict[str, str], expected: dict[str, tuple[What, str | None]]
) -> None:
    assert done(decide([piece], there, record)) == expected


def test_an_unneeded_file_is_removed_unless_it_was_changed() -> None:
    record = {"/a": "1", "/b": "1", "/c": "1"}
    steps = decide([], {"/a": "1", "/b": "2"}, record)
    assert done(steps) == {"/a": (What.REMOVE, None), "/b": (What.LEAVE, None), "/c": (What.NOTHING, None)}


def test_a_new_version_beside_goes_when_the_file_has_become_it() -> None:
    steps = decide(
        [NEW], {"/unit": NEW.digest, "/unit.new": NEW.digest}, {"/unit": NEW.digest, "/unit.new": NEW.digest}
    )
    assert done(steps) == {"/unit": (What.NOTHING, NEW.digest), "/unit.new": (What.REMOVE, None)}


def test_undo_removes_unchanged_files() -> None:
    steps = undo({"/a": "1", "/b": "2"}, {"/a": "1", "/b": "1", "/c": "1"})
    assert done(steps) == {"/a": (What.REMOVE, None), "/b": (What.LEAVE, None), "/c": (What.NOTHING, None)}


def test_a_link_is_recognised_by_its_target() -> None:
    link = Piece("/bin/forkd", link="/opt/forkd/bin/forkd")
    assert done(decide([link], {"/bin/forkd": "link:/elsewhere"}, {"/bin/forkd": "link:/elsewhere"})) == {
        "/bin/forkd": (What.REPLACE, "link:/opt/forkd/bin/forkd")
    }
