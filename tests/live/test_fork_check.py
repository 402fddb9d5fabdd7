"""An application whose import leaves threads and sockets behind: a warning, a refusal, or neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from forkd.errors import ControlError
from tests.conftest import Forkd
from tests.server import HANDLERS, exchange, program, until

FILE = """
[service.test]
app = "{app}"
path = "{handlers}"
listen = "127.0.0.1:0"
workers = 1
fork_check = "{check}"
"""


def file(app: str, check: str) -> str:
    return FILE.format(app=app, handlers=HANDLERS, check=check)


def test_it_is_warned_of_by_name(forkd: Forkd) -> None:
    server = forkd("untidy:shout", workers=1).serving()
    server.said(r"warning after the import the thread 'the clock' runs; .*lifespan.* service=test")
    server.said(r"warning after the import a socket at 127\.0\.0\.1:\d+ is open \(descriptor \d+\); ")
    assert exchange(server.connect(), b"served\n") == b"SERVED\n"


def test_it_is_let_be(forkd: Forkd) -> None:
    server = forkd(file=file("untidy:shout", "off")).serving()
    assert exchange(server.connect(), b"served\n") == b"SERVED\n"
    assert not any("after the import" in line for line in server.lines)


def test_it_is_refused_at_a_start(forkd: Forkd) -> None:
    server = forkd(file=file("untidy:shout", "refuse"))
    assert server.exited() == 78
    server.said(
        r"forkd.toml:\d+: service.test.app: untidy:shout: after its import the thread 'the clock' runs, a socket"
    )


def test_it_is_refused_at_a_reload_and_nothing_changes(forkd: Forkd, tmp_path: Path) -> None:
    server = forkd(file=file("small:shout", "refuse")).serving()
    path = tmp_path / "forkd.toml"
    path.write_text(path.read_text().replace("small:shout", "untidy:shout"))
    with pytest.raises(ControlError, match="the thread 'the clock' runs"):
        server.ask(command="reload")
    assert exchange(server.connect(), b"served\n") == b"SERVED\n"


def test_a_tidy_application_is_not_complained_of(forkd: Forkd) -> None:
    server = forkd(file=file("small:shout", "refuse")).serving()
    until(lambda: server.status("test")["workers"]["total"] == 1)
    assert not any("after the import" in line for line in server.lines)


def test_check_tells_of_it(tmp_path: Path) -> None:
    (tmp_path / "forkd.toml").write_text(file("untidy:shout", "warn"))
    done = program("check", "forkd.toml", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning: forkd.toml:3: service.test.app: after the import the thread 'the clock' runs; start" in done.stderr
