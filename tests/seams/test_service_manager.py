"""The master's side of a service manager's store: which sockets it hands over, and which it takes back."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkd.errors import ListenError
from forkd.master.service_manager import ServiceManager
from forkd.master.site import Site, open_site
from forkd.settings import config
from forkd.settings.schema import Settings
from forkd.sockets.listener import Listener
from forkd.systemd.passed import Passed
from forkd.systemd.store import Stored
from tests.manager import Manager, environment


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    with environment():
        yield


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    found = Manager(str(tmp_path / "notify"))
    yield found
    found.close()


def settings(folder: Path, *listen: str) -> Settings:
    file = folder / "forkd.toml"
    places = ", ".join(f'"{each}"' for each in listen)
    file.write_text(f'[service.echo]\napp = "forkd.services:echo"\nlisten = [{places}]\n')
    return config.load(str(file), cores=1)


def begin(wanted: Settings, passed: Passed | None = None) -> tuple[ServiceManager, Site]:
    supervision = ServiceManager(1)
    return supervision, supervision.open_site(wanted, passed or Passed())


def figures() -> str:
    return "figures"


def listeners(site: Site) -> list[Listener]:
    return site.listeners["echo"]


def serve(manager: Manager, wanted: Settings) -> tuple[ServiceManager, Site]:
    """Returns a site that serves and whose listeners are stored."""
    supervision, site = begin(wanted)
    supervision.serving(site, figures)
    manager.stored(*(each.stored for each in listeners(site)))
    return supervision, site


def back(manager: Manager) -> Passed:
    """Returns what the manager would pass to the next master."""
    passed = Passed()
    passed.stored = Stored([(name, socket.socket(fileno=os.dup(fd))) for name, fd in manager.store])
    return passed


def same(one: Listener, other: Listener) -> bool:
    return os.path.sameopenfile(one.socket.fileno(), other.socket.fileno())


def test_what_serves_is_stored_and_comes_back(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    abstract = f"@forkd-test-supervision-{os.getpid()}"
    wanted = settings(tmp_path, "127.0.0.1:0", "127.0.0.1:0", f"unix:{path}", f"unix:{abstract}")
    supervision, site = begin(wanted)
    assert manager.names() == []
    supervision.serving(site, figures)
    labels = [
        "forkd=127.0.0.1%3A0=echo",
        "forkd=127.0.0.1%3A0=echo",
        f"forkd=unix%3A{path}={path.stat().st_ino}",
        f"forkd=unix%3A{abstract}",
    ]
    manager.stored(*labels)
    assert [each.stored for each in listeners(site)] == labels
    supervision.keep(site)  # once more, as after a reload that changes nothing
    successor, next_site = begin(wanted, back(manager))
    assert all(same(*pair) for pair in zip(listeners(site), listeners(next_site), strict=True))
    successor.serving(next_site, figures)
    successor.close()
    manager.stored(*labels)
    assert sum("FDSTORE=1" in message and "FDNAME=forkd=probe" not in message for message in manager.messages) == 4
    supervision.close()
    site.close_but(None)
    next_site.close_but(None)
    assert not path.exists()


def test_what_a_reload_drops_is_stored_no_more_and_what_it_adds_is(manager: Manager, tmp_path: Path) -> None:
    supervision, first = serve(manager, settings(tmp_path, "127.0.0.1:0", "[::1]:0"))
    second = open_site(settings(tmp_path, "[::1]:0", "127.0.0.2:0"), Passed(), first)
    first.close_but(second)
    supervision.keep(second, first)
    manager.stored("forkd=[%3A%3A1]%3A0=echo", "forkd=127.0.0.2%3A0=echo")
    supervision.close()
    second.close_but(None)


def test_one_of_two_of_the_same_label_may_go(manager: Manager, tmp_path: Path) -> None:
    supervision, first = serve(manager, settings(tmp_path, "127.0.0.1:0", "127.0.0.1:0"))
    second = open_site(settings(tmp_path, "127.0.0.1:0"), Passed(), first)
    first.close_but(second)
    supervision.keep(second, first)
    supervision.close()
    [(_, fd)] = manager.store
    assert os.path.sameopenfile(fd, listeners(second)[0].socket.fileno())
    second.close_but(None)


def test_what_no_setting_wants_any_more_frees_its_address_first(manager: Manager, tmp_path: Path) -> None:
    supervision, first = serve(manager, settings(tmp_path, "0.0.0.0:0"))
    supervision.close()
    port = listeners(first)[0].bound.port
    passed = back(manager)
    first.close_but(None)
    supervision, second = begin(settings(tmp_path, f"127.0.0.1:{port}"), passed)
    assert manager.names() == []
    supervision.close()
    second.close_but(None)


def test_a_unix_socket_whose_file_is_another_is_made_anew(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    wanted = settings(tmp_path, f"unix:{path}")
    supervision, first = serve(manager, wanted)
    supervision.close()
    passed = back(manager)
    path.unlink()
    supervision, second = begin(wanted, passed)
    assert not same(listeners(first)[0], listeners(second)[0])
    supervision.serving(second, figures)
    manager.stored(f"forkd=unix%3A{path}={path.stat().st_ino}")
    supervision.close()
    first.close_but(second)
    second.close_but(None)


def test_a_start_that_fails_leaves_everything_to_the_next(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    supervision, first = serve(manager, settings(tmp_path, f"unix:{path}", "127.0.0.1:0"))
    names = manager.names()
    with pytest.raises(ListenError):
        begin(settings(tmp_path, f"unix:{path}", "127.0.0.1:0", "unix:/no/such/folder"), back(manager))
    assert path.exists()
    supervision.close()
    assert manager.names() == names
    first.close_but(None)


def test_at_a_stop_a_unix_socket_has_a_successor_in_the_store(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    wanted = settings(tmp_path, "127.0.0.1:0", f"unix:{path}")
    supervision, first = serve(manager, wanted)
    with socket.socket(socket.AF_UNIX) as early, socket.socket(socket.AF_UNIX) as late:
        early.connect(str(path))
        supervision.stopping(first)
        first.close_taps()
        late.connect(str(path))
        listeners(first)[1].socket.accept()[0].close()
        first.close_but(None)
        supervision.close()
        assert ["STOPPING=1", "STATUS=stopping"] in manager.messages
        assert manager.messages[-1] == ["STATUS=stopped"]
        manager.stored("forkd=127.0.0.1%3A0=echo", f"forkd=unix%3A{path}={path.stat().st_ino}")
        _, second = begin(wanted, back(manager))
        listeners(second)[1].socket.accept()[0].close()
    second.close_but(None)
    assert not path.exists()


@pytest.mark.parametrize("room", [0, 5])
def test_the_file_of_a_socket_that_is_kept_is_not_left_by_a_master_that_dies(
    manager: Manager, tmp_path: Path, room: int
) -> None:
    """Its fork servers would remove it. But the next master reuses the socket, with the connections in its queue."""
    manager.room = room
    path = tmp_path / "echo.sock"
    supervision, site = begin(settings(tmp_path, f"unix:{path}"))
    assert [each.path for each in site.leavings()] == ([] if room else [str(path)])
    supervision.serving(site, figures)
    supervision.stopping(site)
    supervision.close()
    asked = sum("FDSTORE=1" in message for message in manager.messages)
    assert asked == (4 if room else 1), "forkd must not ask again after a refusal: the manager logs each one"
    site.close_but(None)


@pytest.mark.parametrize("room", [0, 1])
def test_at_a_stop_a_unix_socket_that_is_not_stored_is_removed(manager: Manager, tmp_path: Path, room: int) -> None:
    """FileDescriptorStoreMax= is 0 unless a unit sets it, and forkd does not learn its value."""
    manager.room = room
    path = tmp_path / "echo.sock"
    supervision, site = begin(settings(tmp_path, f"unix:{path}"))
    supervision.serving(site, figures)
    supervision.stopping(site)
    site.close_taps()
    assert not path.exists()
    supervision.close()
    site.close_but(None)


def test_a_start_that_fails_late_leaves_the_files_of_what_was_stored(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    wanted = settings(tmp_path, f"unix:{path}")
    supervision, first = serve(manager, wanted)
    supervision, second = begin(wanted, back(manager))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        supervision.stopping(second)
        second.close_taps()
        second.close_but(None)
        supervision.close()
        assert path.exists()
        [(_, fd)] = manager.store
        with socket.socket(fileno=os.dup(fd)) as kept:
            kept.accept()[0].close()
    first.close_but(None)


def test_sockets_of_systemd_are_not_stored_again(manager: Manager, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        supervision, site = begin(settings(tmp_path, "systemd:echo"), Passed([("echo", given)]))
        supervision.serving(site, figures)
        supervision.stopping(site)
        supervision.close()
        site.close_but(None)
    assert not any(line.startswith("FDNAME=forkd=127") for message in manager.messages for line in message)


def test_what_another_program_of_ours_has_stored_already_is_known(manager: Manager, tmp_path: Path) -> None:
    supervision, site = begin(settings(tmp_path, "127.0.0.1:0", "[::1]:0"))
    supervision.serving(site, figures)
    listeners(site)[1].stored = ""  # as if by a version that stored nothing
    supervision.close()
    manager.forget()
    after = ServiceManager(1)
    after.look_for_store(Passed())
    after.resume(site)
    after.close()
    assert ["FDSTORE=1", "FDNAME=forkd=[%3A%3A1]%3A0=echo", "FDPOLL=0"] in manager.messages
    assert len([each for each in manager.messages if "FDSTORE=1" in each]) == 2, "one socket and the probe"
    site.close_but(None)


def test_without_a_manager_nothing_is_stored(tmp_path: Path) -> None:
    os.environ.pop("NOTIFY_SOCKET", None)
    os.environ["WATCHDOG_USEC"] = "1000000"
    path = tmp_path / "echo.sock"
    supervision, site = begin(settings(tmp_path, f"unix:{path}"))
    assert not supervision.on
    supervision.serving(site, figures)
    supervision.keep(site, site)
    supervision.reload_begun()
    supervision.change_over("reload", "", figures)
    assert supervision.due == float("inf")
    assert listeners(site)[0].stored == ""
    supervision.stopping(site)
    site.close_taps()
    assert not path.exists()
    supervision.close()
    site.close_but(None)
