"""The log over real pipes, sockets and disks that are full: no process waits, and losses are reported."""

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

from forkd.errors import ForkdError
from forkd.log import journal, log
from forkd.log.journal import Journal
from forkd.log.write import open_pipe, put
from tests import disk
from tests.journald import Journald

SLOW = "the log's reader is gone or too slow"
STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} "

LogTo = Callable[..., None]
ToJournal = tuple[int, int, Journal]
"""Where the stream of standard error is read, the descriptor that leads there, and the journal it belongs to."""


@pytest.fixture
def log_to() -> Iterator[LogTo]:
    """Sets up this process's log, as text. Afterwards logging belongs to pytest again."""
    root = logging.getLogger()
    before, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield lambda fd, form="text", to=None: log.set_up("info", form, fd, to=to)
    for each in list(root.handlers):
        if each not in before:
            root.removeHandler(each)
    root.setLevel(level)
    logging.raiseExceptions = raising
    logging.captureWarnings(False)


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Closes a descriptor after the test."""

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
    """A splice makes Linux refuse RWF_NOWAIT on a pipe, as it always did before 6.5."""
    reading, writing = map(opened, os.pipe())
    source, into = map(opened, os.pipe())
    os.write(into, b"x")
    assert os.splice(source, writing, 1) == 1
    assert os.read(reading, 1) == b"x"
    with pytest.raises(OSError, match="not supported"):
        os.pwritev(writing, [b"x"], -1, os.RWF_NOWAIT)
    return reading, writing, writing


def stream(opened: Callable[[int], int]) -> Way:
    """Standard error as systemd connects it to the journal."""
    ours, theirs = socket.socketpair()
    reading, writing = opened(ours.detach()), opened(theirs.detach())
    return reading, writing, writing


WAYS = [own_pipe, others_pipe, spliced_pipe, stream]


def fill(fd: int) -> None:
    """Writes lines until there is no room for another byte."""
    for size in (1000, 1):
        try:
            while True:
                put(fd, b"x" * (size - 1) + b"\n")
        except BlockingIOError:
            continue


def drain(fd: int) -> str:
    """Returns everything that can be read now."""
    os.set_blocking(fd, False)
    found = b""
    try:
        while piece := os.read(fd, 65536):
            found += piece
    except BlockingIOError:
        pass
    return found.decode()


def records(text: str) -> list[str]:
    """Returns the records in the text, without their times and with our PID as OURS."""
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
    socket.setdefaulttimeout(10)  # as an application may; a socket object would obey it
    try:
        fill(writing)
        for each in range(3):
            log.say("info", f"lost {each}")
        assert records(drain(reading)) == []
        log.say("info", "after")
    finally:
        socket.setdefaulttimeout(None)
    assert records(drain(reading)) == [f"warning 3 records were lost: {SLOW} pid=OURS", "info after"]
    assert os.get_blocking(others), "a change would affect every process that shares it"


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write what other users may not")
def test_a_log_file_with_a_second_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("")
    (tmp_path / "log").hardlink_to(tmp_path / "victim")
    with pytest.raises(ForkdError, match=r"cannot open the log file .*/log: it has another name, too"):
        log.open_file(str(tmp_path / "log"))
    (tmp_path / "victim").unlink()
    os.close(log.open_file(str(tmp_path / "log")))


def test_a_full_disk_is_told_once_on_standard_error(
    tmp_path: Path, opened: Callable[[int], int], log_to: LogTo, capfd: pytest.CaptureFixture[str]
) -> None:
    if reason := disk.missing():
        pytest.skip(reason)
    with disk.small_disk(tmp_path) as small:
        path = small / "log"
        log_to(opened(log.open_file(str(path))))
        log.say("info", "x" * 5000)  # into its second page, so that part of another record fits
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


# The journal.


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    with Journald(tmp_path / "socket") as listening:
        yield listening


@pytest.fixture
def to_journal(journald: Journald, opened: Callable[[int], int]) -> ToJournal:
    reading, writing, _ = stream(opened)
    file = os.fstat(writing)
    return reading, writing, Journal(file.st_dev, file.st_ino, str(journald.path))


def test_a_record_is_an_entry_of_the_journal(journald: Journald, to_journal: ToJournal, log_to: LogTo) -> None:
    reading, writing, to = to_journal
    log_to(writing, to=to)
    log.say("warning", "it\x1b happened", {"service": "echo", "peer": "unix:/a\nb"}, block="one\ntwo\x07")
    logging.getLogger("shop").error("the application's")
    first, second = journald.entry(), journald.entry()
    assert first == {
        "MESSAGE": "    ".join(['it\\x1b happened service=echo peer="unix:/a\\nb"\n', "one\n", "two\\x07"]),
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "forkd",
        "FORKD_SERVICE": "echo",
        "FORKD_PEER": "unix:/a\\nb",
        "_PID": str(os.getpid()),
    }
    assert (second["MESSAGE"], second["PRIORITY"], second["FORKD_LOGGER"]) == ("shop: the application's", "3", "shop")
    assert drain(reading) == ""


def test_a_child_sends_its_own_entries(journald: Journald, to_journal: ToJournal, log_to: LogTo) -> None:
    _, writing, to = to_journal
    log_to(writing, to=to)
    log.say("info", "the parent's")
    pid = in_child(lambda: log.say("info", "the child's"))
    assert [journald.entry()["_PID"] for _ in range(2)] == [str(os.getpid()), str(pid)]


def test_an_entry_too_long_for_a_datagram_is_handed_over_in_memory(
    journald: Journald, to_journal: ToJournal, log_to: LogTo
) -> None:
    _, writing, to = to_journal
    log_to(writing, to=to)
    before = set(Path("/proc/self/fd").iterdir())
    log.say("info", "long", block="x" * 3_000_000)
    entry = journald.entry()
    assert entry["MESSAGE"] == "long\n    " + "x" * 3_000_000
    assert journald.sealed
    assert set(Path("/proc/self/fd").iterdir()) <= before  # other tests' descriptors may close now


def test_the_stream_takes_what_the_journal_does_not(journald: Journald, to_journal: ToJournal, log_to: LogTo) -> None:
    reading, writing, to = to_journal
    log_to(writing, to=to)
    journald.close()
    log.say("error", "it failed", block="one\n\ntwo")
    assert drain(reading) == "<3>it failed\n<3>    one\n<3>    \n<3>    two\n"
    journald.path.unlink()
    log.say("info", "no socket there")
    assert drain(reading) == "<6>no socket there\n"


def test_a_slow_journal_holds_nobody_up_and_what_was_lost_is_told(
    journald: Journald, to_journal: ToJournal, log_to: LogTo
) -> None:
    """First its queue fills up, then the stream that also goes to it."""
    reading, writing, to = to_journal
    log_to(writing, to=to)
    sent = 0
    while not drain(reading):
        log.say("info", f"entry {sent}")
        sent += 1
    fill(writing)
    for each in range(3):
        log.say("info", f"lost {each}")
    drain(reading)
    for each in range(sent - 1):
        assert journald.entry()["MESSAGE"] == f"entry {each}"
    log.say("info", "after")
    told = journald.entry()
    assert (told["MESSAGE"], told["PRIORITY"], told["FORKD_PID"]) == (
        f"3 records were lost: {SLOW} pid={os.getpid()}",
        "4",
        str(os.getpid()),
    )
    assert journald.entry()["MESSAGE"] == "after"


def test_a_log_that_is_led_elsewhere_is_no_journal_any_more(
    tmp_path: Path,
    journald: Journald,
    to_journal: ToJournal,
    log_to: LogTo,
    opened: Callable[[int], int],
) -> None:
    _, writing, to = to_journal
    log_fd = opened(os.dup(writing))
    log_to(log_fd, to=to)
    log.say("info", "an entry")
    elsewhere = opened(log.open_file(str(tmp_path / "log")))
    os.dup2(elsewhere, log_fd)
    log.say("info", "a line")
    os.dup2(writing, log_fd)
    log.say("info", "an entry again")
    assert [journald.entry()["MESSAGE"] for _ in range(2)] == ["an entry", "an entry again"]
    assert records((tmp_path / "log").read_text()) == ["info a line"]


def test_whoever_wants_json_on_standard_error_gets_that(
    journald: Journald, to_journal: ToJournal, log_to: LogTo
) -> None:
    reading, writing, to = to_journal
    log_to(writing, form="json", to=to)
    log.say("info", "it happened")
    assert drain(reading).startswith('{"time": ')


@pytest.mark.parametrize("told", ["", "1", "1:2:3", "a:b", "8:-1"])
def test_there_is_no_journal_unless_systemd_says_so(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", told)
    assert journal.found() is None
    monkeypatch.delenv("JOURNAL_STREAM")
    assert journal.found() is None


def test_the_journal_is_the_one_whose_stream_systemd_names(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[[int], int]
) -> None:
    _, writing, _ = stream(opened)
    file = os.fstat(writing)
    monkeypatch.setenv("JOURNAL_STREAM", f"{file.st_dev}:{file.st_ino}")
    found = journal.found()
    assert found is not None
    assert found.is_at(writing)
    assert not found.is_at(2)


def in_child(act: Callable[[], None]) -> int:
    """Runs a function to its end in a child process. Returns the child's PID."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    return pid
