"""Clients that check every byte: `python -m tests.load ADDRESS SHAPE CLIENTS SEED`, until standard input ends.

SHAPE is `single` (a new connection for each request), `persistent` (requests with pauses of up to 20 ms) or
`pipelined` (50 requests in one write, with the same pauses). The last line of output is a `Tally` as a JSON object.
With `--fates FILE` each client writes one letter for each request, in the order sent, to be compared with the
ledger of what was served.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.server import ROOT, connect

TIMEOUT = 20.0
PIPELINE = 50
THOUGHT = {"single": 0.0, "persistent": 0.02, "pipelined": 0.02}

# How a request may end without an answer. `unanswered`: the server ended its side before any byte of the reply.
# `crossed`: the same on a connection that had been idle, so the end and the request may have crossed on the way.
# The other names explain themselves.
LOSSES = ("refused", "reset", "cut short", "unanswered", "crossed", "wrong", "timed out")

ANSWERED, ENDED, LOST = b"a", b"e", b"l"  # the letters of a fate


@dataclass
class Tally:
    """What the clients of a load saw: how their requests ended, the bytes in both directions, and the time in seconds.

    A connection that the server ends between two requests is counted, but is no loss.
    """

    counts: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        self.counts += other.counts
        self.sent += other.sent
        self.received += other.received
        self.seconds = max(self.seconds, other.seconds)

    def losses(self, *forgiven: str) -> dict[str, int]:
        """Returns the count of each kind of loss that is not forgiven; empty if all went well."""
        return {what: self.counts[what] for what in LOSSES if self.counts[what] and what not in forgiven}


class Client:
    """One client: a thread with a closed loop. Its requests are numbered `NAME-0`, `NAME-1` ...

    It ends a connection after `most` requests, unless that is 0.
    """

    def __init__(self, name: str, address: str, shape: str, most: int, chance: random.Random) -> None:
        self.name = name
        self.tally = Tally()
        self.fates = bytearray()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self._address = address
        self._size = PIPELINE if shape == "pipelined" else 1
        self._most = 1 if shape == "single" else most
        self._thought = THOUGHT[shape]
        self._chance = chance

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                sock = connect(self._address, timeout=TIMEOUT)
            except OSError as error:
                self.tally.counts[_failure(error)] += 1
                self.stop.wait(0.001)
                continue
            with sock:
                try:
                    self._converse(sock)
                except OSError as error:  # between two requests
                    self.tally.counts[_failure(error)] += 1

    def _converse(self, sock: socket.socket) -> None:
        """Uses one connection until its end."""
        reader = sock.makefile("rb")
        asked = 0
        while True:
            if not self._ask(sock, reader, idle=asked > 0):
                return
            asked += self._size
            if self.stop.is_set() or (self._most and asked >= self._most):
                sock.shutdown(socket.SHUT_WR)
                if reader.read():
                    self.tally.counts["wrong"] += 1
                return
            if self._thought:
                self.stop.wait(self._chance.uniform(0, self._thought))
            if _ended(sock):
                self.tally.counts["ended between requests"] += 1
                return

    def _ask(self, sock: socket.socket, reader: Any, *, idle: bool) -> bool:
        """Sends a batch of requests and checks each reply; returns False once the connection is over."""
        first = len(self.fates)
        batch = [
            f"{self.name}-{first + number} {self._chance.randbytes(self._chance.randrange(1, 40)).hex()}".encode()
            for number in range(self._size)
        ]
        done = 0
        try:
            data = b"".join(request + b"\n" for request in batch)
            sock.sendall(data)
            self.tally.sent += len(data)
            for request in batch:
                name = request.partition(b" ")[0]
                right = name + b" " + hashlib.sha256(request).hexdigest().encode() + b"\n"
                reply = reader.readline()
                if reply != right:
                    return self._missed(reply, self._size - done, crossed=idle and not done)
                done += 1
                self.tally.received += len(reply)
                self.tally.counts["answered"] += 1
                self.fates += ANSWERED
        except OSError as error:
            self.tally.counts[_failure(error)] += self._size - done
            self.fates += LOST * (self._size - done)
            return False
        return True

    def _missed(self, reply: bytes, missing: int, *, crossed: bool) -> bool:
        """Counts requests that got nothing, a part of the reply, or something else; returns False."""
        if reply:
            self.tally.counts["wrong" if reply.endswith(b"\n") else "cut short"] += missing
            self.fates += LOST * missing
        else:
            self.tally.counts["crossed" if crossed else "unanswered"] += missing
            self.fates += ENDED * missing
        return False


class Load:
    """A load that runs in another process; `finish` returns its tally."""

    def __init__(
        self,
        address: str,
        shape: str,
        clients: int = 8,
        seed: int = 1,
        *,
        fates: Path | None = None,
        most: int = 0,
        before: Sequence[str] = (),
    ) -> None:
        load = [sys.executable, "-m", "tests.load", address, shape, str(clients), str(seed), "--most", str(most)]
        command = [*before, *load]  # `before` execs it, perhaps in another network
        self._process = subprocess.Popen(
            [*command, "--fates", str(fates)] if fates else command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # printed once it has begun

    def finish(self) -> Tally:
        """Ends the load and returns its tally."""
        out, _ = self._process.communicate(timeout=4 * TIMEOUT)
        assert self._process.returncode == 0, "a load failed"
        told = json.loads(out.splitlines()[-1])
        return Tally(**told | {"counts": Counter(told["counts"])})

    def kill(self) -> None:
        """Kills the load, without a tally, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(TIMEOUT)


def tcp_counters() -> dict[str, int]:
    """Returns the TCP counters of this network namespace, by name (proc(5), net/snmp and net/netstat)."""
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
    # A closed TCP port refuses; a closed unix socket's file is missing.
    return "refused" if isinstance(error, ConnectionRefusedError | FileNotFoundError) else "reset"


def _ended(sock: socket.socket) -> bool:
    """Whether the server has ended its side; a client looks before it sends again."""
    readable, _, _ = select.select([sock], [], [], 0)
    return bool(readable) and sock.recv(1, socket.MSG_PEEK) == b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("shape", choices=list(THOUGHT))
    parser.add_argument("clients", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("--most", type=int, default=0, help="requests on one connection")
    parser.add_argument("--fates", type=Path, metavar="FILE")
    told = parser.parse_args()
    clients = [
        Client(
            f"{told.fates.name if told.fates else os.getpid()}-{number}",
            told.address,
            told.shape,
            told.most,
            random.Random(told.seed * 1000 + number),
        )
        for number in range(told.clients)
    ]
    began = time.monotonic()
    for client in clients:
        client.thread.start()
    print("begun", flush=True)
    sys.stdin.read()
    total = Tally(seconds=time.monotonic() - began)
    for client in clients:
        client.stop.set()
    for client in clients:
        client.thread.join(2 * TIMEOUT)
        total.add(client.tally)
    if told.fates:
        told.fates.write_text("".join(f"{each.name} {each.fates.decode()}\n" for each in clients))
    print(json.dumps(vars(total)), flush=True)


if __name__ == "__main__":
    main()
