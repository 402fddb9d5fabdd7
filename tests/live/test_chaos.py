"""A sample of `make chaos`: faults under load, with a fraction of the counts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.server import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare, for a network of its own"
    ),
]


@pytest.mark.parametrize(
    ("scenario", "shape"),
    [
        ("reload", "persistent"),
        ("reload", "pipelined"),
        ("broken-reload", "single"),
        ("stop", "single"),
        ("stop", "pipelined"),
        ("kill-workers", "single"),
        ("kill-fork-servers", "persistent"),
    ],
)
def test_the_promises_hold_under_load(scenario: str, shape: str) -> None:
    program = [sys.executable, "-m", "tests.chaos", "--share", "0.02", "--shape", shape, scenario]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
