"""The wheel installs what is shipped beside the code where it is looked for."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests import wheel
from tests.server import ROOT

SHARED = {
    "share/man/man1/forkd.1": "man/forkd.1",
    "share/man/man5/forkd.toml.5": "man/forkd.toml.5",
    "share/bash-completion/completions/forkd": "completion/forkd",
    "share/zsh/site-functions/_forkd": "completion/_forkd",
    "share/fish/vendor_completions.d/forkd.fish": "completion/forkd.fish",
} | {
    f"share/forkd/{path.relative_to(ROOT)}": str(path.relative_to(ROOT))
    for folder in ("systemd", "etc")
    for path in (ROOT / folder).iterdir()
}


@pytest.mark.slow
def test_the_wheel_brings_what_is_shared(tmp_path: Path) -> None:
    if reason := wheel.builder_missing():
        pytest.skip(reason)
    with zipfile.ZipFile(wheel.build(tmp_path)) as built:
        found = {name.partition(".data/data/")[2]: built.read(name) for name in built.namelist() if ".data/" in name}
        assert {"forkd/cli/main.py", "forkd/py.typed"} <= set(built.namelist())
    assert found == {there: (ROOT / here).read_bytes() for there, here in SHARED.items()}
