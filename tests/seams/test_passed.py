"""Sockets that systemd passes in. Tests run in a forked child where the environment names the process, else here."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Iterator

import pytest

from forkd.errors import ListenError
from forkd.systemd.passed import Passed


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restores the environment after each test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def in_a_child(sockets: list[socket.socket], names: str | None, check: Callable[[Passed], object]) -> None:
    """Runs `check` in a child that has `sockets` as descriptors 3, 4, ..., as systemd passes them."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            placed = [os.dup(sock.fileno()) for sock in sockets]
            high = [os.dup2(fd, 100 + at) for at, fd in enumerate(placed)]
            for at, fd in enumerate(high):
                os.dup2(fd, 3 + at)
            os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets))}
            if names is not None:
                os.environ["LISTEN_FDNAMES"] = names
            check(Passed())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def two() -> Iterator[list[socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        yield [one, other]


def ports(sockets: list[socket.socket]) -> list[int]:
    return [sock.getsockname()[1] for sock in sockets]


def test_sockets_go_by_name(two: list[socket.socket]) -> None:
    def check(passed: Passed) -> None:
        assert ports(passed.take("web")) == ports(two[:1])
        assert ports(passed.take("admin")) == ports(two[1:])
        assert ports(passed.take("web")) == ports(two[:1])  # again, after a reload
        assert not any(sock.get_inheritable() for sock in passed.take("web"))
        assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys()

    in_a_child(two, "web:admin", check)


def test_several_sockets_may_have_one_name(two: list[socket.socket]) -> None:
    in_a_child(two, "web:web", lambda passed: _same(ports(passed.take("web")), ports(two)))


def test_sockets_go_by_place(two: list[socket.socket]) -> None:
    def check(passed: Passed) -> None:
        assert ports(passed.take("0")) == ports(two[:1])
        assert ports(passed.take("1")) == ports(two[1:])
        for strange in ("2", "-1", "\N{SUPERSCRIPT TWO}"):
            with pytest.raises(ListenError, match="it passed: unknown"):
                passed.take(strange)

    in_a_child(two, None, check)


def test_a_name_that_is_a_number_goes_before_a_place(two: list[socket.socket]) -> None:
    in_a_child(two, "1:web", lambda passed: _same(ports(passed.take("1")), ports(two[:1])))


def test_an_unknown_name_is_told_with_those_there_are(two: list[socket.socket]) -> None:
    def check(passed: Passed) -> None:
        with pytest.raises(ListenError, match=r"no socket named 'mail' \(it passed: admin, web\); .*=mail in the"):
            passed.take("mail")

    in_a_child(two, "web:admin", check)


def _same(found: object, expected: object) -> None:
    assert found == expected


def test_what_is_no_listening_stream_socket_is_refused() -> None:
    def refused(sock: socket.socket) -> None:
        def check(passed: Passed) -> None:
            raise AssertionError(f"it took {sock}")

        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(sock.fileno(), 3)
                os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
                Passed()
            except ListenError as error:
                os._exit(0 if "descriptor 3 (unknown) passed by systemd is no" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            refused(sock)


def test_what_was_passed_to_another_process_is_not_ours() -> None:
    os.environ |= {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
    with pytest.raises(ListenError, match="it passed: none"):
        Passed().take("web")


# Stored sockets come back.


def test_what_was_stored_has_neither_a_name_nor_a_place(two: list[socket.socket]) -> None:
    def check(passed: Passed) -> None:
        assert ports(passed.take("0")) == ports(two[1:])
        for name in ("1", "forkd=127.0.0.1%3A7"):
            with pytest.raises(ListenError, match=r"it passed: web\)"):
                passed.take(name)
        [(label, sock)] = passed.stored.found
        assert (label, ports([sock])) == ("forkd=127.0.0.1%3A7", ports(two[:1]))
        assert not sock.get_inheritable()

    in_a_child(two, "forkd=127.0.0.1%3A7:web", check)


def test_what_was_spoilt_meanwhile_is_made_anew(two: list[socket.socket]) -> None:
    def check(passed: Passed) -> None:
        assert passed.stored.found == []
        assert passed.stored.misfits == ["forkd=a", "forkd=b"]

    two[0].shutdown(socket.SHUT_RDWR)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        in_a_child([two[0], other], "forkd=a:forkd=b", check)
