"""Builds forkd's wheel without the network, for tests of an installation's contents."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from tests.server import ROOT

_PARTS = ("pyproject.toml", "README.md", "LICENSE", "forkd", "man", "completion", "systemd", "etc")


def builder_missing() -> str:
    """Returns why no wheel can be built here, as a skip reason; "" if one can."""
    wanted = re.findall(
        r"[0-9]+", (tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"][0])
    )
    try:
        metadata.version("pip")
        found = metadata.version("setuptools")
    except metadata.PackageNotFoundError as missing:
        return f"building a wheel needs {missing.name}"
    return "" if int(found.partition(".")[0]) >= int(wanted[0]) else f"setuptools {found} is too old to build a wheel"


def build(folder: Path) -> Path:
    """Builds the wheel into `folder` and returns its path. Works on a copy, because a build leaves files behind."""
    source = folder / "source"
    source.mkdir()
    for part in _PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    done = subprocess.run([*pip, *offline, str(source)], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(source)
    (file,) = folder.glob("*.whl")
    return file
