"""Listening sockets in this process: their options, what happens to a unix socket's file, and failures."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from forkd.errors import ListenError
from forkd.ipc.deadlines import Deadlines
from forkd.kernel import tap
from forkd.kernel.address import Address, parse
from forkd.kernel.owned_file import OwnedFile
from forkd.kernel.unix_socket import bind_unix
from forkd.settings.schema import Listen
from forkd.sockets.listener import Listener, make_way, open_listeners
from forkd.systemd import store
from forkd.systemd.passed import Passed
from forkd.systemd.store import Stored

Open = Callable[..., list[Listener]]


@pytest.fixture
def listening(request: pytest.FixtureRequest) -> Open:
    """`open_listeners` of an address. All are closed after the test. `stored` is what comes back from the store."""

    def opened(
        text: str, *, backlog: int = 5, stored: tuple[socket.socket, ...] = (), **rights: str | int
    ) -> list[Listener]:
        wanted = Listen(address=parse(text), **rights)  # type: ignore[arg-type]
        passed = Passed()
        passed.stored = Stored([(store.label(wanted.address, "echo"), sock.dup()) for sock in stored])
        found = open_listeners(wanted, backlog, passed, "echo")
        for each in found:
            request.addfinalizer(each.close)
        return found

    return opened


def option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)


# TCP.


def test_a_listener_is_set_up_for_what_it_hands_down(listening: Open) -> None:
    [listener] = listening("127.0.0.1:0")
    sock = listener.socket
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    assert option(sock, socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    for level, name in (
        (socket.SOL_SOCKET, socket.SO_REUSEADDR),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    ):
        assert option(sock, level, name) == 1


@pytest.mark.parametrize(
    ("limits", "expected"), [(Deadlines(1.5, 9, 2), (1.5, 2)), (Deadlines(0, 0, 0), (315360000,) * 2)]
)
def test_an_accepted_socket_inherits_its_limits(
    listening: Open, limits: Deadlines, expected: tuple[float, float]
) -> None:
    [listener] = listening("127.0.0.1:0")
    listener.hand_down(limits.idle_timeout, limits.write_timeout)
    with socket.create_connection(listener.socket.getsockname()):
        accepted, _ = listener.socket.accept()
        with accepted:
            for name, seconds in zip((socket.SO_RCVTIMEO, socket.SO_SNDTIMEO), expected, strict=True):
                whole, micro = struct.unpack("ll", accepted.getsockopt(socket.SOL_SOCKET, name, 16))
                # The kernel counts in jiffies and rounds to them.
                assert whole + micro / 1e6 == pytest.approx(seconds, abs=0.02)
            assert option(accepted, socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert option(accepted, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@pytest.mark.parametrize(
    ("text", "family", "only"),
    [
        ("127.0.0.1:0", socket.AF_INET, None),
        ("0.0.0.0:0", socket.AF_INET, None),
        ("[::1]:0", socket.AF_INET6, 1),
        ("[::]:0", socket.AF_INET6, 1),
        ("*:0", socket.AF_INET6, 0),
    ],
)
def test_a_family_for_each_form(listening: Open, text: str, family: socket.AddressFamily, only: int | None) -> None:
    [listener] = listening(text)
    assert listener.socket.family == family
    assert listener.bound == parse(text)._replace(port=listener.socket.getsockname()[1])
    assert listener.bound.port > 0
    assert listener.takes_ipv4() == (only != 1)
    if only is not None:
        assert option(listener.socket, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == only


def test_a_wildcard_takes_the_port_of_both_families(listening: Open) -> None:
    [listener] = listening("*:0")
    for text in ("0.0.0.0", "[::]", "127.0.0.1", "[::1]"):
        with pytest.raises(ListenError, match="another process listens there"):
            listening(f"{text}:{listener.bound.port}")


def test_a_port_is_free_again_when_its_listener_has_closed(listening: Open) -> None:
    [listener] = listening("127.0.0.1:0")
    with socket.create_connection(listener.socket.getsockname()):
        accepted, _ = listener.socket.accept()
        accepted.close()  # closes first, so that this port is in TIME_WAIT
    listener.close()
    assert listening(str(listener.bound))[0].bound == listener.bound


def test_the_backlog_is_what_was_asked_for(listening: Open) -> None:
    [listener] = listening("127.0.0.1:0", backlog=7)
    # tcp(7): tcpi_sacked in struct tcp_info is the backlog of a listener.
    assert struct.unpack_from("I", listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)[0] == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("192.0.2.1:0", r"cannot listen on 192\.0\.2\.1:0: 192\.0\.2\.1 is not an address of this machine"),
        ("no-such-host.invalid:7", r"cannot listen on no-such-host\.invalid:7: the name has no address: "),
        ("x" * 64 + ".invalid:7", "the name has no address"),
        ("unix:/no/such/folder/socket", "there is no folder /no/such/folder; create it"),
        ("unix:/proc/version/socket", "Not a directory"),
        ("unix:/proc/version", "the file there is not a socket"),
        ("systemd:web", r"no socket named 'web' \(it passed: none\)"),
    ],
)
def test_a_refusal_names_the_address_and_the_reason(listening: Open, text: str, words: str) -> None:
    with pytest.raises(ListenError, match=words) as refused:
        listening(text)
    assert "\n" not in str(refused.value)


# Unix sockets.


def test_the_file_appears_with_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    seen: list[tuple[int, bool]] = []

    def own(beside: str) -> None:
        seen.append((stat.S_IMODE(Path(beside).stat().st_mode), path.exists()))

    with bind_unix(str(path), 0o640, own) as sock:
        assert seen == [(0o640, False)]
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert [each.name for each in tmp_path.iterdir()] == ["socket"]
        assert not sock.getblocking()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o007, 0o770)])
def test_without_a_mode_it_is_the_umasks(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with bind_unix(str(tmp_path / "socket"), None):
            assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == mode
        assert os.umask(umask) == umask  # binding has not changed it
    finally:
        os.umask(before)


def test_a_file_that_fails_to_get_its_owner_is_gone(tmp_path: Path) -> None:
    def fail(beside: str) -> None:
        raise PermissionError(1, "no")

    before = os.umask(0o022)
    with pytest.raises(PermissionError):
        bind_unix(str(tmp_path / "socket"), 0o600, fail)
    assert list(tmp_path.iterdir()) == []
    assert os.umask(before) == 0o022


def test_rights_are_given_to_the_socket_alone(tmp_path: Path) -> None:
    """A user who may write in its folder could replace it with a link to another file."""
    victim = tmp_path / "victim"
    victim.touch(0o600)

    def own(held: str) -> None:
        beside = tmp_path / f"socket.{os.getpid()}"
        beside.unlink()
        beside.symlink_to(victim)
        Path(held).chmod(0o666)

    with bind_unix(str(tmp_path / "socket"), 0o660, own):
        assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_a_left_over_beside_the_place_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / f"socket.{os.getpid()}").touch()
    with bind_unix(str(tmp_path / "socket"), None):
        assert [each.name for each in tmp_path.iterdir()] == ["socket"]


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with bind_unix(path, None), pytest.raises(OSError, match="another server listens there"):
        bind_unix(path, None)
    with bind_unix(path, None), socket.socket(socket.AF_UNIX) as client:  # the file is stale now
        client.connect(path)


def test_a_socket_with_a_full_queue_is_alive(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(path)
        busy.listen(0)
        client.connect(path)
        with pytest.raises(OSError, match="another server listens there"):
            bind_unix(path, None)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="not a socket"):
        bind_unix(str(tmp_path / "link"), None)


def test_a_path_is_no_longer_than_anybody_can_connect_to(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    path = str(folder) + "/" + "x" * (106 - len(str(folder)))
    assert len(path) == 107
    with bind_unix(path, None), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    with pytest.raises(OSError, match="longer than the 107 bytes"):
        bind_unix(path + "x", None)
    assert not Path(path + "x").exists()


def test_a_listener_knows_the_address_as_it_was_written(listening: Open, tmp_path: Path) -> None:
    [listener] = listening(f"unix:{tmp_path}/socket", mode=0o600)
    assert listener.bound == Address(f"{tmp_path}/socket", 0, "unix")
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_an_abstract_name_is_taken_once(listening: Open) -> None:
    name = f"unix:@forkd-test-seam-{os.getpid()}"
    [listener] = listening(name)
    assert str(listener.bound) == name
    with pytest.raises(ListenError, match=f"cannot listen on {name}: another server listens there"):
        listening(name)


# Files are removed only while they are ours.


def test_a_file_of_ours_is_removed_and_a_successors_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    ours = OwnedFile.at(str(path))
    (tmp_path / "theirs").touch()
    (tmp_path / "theirs").rename(path)
    ours.remove()
    assert path.exists()
    OwnedFile.at(str(path)).remove()
    assert not path.exists()
    ours.remove()  # removing it again has no effect


def test_a_listener_leaves_its_successors_socket_alone(listening: Open, tmp_path: Path) -> None:
    [first] = listening(f"unix:{tmp_path}/socket")
    (tmp_path / "socket").unlink()
    [second] = listening(f"unix:{tmp_path}/socket")
    first.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/socket")
    second.close()
    assert list(tmp_path.iterdir()) == []


# Stored sockets are reused.


def let_in(listener: socket.socket) -> socket.socket:
    """Accepts the next connection. A TCP client may be connected before it can be accepted here."""
    listener.settimeout(5)
    return listener.accept()[0]


def same(one: socket.socket, other: socket.socket) -> bool:
    return os.path.sameopenfile(one.fileno(), other.fileno())


def test_a_stored_socket_goes_on_with_its_queue_and_an_open_tap(listening: Open) -> None:
    [first] = listening("127.0.0.1:0")
    with socket.create_connection(first.socket.getsockname()):
        first.close_tap()
        assert tap.is_closed(first.socket)
        [second] = listening("127.0.0.1:0", stored=(first.socket,), backlog=7)
        assert same(first.socket, second.socket)
        assert second.bound == first.bound
        assert second.stored == "forkd=127.0.0.1%3A0=echo"
        assert not tap.is_closed(second.socket)
        assert not second.socket.get_inheritable()
        let_in(second.socket).close()


def test_both_families_of_a_name_come_back(listening: Open) -> None:
    first = listening("localhost:0")
    second = listening("localhost:0", stored=tuple(each.socket for each in first))
    assert [each.bound for each in second] == [each.bound for each in first]


@pytest.mark.parametrize(
    ("before", "after", "fits"),
    [
        ("127.0.0.1:0", "127.0.0.1:0", True),
        ("127.0.0.1:0", "127.0.0.2:0", False),
        ("127.0.0.1:0", "[::1]:0", False),
        ("[::1]:0", "[::1]:0", True),
        ("[::]:0", "[::]:0", True),
        ("*:0", "*:0", True),
        ("[::]:0", "*:0", False),
        ("*:0", "[::]:0", False),
        ("0.0.0.0:0", "127.0.0.1:0", False),
    ],
)
def test_only_what_is_bound_as_it_is_wanted_fits(listening: Open, before: str, after: str, fits: bool) -> None:
    first = listening(before)[0]
    second = listening(after, stored=(first.socket,))[0]
    assert same(first.socket, second.socket) == fits
    assert bool(second.stored) == fits


def test_a_port_that_is_fixed_has_to_be_the_same(listening: Open) -> None:
    [first] = listening("127.0.0.1:0")
    [other] = listening("127.0.0.1:0")
    with pytest.raises(ListenError, match="another process listens there") as refused:
        listening(str(first.bound), stored=(other.socket,))
    assert refused.value.cause == errno.EADDRINUSE
    [second] = listening(str(first.bound), stored=(other.socket, first.socket))
    assert same(first.socket, second.socket)


def test_one_that_stands_in_the_way_is_given_up_for_the_next_try() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there, socket.create_server(("127.0.0.1", 0)) as other:
        wanted = Listen(address=parse(f"127.0.0.1:{there.getsockname()[1]}"))
        passed = Passed()
        label = store.label(wanted.address, "echo")
        passed.stored = Stored([(label, other), ("forkd=another", there)])
        with pytest.raises(ListenError):
            open_listeners(wanted, 5, passed, "echo")
        assert passed.stored.misfits == [label]
        assert [name for name, _ in passed.stored.found] == ["forkd=another"]


def test_a_stored_unix_socket_is_found_by_its_file(listening: Open, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    [first] = listening(f"unix:{path}", mode=0o600)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        [second] = listening(f"unix:{path}", stored=(first.socket,), mode=0o660)
        assert same(first.socket, second.socket)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660, "the file must have the rights in the settings"
        second.socket.accept()[0].close()
    second.close()
    assert not path.exists()


def test_without_a_mode_the_files_stays(listening: Open, tmp_path: Path) -> None:
    [first] = listening(f"unix:{tmp_path}/socket", mode=0o640)
    listening(f"unix:{tmp_path}/socket", stored=(first.socket,))
    assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o640


def test_a_stored_abstract_socket_comes_back(listening: Open) -> None:
    name = f"unix:@forkd-test-stored-{os.getpid()}"
    [first] = listening(name)
    [second] = listening(name, stored=(first.socket,))
    assert same(first.socket, second.socket)


def test_a_unix_socket_makes_way_for_another_at_its_place(listening: Open, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    [first] = listening(f"unix:{path}", mode=0o640)
    with socket.socket(socket.AF_UNIX) as early, socket.socket(socket.AF_UNIX) as late:
        early.connect(str(path))
        successor = make_way(first)
        assert successor is not None
        late.connect(str(path))
        first.socket.accept()[0].close()
        with pytest.raises(BlockingIOError):
            first.socket.accept()
        with successor:
            successor.accept()[0].close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        first.close_tap()
        assert path.exists(), "the file now belongs to another listener"
        assert [each.name for each in tmp_path.iterdir()] == ["socket"]
    path.unlink()


def test_what_is_not_at_its_place_makes_no_way(listening: Open, tmp_path: Path) -> None:
    [tcp] = listening("127.0.0.1:0")
    assert make_way(tcp) is None
    [unix] = listening(f"unix:{tmp_path}/socket")
    (tmp_path / "socket").unlink()
    assert make_way(unix) is None
    assert list(tmp_path.iterdir()) == []


# The tap.


def test_a_connection_that_came_to_be_with_the_tap_closed_is_told_from_others(listening: Open) -> None:
    for address, level, hops in (
        ("127.0.0.1:0", socket.IPPROTO_IP, socket.IP_TTL),
        ("[::1]:0", socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
    ):
        [listener] = listening(address)
        for closed in (True, False):
            (tap.close if closed else tap.reopen)(listener.socket)
            with socket.socket(listener.socket.family) as client:
                client.setsockopt(level, hops, 255)  # close enough to a closed tap
                client.connect(listener.socket.getsockname())
                with let_in(listener.socket) as accepted:
                    assert tap.is_closed(accepted) == closed
                    tap.admit(accepted)
                    assert not tap.is_closed(accepted)
    with socket.socketpair()[0] as other:
        assert not tap.is_closed(other)
