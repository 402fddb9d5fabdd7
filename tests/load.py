"""Clients that check every byte: `python -m tests.load ADDRESS SHAPE CLIENTS SEED`, until standard input ends.

SHAPE is `single` (a connection a request), `persistent` (requests with up to 20 ms of thought) or
`pipelined` (50 requests in one write). The last line of output is one JSON object: how many
requests ended how, and the ids that were sent and answered. Only a request that was sent and not
rightly answered is a loss; a connection that the server ends between two requests is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from tests.server import ROOT, connect

TIMEOUT = 20.0
PIPELINE = 50
THOUGHT = 0.02

LOSSES = ("refused", "reset", "cut short", "wrong", "timed out")


class Clients:
    """Some clients of one shape, each a thread with a closed loop."""

    def __init__(self, address: str, shape: str, count: int, seed: int) -> None:
        self.address = address
        self.shape = shape
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self.answered: list[str] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(seed * 1000 + number)))
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> dict[str, Any]:
        self.stop.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT)
        return dict(self.counts)

    def _run(self, number: int, chance: random.Random) -> None:
        sequence = 0
        while not self.stop.is_set():
            try:
                sock = connect(self.address, timeout=TIMEOUT)
            except OSError as error:
                self._count(_failure(error))
                self.stop.wait(0.001)
                continue
            with sock:
                sequence = self._converse(sock, number, sequence, chance)

    def _converse(self, sock: socket.socket, number: int, sequence: int, chance: random.Random) -> int:
        """One connection; gives the next number for a request."""
        reader = sock.makefile("rb")
        while True:
            size = PIPELINE if self.shape == "pipelined" else 1
            batch = []
            for _ in range(size):
                name = f"{os.getpid()}-{number}-{sequence}"
                batch.append(f"{name} {chance.randbytes(chance.randrange(1, 40)).hex()}".encode())
                sequence += 1
            if not self._ask(sock, reader, batch):
                return sequence
            if self.shape == "single" or self.stop.is_set():
                sock.shutdown(socket.SHUT_WR)
                if reader.read():
                    self._count("wrong")
                return sequence
            if self.shape == "persistent":
                self.stop.wait(chance.uniform(0, THOUGHT))
            if _ended(sock):
                self._count("ended between requests")
                return sequence

    def _ask(self, sock: socket.socket, reader: Any, batch: list[bytes]) -> bool:
        """Sends requests together and checks each reply; False when the connection is over."""
        done = 0
        try:
            sock.sendall(b"".join(request + b"\n" for request in batch))
            for request in batch:
                name = request.partition(b" ")[0]
                right = name + b" " + hashlib.sha256(request).hexdigest().encode() + b"\n"
                reply = reader.readline()
                if reply != right:
                    self._count("wrong" if reply.endswith(b"\n") else "cut short", len(batch) - done)
                    return False
                done += 1
                self._count("answered")
        except OSError as error:
            self._count(_failure(error), len(batch) - done)
            return False
        return True

    def _count(self, what: str, times: int = 1) -> None:
        with self._lock:
            self.counts[what] += times


class Load:
    """A load from another process, for a test: starts it, and later gives its counts."""

    def __init__(self, address: str, shape: str, clients: int = 8, seed: int = 1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load", address, shape, str(clients), str(seed)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has begun

    def finish(self) -> Counter[str]:
        """Ends the load; gives how many requests ended how."""
        out, _ = self._process.communicate(timeout=4 * TIMEOUT)
        return Counter(json.loads(out.splitlines()[-1]))


def losses(counts: Counter[str]) -> dict[str, int]:
    """What must not be there."""
    return {what: counts[what] for what in LOSSES if counts[what]}


def tcp_counters() -> dict[str, int]:
    """This network namespace's TCP counters, by name (proc(5), net/snmp and net/netstat)."""
    found: dict[str, int] = {}
    for file, table in (("snmp", "Tcp"), ("netstat", "TcpExt")):
        lines = [line.split() for line in Path(f"/proc/self/net/{file}").read_text().splitlines()]
        names, values = (line for line in lines if line[0] == f"{table}:")
        prefix = "Tcp" if table == "Tcp" else "TcpExt"
        found.update({prefix + name: int(value) for name, value in zip(names[1:], values[1:], strict=True)})
    return found


def _failure(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return "refused" if isinstance(error, ConnectionRefusedError) else "reset"


def _ended(sock: socket.socket) -> bool:
    """Whether the server has ended its side, as a client finds out before it asks again."""
    readable, _, _ = select.select([sock], [], [], 0)
    return bool(readable) and sock.recv(1, socket.MSG_PEEK) == b""


def main() -> None:
    address, shape, count, seed = sys.argv[1:]
    clients = Clients(address, shape, int(count), int(seed))
    clients.start()
    print("begun", flush=True)
    sys.stdin.read()
    print(json.dumps(clients.finish()), flush=True)


if __name__ == "__main__":
    main()
