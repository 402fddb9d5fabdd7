"""A master regards no process as a stray unless systemd has started the master."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.server import ROOT, alive


def test_who_is_not_started_by_systemd_kills_nobody() -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        for told in (None, "1", str(os.getpid())):  # a PID that was inherited, if any
            environment = {name: value for name, value in os.environ.items() if name != "SYSTEMD_EXEC_PID"}
            environment |= {"PYTHONPATH": str(ROOT)} | ({"SYSTEMD_EXEC_PID": told} if told else {})
            code = "from forkd.systemd import strays; strays.end()"
            assert (
                subprocess.run([sys.executable, "-c", code], env=environment, timeout=20, check=False).returncode == 0
            )
            assert alive(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait(20)
