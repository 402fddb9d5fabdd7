"""Starts a contender on a core of its own, and ends it by PID."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bench import processes
from bench.asking import Failure
from bench.contenders import ROOT, Contender, environment

_LIMIT: Final = 20.0
_GRACE: Final = 5.0
_PAUSE: Final = 0.001
_REFUSALS: Final = 20
_AT_REST_NS: Final = 500_000  # of processor time between two looks
_LOOK: Final = 0.05


class Server:
    """One running contender: its first process, its port, its folder and its output."""

    def __init__(self, contender: Contender, workers: int, folder: Path) -> None:
        reason = contender.missing()
        if reason:
            raise Failure(reason)
        self.name = contender.name
        self.port = free_port()
        self.folder = folder
        self.said = folder / "said"
        self.began = time.monotonic()
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                contender.command(self.port, workers, folder),
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                preexec_fn=processes.on_core(processes.SERVERS),
            )
        self.pid = self.process.pid
        self.answered_after = 0.0

    def answering(self, request: bytes, reply: bytes) -> None:
        """Waits until it answers a request correctly."""
        refusals = 0
        while time.monotonic() - self.began < _LIMIT:
            if self.process.poll() is not None:
                raise Failure(f"it ended: {self.last_words()}")
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), _LIMIT) as sock:
                sock.sendall(request)
                if sock.recv(100) == reply:
                    self.answered_after = time.monotonic() - self.began
                    return
                refusals += 1
                if refusals > _REFUSALS:
                    break
            time.sleep(_PAUSE)
        raise Failure(f"it does not answer: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.said.read_text(errors="replace").splitlines()
        return lines[-1].strip() if lines else "it printed nothing"

    def family(self) -> list[int]:
        return processes.family(self.pid)

    def cpu_ns(self) -> int:
        return processes.cpu_ns(self.family())

    def rest(self) -> None:
        """Waits until it is idle, since it may answer before most of its workers have started."""
        deadline = time.monotonic() + _LIMIT
        before = -2 * _AT_REST_NS
        while (now := self.cpu_ns()) - before > _AT_REST_NS:
            if time.monotonic() > deadline:
                raise Failure("it does not become idle")
            before = now
            time.sleep(_LOOK)

    def end(self) -> None:
        """Sends TERM, then KILL to the processes that are left; returns when all are gone."""
        known = self.family()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        for pid in known:
            with suppress(ProcessLookupError):
                # The session shows that it is still ours: another process may have got its PID.
                if processes.alive(pid) and os.getsid(pid) == self.pid:
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + _LIMIT
        while any(processes.alive(pid) for pid in known) and time.monotonic() < deadline:
            time.sleep(_PAUSE)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def serving(
    contender: Contender, workers: int = 1, *, request: bytes = b"first\n", reply: bytes = b"first\n"
) -> Iterator[Server]:
    """Runs a contender that answers; ends it after the block whatever happens."""
    with tempfile.TemporaryDirectory(prefix="forkd-bench-") as folder:
        server = Server(contender, workers, Path(folder))
        try:
            server.answering(request, reply)
            yield server
        finally:
            server.end()
