"""A sample of `make chaos`: faults under load, with a fraction of the counts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.server import ROOT

_MISSING = [each for each in ("ip", "unshare", "strace") if shutil.which(each) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        os.geteuid() != 0 or bool(_MISSING),
        reason=f"needs root, ip, unshare and strace, for a network and faults of its own (missing: {_MISSING})",
    ),
]


@pytest.mark.parametrize(
    ("scenario", "shape", "share"),
    [
        ("reload", "single", 0.02),
        ("reload", "persistent", 0.1),
        ("reload", "pipelined", 0.1),
        ("broken-reload", "persistent", 0.1),
        ("listeners", "pipelined", 0.1),
        ("scale", "single", 0.1),
        ("upgrade", "persistent", 0.1),
        ("recycle", "single", 0.1),
        ("recycle", "pipelined", 0.1),
        ("stop", "single", 0.1),
        ("stop", "persistent", 0.05),
        ("stop", "pipelined", 0.05),
        ("kill-workers", "single", 0.05),
        ("kill-workers", "persistent", 0.05),
        ("kill-fork-servers", "persistent", 0.1),
        ("kill-masters", "single", 0.1),
        ("kill-masters", "persistent", 0.1),
        ("signals", "single", 0.1),
        ("no-descriptors", "single", 0.3),
        ("descriptors", "persistent", 0.1),
        ("raving", "single", 0.1),
    ],
)
def test_the_promises_hold_under_load(scenario: str, shape: str, share: float) -> None:
    program = [sys.executable, "-m", "tests.chaos", "--share", str(share), "--shape", shape, scenario]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
