"""Tiny services, one for each behaviour that a live test needs."""

import logging
import os
import signal
import time
from collections.abc import Iterator

import forkd


@forkd.service(forkd.Lines())
def shout(request: bytes) -> bytes:
    return request.upper()


@forkd.service(forkd.Lines())
def pid(request: bytes) -> bytes:
    return str(os.getpid()).encode()


@forkd.service(forkd.Lines())
def environment(request: bytes) -> bytes:
    """Returns the names of the worker's environment variables."""
    return " ".join(os.environ).encode()


@forkd.service(forkd.Lines())
def ends(request: bytes, connection: forkd.Connection) -> bytes:
    return f"{connection.local} {connection.peer}".encode()


@forkd.service(forkd.Lines())
def die(request: bytes) -> bytes:
    """`die SIGNAL` kills the worker, `exit N` ends it; anything else is echoed."""
    word, _, number = request.partition(b" ")
    if word == b"die":
        os.kill(os.getpid(), int(number))
        time.sleep(60)
    if word == b"exit":
        os._exit(int(number))
    return request


@forkd.service(forkd.Lines())
def nap(request: bytes) -> bytes:
    """Sleeps for as many seconds as the request says."""
    time.sleep(float(request))
    return b"slept " + request


@forkd.stream
def session(connection: forkd.Connection) -> None:
    while data := connection.recv(100):
        connection.send(data)


@forkd.service(forkd.Lines())
def stubborn(request: bytes) -> bytes:
    """Ignores TERM and never returns."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


@forkd.service(forkd.Lines())
def complain(request: bytes) -> bytes:
    """Raises an exception whose text contains the request."""
    raise ValueError(f"cannot do {request.decode(errors='surrogateescape')}")


@forkd.service(forkd.Lines())
def remark(request: bytes) -> bytes:
    """Logs the request's text as an application would, at the level it names."""
    level, _, text = request.decode().partition(" ")
    logging.getLogger("shop").log(logging.getLevelNamesMapping()[level], "remark: %s", text)
    return b"logged"


@forkd.service(forkd.Lines())
def swell(request: bytes) -> bytes:
    """Returns a reply twenty times as long as the request."""
    return request * 20


@forkd.service(forkd.Lines())
def endless(request: bytes) -> Iterator[bytes]:
    """Replies forever, a kilobyte at a time."""
    while True:
        yield b"x" * 1023
