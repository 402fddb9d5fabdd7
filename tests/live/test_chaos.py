"""A sample of `make chaos`: faults under load, with reduced counts."""

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


# A tenth of each scenario, or as much as fits into a test.
SAMPLE = [
    ("reload", "sync", "single", 0.02),
    ("reload", "sync", "persistent", 0.1),
    ("reload", "sync", "pipelined", 0.1),
    ("broken-reload", "sync", "persistent", 0.1),
    ("listeners", "sync", "pipelined", 0.1),
    ("scale", "sync", "single", 0.1),
    ("upgrade", "sync", "persistent", 0.1),
    ("recycle", "sync", "single", 0.1),
    ("recycle", "sync", "pipelined", 0.1),
    ("stop", "sync", "single", 0.1),
    ("stop", "sync", "persistent", 0.05),
    ("stop", "sync", "pipelined", 0.05),
    ("kill-workers", "sync", "single", 0.05),
    ("kill-workers", "sync", "persistent", 0.05),
    ("kill-fork-servers", "sync", "persistent", 0.1),
    ("kill-masters", "sync", "single", 0.1),
    ("kill-masters", "sync", "persistent", 0.1),
    ("signals", "sync", "single", 0.1),
    ("stopped-master", "sync", "persistent", 0.05),
    ("accept-errors", "sync", "single", 0.1),
    ("no-descriptors", "sync", "single", 0.3),
    ("descriptors", "sync", "persistent", 0.1),
    ("million", "sync", "pipelined", 0.1),
    ("raving", "sync", "single", 0.1),
    *(
        (scenario, kind, shape, 0.05)
        for kind in ("event", "threads", "async")
        for scenario, shape in [("reload", "persistent"), ("recycle", "pipelined"), ("stop", "single")]
    ),
    ("upgrade", "event", "persistent", 0.05),
    ("kill-workers", "event", "persistent", 0.05),
    ("raving", "threads", "single", 0.05),
    ("raving", "async", "single", 0.05),
]


@pytest.mark.parametrize(("scenario", "kind", "shape", "share"), SAMPLE)
def test_the_promises_hold_under_load(scenario: str, kind: str, shape: str, share: float) -> None:
    told = ["--share", str(share), "--kind", kind, "--shape", shape, scenario]
    program = [sys.executable, "-m", "tests.chaos", *told]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
