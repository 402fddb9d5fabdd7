"""The log over real pipes, sockets and disks that take nothing more: nobody waits, and what was lost is told."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkd import log
from forkd.outlet import open_pipe, put
from tests import disk

SLOW = "nobody read the log, or not fast enough"
STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} "

LogTo = Callable[[int], None]


@pytest.fixture
def log_to() -> Iterator[LogTo]:
    """Sets up this process's log, as text; afterwards logging is pytest's again."""
    root = logging.getLogger()
    before, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield lambda fd: log.set_up("info", "text", fd)
    for each in list(root.handlers):
        if each not in before:
            root.removeHandler(each)
    root.setLevel(level)
    logging.raiseExceptions = raising
    logging.captureWarnings(False)


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Has a descriptor closed with the test."""

    def keep(fd: int) -> int:
        request.addfinalizer(lambda: os.close(fd))
        return fd

    return keep


Way = tuple[int, int, int]
"""Where a log is read, the descriptor that it writes to, and the one that belongs to others."""


def own_pipe(opened: Callable[[int], int]) -> Way:
    reading, writing = map(opened, os.pipe())
    own = open_pipe(writing)
    assert own is not None
    return reading, opened(own), writing


def others_pipe(opened: Callable[[int], int]) -> Way:
    reading, writing = map(opened, os.pipe())
    return reading, writing, writing


def spliced_pipe(opened: Callable[[int], int]) -> Way:
    """Linux refuses RWF_NOWAIT from then on, as it always did before 6.5."""
    reading, writing = map(opened, os.pipe())
    source, into = map(opened, os.pipe())
    os.write(into, b"x")
    assert os.splice(source, writing, 1) == 1
    assert os.read(reading, 1) == b"x"
    with pytest.raises(OSError, match="not supported"):
        os.pwritev(writing, [b"x"], -1, os.RWF_NOWAIT)
    return reading, writing, writing


def stream(opened: Callable[[int], int]) -> Way:
    """As systemd connects standard error to the journal."""
    ours, theirs = socket.socketpair()
    reading, writing = opened(ours.detach()), opened(theirs.detach())
    return reading, writing, writing


WAYS = [own_pipe, others_pipe, spliced_pipe, stream]


def fill(fd: int) -> None:
    """Writes lines until not one byte more goes."""
    for size in (1000, 1):
        try:
            while True:
                put(fd, b"x" * (size - 1) + b"\n")
        except BlockingIOError:
            continue


def drain(fd: int) -> str:
    """All that is to be read now."""
    os.set_blocking(fd, False)
    found = b""
    try:
        while piece := os.read(fd, 65536):
            found += piece
    except BlockingIOError:
        pass
    return found.decode()


def records(text: str) -> list[str]:
    """The records in it, each without its time and our process number."""
    lines = [line for line in text.splitlines() if re.match(STAMP, line)]
    return [re.sub(STAMP, "", line).replace(f" pid={os.getpid()}", " pid=OURS") for line in lines]


@pytest.mark.parametrize("way", WAYS)
def test_a_log_that_takes_nothing_holds_nobody_up(
    way: Callable[[Callable[[int], int]], Way], opened: Callable[[int], int], log_to: LogTo
) -> None:
    reading, writing, others = way(opened)
    log_to(writing)
    log.say("info", "before")
    assert records(drain(reading)) == ["info before"]
    socket.setdefaulttimeout(10)  # as an application may, and a socket object would heed
    try:
        fill(writing)
        for each in range(3):
            log.say("info", f"lost {each}")
        assert records(drain(reading)) == []
        log.say("info", "after")
    finally:
        socket.setdefaulttimeout(None)
    assert records(drain(reading)) == [f"warning 3 records were lost: {SLOW} pid=OURS", "info after"]
    assert os.get_blocking(others), "which would be felt by everybody who shares it"


def test_a_record_cut_short_does_not_tear_the_next(opened: Callable[[int], int], log_to: LogTo) -> None:
    reading, writing, _ = own_pipe(opened)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 8192)
    log_to(writing)
    log.say("info", "long " + "x" * 10_000)
    torn = drain(reading)
    assert len(torn) == 8192
    log.say("info", "next")
    rest = drain(reading)
    assert rest.startswith("\n")
    assert records(rest) == [f"warning 1 record was lost: {SLOW} pid=OURS", "info next"]
    log.say("info", "the one after")
    assert records(drain(reading)) == ["info the one after"]


def test_a_record_longer_than_a_pipe_is_whole_for_a_reader_at_work(opened: Callable[[int], int], log_to: LogTo) -> None:
    reading, writing = map(opened, os.pipe())
    own = open_pipe(writing)
    assert own is not None
    read: list[bytes] = []

    def reader() -> None:
        while not read or not read[-1].endswith(b"\n"):
            read.append(os.read(reading, 65536))

    at_work = threading.Thread(target=reader)
    at_work.start()
    log_to(opened(own))
    log.say("info", "long " + "x" * 300_000)
    at_work.join()
    assert records(b"".join(read).decode()) == ["info long " + "x" * 300_000]


def test_a_closed_pipe_loses_records_until_the_log_leads_elsewhere(opened: Callable[[int], int], log_to: LogTo) -> None:
    reading, writing = os.pipe()
    log_to(opened(writing))
    os.close(reading)
    log.say("info", "lost")
    log.say("info", "lost too")
    elsewhere, into = map(opened, os.pipe())
    os.dup2(into, writing)
    log.own_up()
    assert records(drain(elsewhere)) == ["warning 2 records were lost: Broken pipe pid=OURS"]
    log.own_up()
    log.say("info", "after")
    assert records(drain(elsewhere)) == ["info after"]


def test_a_second_set_up_still_knows_what_was_lost(opened: Callable[[int], int], log_to: LogTo) -> None:
    reading, writing, _ = own_pipe(opened)
    log_to(writing)
    fill(writing)
    log.say("info", "lost")
    log_to(writing)
    drain(reading)
    log.own_up()
    assert records(drain(reading)) == [f"warning 1 record was lost: {SLOW} pid=OURS"]


def test_what_was_lost_before_a_fork_is_told_by_the_parent_alone(opened: Callable[[int], int], log_to: LogTo) -> None:
    reading, writing, _ = own_pipe(opened)
    log_to(writing)
    fill(writing)
    log.say("info", "lost")
    drain(reading)
    in_child(lambda: log.say("info", "the child's"))
    log.say("info", "the parent's")
    assert records(drain(reading)) == [
        "info the child's",
        f"warning 1 record was lost: {SLOW} pid=OURS",
        "info the parent's",
    ]


def test_a_full_disk_is_told_once_on_standard_error(
    tmp_path: Path, opened: Callable[[int], int], log_to: LogTo, capfd: pytest.CaptureFixture[str]
) -> None:
    if reason := disk.missing():
        pytest.skip(reason)
    with disk.small_disk(tmp_path) as small:
        path = small / "log"
        log_to(opened(log.open_file(str(path))))
        log.say("info", "x" * 5000)  # into its second page, so that there is room for a piece of another
        cannot = f"error records are lost: the log file {path.resolve()} cannot be written"
        for _ in range(2):
            so_far = len(path.read_text())
            filler = disk.fill(small)
            log.say("info", "lost " + "x" * 5000)
            log.say("info", "lost")
            in_child(lambda: log.say("info", "the child's is lost"))
            assert records(capfd.readouterr().err) == [f"{cannot}: No space left on device pid=OURS"]
            filler.unlink()
            log.say("info", "after")
            torn, *whole = records(path.read_text()[so_far:])
            assert re.fullmatch("info lost x+", torn)
            assert whole == [
                "warning 2 records were lost: No space left on device pid=OURS",
                "info after",
            ]
        assert capfd.readouterr().err == ""


def in_child(act: Callable[[], None]) -> None:
    """Has a child of this process do something, to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
