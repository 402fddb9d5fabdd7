"""Messages, descriptors and barriers for the service manager, which does not always listen."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from forkd.systemd import notify
from forkd.systemd.notify import Notifier, watchdog_seconds
from tests.manager import Manager, environment


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    with environment():
        yield


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Sets NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@forkd-test-notify-{os.getpid()}"
    os.environ["NOTIFY_SOCKET"] = name
    return name


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    found = Manager(address)
    yield found
    found.close()


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[socket.socket]:
    """A manager that does not read by itself."""
    os.environ["NOTIFY_SOCKET"] = str(tmp_path / "deaf")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "deaf"))
        sock.settimeout(5)
        yield sock


def fill(notifier: Notifier) -> int:
    """Sends messages that may be lost until none can be sent. Returns how many were sent."""
    for count in range(100_000):
        if not notifier.tell(["STATUS=full"], passing=True):
            return count
    raise AssertionError("the queue never fills up")


def test_lines_are_told_in_one_message(manager: Manager) -> None:
    notifier = Notifier()
    assert notifier.on
    assert notifier.tell(["READY=1", "STATUS=2 services"])
    assert notifier.tell([])
    assert notifier.barrier(5)
    assert manager.messages == [["READY=1", "STATUS=2 services"]]
    assert manager.senders == [os.getpid()]
    notifier.close()
    assert not notifier.on


def test_a_descriptor_goes_along(manager: Manager) -> None:
    notifier = Notifier()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        notifier.tell(["FDSTORE=1", "FDNAME=x"], [sock.fileno()])
        assert notifier.barrier(5)
        [(name, fd)] = manager.store
        assert name == "x"
        assert os.path.sameopenfile(fd, sock.fileno())
    notifier.close()


def test_nothing_is_opened_or_said_without_a_manager() -> None:
    os.environ.pop("NOTIFY_SOCKET", None)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    notifier = Notifier()
    assert not notifier.on
    assert notifier.tell(["READY=1"])
    assert not notifier.barrier(5)
    notify.last_words(["STATUS=over"])
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
    os.environ["NOTIFY_SOCKET"] = "vsock:2:1234"
    assert not Notifier().on


def test_nobody_has_to_listen(tmp_path: Path) -> None:
    os.environ["NOTIFY_SOCKET"] = str(tmp_path / "nobody")
    notifier = Notifier()
    assert notifier.tell(["READY=1"])
    began = monotonic()
    assert not notifier.barrier(0.05)
    assert monotonic() - began < 5
    found = Manager(str(tmp_path / "nobody"))  # a manager that has come back receives messages over the same socket
    notifier.tell(["STATUS=well"])
    found.said("STATUS=well")
    notifier.close()
    found.close()


def test_a_manager_that_does_not_read_does_not_hold_us_up(deaf: socket.socket) -> None:
    notifier = Notifier()
    room = fill(notifier)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        for each in ("READY=1", "STOPPING=1"):
            assert not notifier.tell([each])
        assert not notifier.tell(["FDSTORE=1"], [sock.fileno()])
        assert not notifier.barrier(0.05)
    assert not notifier.tell(["STATUS=lost"], passing=True)
    said = [deaf.recv(100) for _ in range(room)]
    notifier.flush()
    deaf.settimeout(0.0)
    assert said == [b"STATUS=full"] * room
    assert [deaf.recv(100) for _ in range(2)] == [b"READY=1", b"STOPPING=1"]
    _, [fd], _, _ = socket.recv_fds(deaf, 100, 1)
    with socket.socket(fileno=fd) as kept:
        assert kept.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), "the copy must outlive its original"
    with pytest.raises(BlockingIOError):
        deaf.recv(100)
    notifier.close(0.05)


def test_what_waits_to_be_said_has_an_end(deaf: socket.socket) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    notifier = Notifier()
    room = fill(notifier)
    for number in range(1000):
        notifier.tell([f"STATUS={number}"], [deaf.fileno()])
    assert len(os.listdir("/proc/self/fd")) < before + 100  # noqa: PTH208
    for _ in range(room):
        deaf.recv(100)
    notifier.flush()
    deaf.settimeout(0.0)
    assert [deaf.recv(100) for _ in range(2)] == [b"STATUS=0", b"STATUS=1"]
    notifier.close(0.05)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_barrier_says_first_what_waits(tmp_path: Path) -> None:
    os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    slow = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    slow.bind(str(tmp_path / "notify"))
    notifier = Notifier()
    fill(notifier)
    notifier.tell(["READY=1"])
    slow.close()
    (tmp_path / "notify").unlink()
    manager = Manager(str(tmp_path / "notify"))
    assert notifier.barrier(5)
    assert manager.messages == [["READY=1"]]
    assert notifier.tell(["STATUS=x"], passing=True), "after that, no message may wait again"
    notifier.close()
    manager.close()


def test_without_descriptors_it_can_still_say_that_it_lives(manager: Manager) -> None:
    notifier = Notifier()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert notifier.tell(["WATCHDOG=1"])
        assert not notifier.barrier(5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    manager.said("WATCHDOG=1")
    notifier.close()


def test_last_words_are_heard_before_the_end(manager: Manager) -> None:
    notify.last_words(["STATUS=over", "ERRNO=98"])
    assert manager.messages == [["STATUS=over", "ERRNO=98"]]
    assert manager.barriers == 1


def test_a_text_that_is_no_text_is_told_all_the_same(manager: Manager) -> None:
    notify.last_words(["STATUS=\udcff"])
    assert manager.messages == [["STATUS=\\udcff"]]


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "ours"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({"WATCHDOG_USEC": "-1"}, 0),
        ({"WATCHDOG_PID": "ours"}, 0),
    ],
)
def test_a_watchdog_that_is_ours(variables: dict[str, str], seconds: float) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        os.environ.pop(name, None)
    os.environ |= {name: value.replace("ours", str(os.getpid())) for name, value in variables.items()}
    assert watchdog_seconds() == seconds
