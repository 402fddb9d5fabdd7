"""Network namespaces for tests: a small private network in which packets can be lost on purpose.

Everything happens inside the namespaces that a test makes (ip-netns(8), veth(4), nft(8)); the machine's own
network is not touched. Call `missing()` first, and skip with the reason it returns.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_numbers = itertools.count()


@functools.cache
def missing() -> str | None:
    """Returns why no namespace can be made here, as a skip reason; None if one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft"):
        if not shutil.which(tool):
            return f"network namespaces need the program {tool}"
    try:
        with namespace() as trial:
            trial.filter("ip daddr 198.18.0.1 accept")
    except subprocess.CalledProcessError as error:
        return f"network namespaces do not work here: {error.stderr.strip()}"
    return None


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, by its name in ip-netns(8)."""

    name: str

    def command(self, *argv: str) -> list[str]:
        """Returns the command line that runs `argv` inside. Its PID is the program's own, since ip execs it."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str) -> str:
        """Runs `argv` inside to its end and returns its output; CalledProcessError if it fails."""
        return _run(*self.command(*argv))

    def filter(self, rule: str) -> None:
        """Adds an nftables rule for incoming packets, such as "tcp dport 7 drop"."""
        table = "inet forkd_test"
        self.run("nft", f"add table {table}; add chain {table} incoming {{ type filter hook input priority 0; }}")
        self.run("nft", f"add rule {table} incoming {rule}")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Yields a new namespace with only loopback up; removes it, and everything in it, at the end."""
    name = f"forkd-test-{os.getpid()}-{next(_numbers)}"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "-n", name, "link", "set", "lo", "up")
        yield Namespace(name)
    finally:
        _run("ip", "netns", "delete", name)


def join(one: Namespace, other: Namespace, one_address: str, other_address: str) -> None:
    """Connects two namespaces by a cable. The addresses include their prefix length, as in 198.18.0.1/24."""
    # Both ends are created inside, so they never appear in the machine's own namespace.
    _run("ip", "-n", one.name, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", other.name)
    for end, address in ((one, one_address), (other, other_address)):
        _run("ip", "-n", end.name, "address", "add", address, "dev", "cable")
        _run("ip", "-n", end.name, "link", "set", "cable", "up")


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout
