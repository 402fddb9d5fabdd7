"""Lifespans that fail, each in its own way, one that fails when the test asks for it, and one that cleans up."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import forkd


@forkd.service(forkd.Lines())
def fails(request: bytes) -> bytes:
    return request


@fails.lifespan
def _fails() -> Iterator[None]:
    raise ConnectionError("no database today")
    yield


@forkd.service(forkd.Lines())
def aborts(request: bytes) -> bytes:
    return request


@aborts.lifespan
def _aborts() -> Iterator[None]:
    os.kill(os.getpid(), signal.SIGABRT)
    yield


@forkd.service(forkd.Lines())
def exits(request: bytes) -> bytes:
    return request


@exits.lifespan
def _exits() -> Iterator[None]:
    sys.exit(0)
    yield


@forkd.service(forkd.Lines())
def hangs(request: bytes) -> bytes:
    return request


@hangs.lifespan
def _hangs() -> Iterator[None]:
    time.sleep(60)
    yield


@forkd.service(forkd.Lines())
def told(request: bytes) -> bytes:
    """Its lifespan succeeds unless there is a file `broken` in the working folder."""
    return request


@told.lifespan
def _told() -> Iterator[None]:
    if Path("broken").exists():
        raise RuntimeError("broken as told")
    yield


@forkd.service(forkd.Lines())
def tidies(request: bytes) -> bytes:
    return request


@tidies.lifespan
def _tidies() -> Iterator[None]:
    yield
    with Path("tidied").open("a") as file:
        file.write("tidied\n")
