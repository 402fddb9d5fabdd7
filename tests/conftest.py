"""The fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.server import HANDLERS, Server, running

Forkd = Callable[..., Server]


@pytest.fixture
def forkd(tmp_path: Path) -> Iterator[Forkd]:
    """Starts real servers: `forkd(app, key=value ...)` for one service, `forkd(file=TEXT)` for a settings file.

    `app` names a service of tests/handlers. The control socket is `control.sock` in the test's folder. Each server
    ends with its test.
    """
    with ExitStack() as servers:

        def start(
            app: str = "", *, file: str = "", listen: str = "127.0.0.1:0", master: str = "", **keys: object
        ) -> Server:
            if not file:
                keys.setdefault("path", f'"{HANDLERS}"')
                lines = "\n".join(f"{key} = {value}" for key, value in keys.items())
                file = f'[service.test]\napp = "{app}"\nlisten = "{listen}"\n{lines}\n'
            head = f'[master]\ncontrol = "{tmp_path}/control.sock"\n{master}\n'
            (tmp_path / "forkd.toml").write_text(head + file)
            return servers.enter_context(running(["forkd.toml"], tmp_path))

        yield start
