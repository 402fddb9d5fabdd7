"""The conditions of a run: machine, versions, counts."""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import forkd
from bench import processes


def begin(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the conditions at the start. Takes a second, to see how busy the machine is without us."""
    before = processes.machine()
    time.sleep(1)
    quiet = processes.machine().since(before)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "began": time.time(),
        "began machine": processes.machine(),
        "busy before": 1 - quiet.idle / quiet.total,
        "python": platform.python_version(),
        "kernel": re.split(r"[^\d.]", platform.release())[0].rstrip("."),
        "processor": _processor(),
        "cores": len(processes.CORES),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "seed": options.seed,
        "trials": options.only,
        "versions": _versions(),
    }


def end(run: dict[str, Any]) -> dict[str, Any]:
    """Returns the conditions so far, with the minutes that the run took and the share of time stolen from it."""
    spent = processes.machine().since(run["began machine"])
    told = {key: value for key, value in run.items() if not key.startswith("began")}
    return told | {"minutes": (time.time() - run["began"]) / 60, "stolen": spent.stolen / max(1, spent.total)}


def _processor() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {"forkd": forkd.__version__}
    for name in ("uvloop", "gevent", "twisted"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    found["Net::Server"] = _said(["perl", "-MNet::Server", "-e", "print $Net::Server::VERSION"])
    found["Perl"] = _said(["perl", "-e", "print substr($^V, 1)"])
    found["C compiler"] = _said(["cc", "-dumpfullversion"])
    found["redis-benchmark"] = _said(["redis-benchmark", "--version"]).removeprefix("redis-benchmark ")
    found["ucspi-tcp"] = _said(["dpkg-query", "-W", "-f", "${Version}", "ucspi-tcp"])
    return {name: version for name, version in found.items() if version}


def _said(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return done.stdout.strip() if done.returncode == 0 else ""
