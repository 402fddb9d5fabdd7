"""Network namespaces for tests: a small network of our own, where packets can be lost on purpose.

Everything happens inside the namespaces that a test makes (ip-netns(8), veth(4), nft(8)); nothing
of the machine's own network is touched. Ask `missing()` first, and skip with the reason it gives.
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
    """Why no namespace can be made here, as the reason to skip with; None if one can."""
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
    """A network namespace by its name, as ip-netns(8) knows it."""

    name: str

    def command(self, *argv: str) -> list[str]:
        """The command line that runs `argv` inside; its pid is the program's own, for ip execs it."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str) -> str:
        """Run `argv` inside to its end and give its output; CalledProcessError if it fails."""
        return _run(*self.command(*argv))

    def filter(self, rule: str) -> None:
        """Add an nftables rule for packets that come in, as "tcp dport 7 drop"."""
        table = "inet forkd_test"
        self.run("nft", f"add table {table}; add chain {table} incoming {{ type filter hook input priority 0; }}")
        self.run("nft", f"add rule {table} incoming {rule}")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A new namespace with loopback up and nothing else; gone at the end, with all it holds."""
    name = f"forkd-test-{os.getpid()}-{next(_numbers)}"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "-n", name, "link", "set", "lo", "up")
        yield Namespace(name)
    finally:
        _run("ip", "netns", "delete", name)


def join(one: Namespace, other: Namespace, one_address: str, other_address: str) -> None:
    """Lay a cable between two namespaces; the addresses are written with their prefix, as 198.18.0.1/24."""
    # Both ends are born inside, so the machine's own namespace never sees them.
    _run("ip", "-n", one.name, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", other.name)
    for end, address in ((one, one_address), (other, other_address)):
        _run("ip", "-n", end.name, "address", "add", address, "dev", "cable")
        _run("ip", "-n", end.name, "link", "set", "cable", "up")


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout
