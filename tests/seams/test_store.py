"""The names of stored sockets, and which of the returned sockets are accepted."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkd.kernel.address import Address, parse
from forkd.systemd import store
from forkd.systemd.store import Stored


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("127.0.0.1:7007", "forkd=127.0.0.1%3A7007"),
        ("[::1]:7007", "forkd=[%3A%3A1]%3A7007"),
        ("*:7007", "forkd=*%3A7007"),
        ("host.example:7007", "forkd=host.example%3A7007"),
        ("127.0.0.1:0", "forkd=127.0.0.1%3A0=echo"),
        ("unix:@name", "forkd=unix%3A@name"),
        ("unix:@\udcff", "forkd=unix%3A@%FF"),
        ("unix:/no/such/file", ""),
        ("systemd:web", ""),
        (f"{'x' * 63}.{'y' * 63}.{'z' * 63}.{'x' * 60}:7", ""),
    ],
)
def test_a_label_is_made_of_the_address(text: str, label: str) -> None:
    assert store.label(parse(text), "echo") == label


def test_a_files_label_is_that_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a socket=100%"
    path.touch()
    first = store.label(Address(str(path), 0, "unix"), "echo")
    assert first == f"forkd=unix%3A{tmp_path}/a%20socket%3D100%25={path.stat().st_ino}"
    path.rename(tmp_path / "elsewhere")
    path.touch()
    assert store.label(Address(str(path), 0, "unix"), "echo") != first


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=100), st.booleans()
)
def test_a_label_has_what_a_name_may_have(path: str, abstract: bool) -> None:
    """FDNAME= of sd_notify(3) allows no others."""
    label = store.label(Address(f"@{path}" if abstract else f"/dev/{path}", 0, "unix"), "echo")
    assert label == "" or (re.fullmatch(r"[!-9;-~]{1,255}", label) and store.is_label(label))


def test_no_name_of_a_unit_is_taken_for_a_label() -> None:
    for name in ("forkd.socket", "forkd@echo.socket", "forkd", "unknown", "stored", "connection"):
        assert not store.is_label(name)


def test_what_is_claimed_is_gone_and_what_nobody_wants_is_closed() -> None:
    with socket.socket() as one, socket.socket() as other, socket.socket() as third:
        stored = Stored([("a", one), ("a", other), ("b", third)])
        stored.keep_only({"a"})
        assert third.fileno() == -1
        assert stored.misfits == ["b"]
        assert stored.claim("a", lambda sock: sock is other) is other
        assert stored.claim("a", lambda sock: sock is other) is None
        assert stored.claim("c", lambda sock: True) is None
        stored.give_up("a")
        assert one.fileno() == -1
        assert other.fileno() != -1
        assert (stored.found, stored.misfits) == ([], ["b", "a"])
