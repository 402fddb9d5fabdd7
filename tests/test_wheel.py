"""The wheel brings the manual pages, and the completion for shells, to where they are looked for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.server import ROOT

PARTS = ("pyproject.toml", "README.md", "LICENSE", "forkd", "man", "completion")
SHARED = {
    "share/man/man1/forkd.1": "man/forkd.1",
    "share/man/man5/forkd.toml.5": "man/forkd.toml.5",
    "share/bash-completion/completions/forkd": "completion/forkd",
    "share/zsh/site-functions/_forkd": "completion/_forkd",
    "share/fish/vendor_completions.d/forkd.fish": "completion/forkd.fish",
}


def builder_missing() -> str:
    """Why no wheel can be built without the network, as the reason to skip with."""
    wanted = re.findall(
        r"[0-9]+", (tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"][0])
    )
    try:
        metadata.version("pip")
        found = metadata.version("setuptools")
    except metadata.PackageNotFoundError as missing:
        return f"a wheel is built with {missing.name}"
    return "" if int(found.partition(".")[0]) >= int(wanted[0]) else f"setuptools {found} is too old to build a wheel"


@pytest.mark.slow
def test_the_wheel_brings_what_is_shared(tmp_path: Path) -> None:
    if reason := builder_missing():
        pytest.skip(reason)
    source = tmp_path / "source"  # a build leaves things behind
    source.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    done = subprocess.run([*pip, *offline, str(source)], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        found = {name.partition(".data/data/")[2]: wheel.read(name) for name in wheel.namelist() if ".data/" in name}
        assert {"forkd/cli.py", "forkd/py.typed"} <= set(wheel.namelist())
    assert found == {there: (ROOT / here).read_bytes() for there, here in SHARED.items()}
