"""Reloads: a new generation takes over, or everything stays as it was and the reason is reported."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from forkd.errors import ControlError, Exit
from tests.conftest import Forkd
from tests.server import HANDLERS, Server, alive, connect, exchange, open_files, title, until

APP = """
import forkd

@forkd.service(forkd.Lines())
def answer(request: bytes) -> bytes:
    return b"{word}"
"""


def service(name: str = "test", *, app: str = "app:answer", listen: str = "127.0.0.1:0", more: str = "") -> str:
    return f'[service.{name}]\napp = "{app}"\nlisten = "{listen}"\nworkers = 1\n{more}\n'


class Reloaded:
    """A server whose settings and application are the test's own files."""

    def __init__(self, forkd: Forkd, folder: Path) -> None:
        self._forkd = forkd
        self.folder = folder

    def application(self, word: str) -> None:
        self.write("app.py", APP.format(word=word))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def settings(self, *services: str, master: str = "") -> None:
        head = f'[master]\ncontrol = "{self.folder}/control.sock"\n{master}\n'
        self.write("forkd.toml", head + "".join(services))

    def start(self, *services: str, master: str = "") -> Server:
        self.application("one")
        file = "".join(services or (service(),))
        return self._forkd(file=file, master=master).serving(file.count("[service."))


@pytest.fixture
def reloaded(forkd: Forkd, tmp_path: Path) -> Reloaded:
    return Reloaded(forkd, tmp_path)


def by_signal(server: Server) -> None:
    before = len([line for line in server.lines if "the new generation serves" in line])
    server.kill(signal.SIGHUP)
    server.said("the new generation serves", before + 1)


def by_command(server: Server) -> None:
    server.ask(command="reload")


def generation(server: Server) -> int:
    return int(server.status("test")["generation"])


def settled(server: Server, services: int = 1) -> None:
    """Waits until only one generation is left: the master, and a fork server and a worker per service."""
    until(lambda: len(server.family()) == 1 + 2 * services, "one generation")


def refused(address: str) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    return False


def reason(server: Server) -> ControlError:
    """Returns the error that a reload is refused with."""
    with pytest.raises(ControlError) as refused:
        server.ask(command="reload")
    return refused.value


@pytest.mark.parametrize("reload", [by_signal, by_command])
def test_new_code_serves_and_old_connections_go_on(reloaded: Reloaded, reload: Callable[[Server], None]) -> None:
    server = reloaded.start()
    with server.connect() as old:
        old.sendall(b"\n")
        assert old.recv(100) == b"one\n"
        reloaded.application("two")
        reload(server)
        assert exchange(server.connect(), b"\n") == b"two\n"
        old.sendall(b"\n")
        assert old.recv(100) == b"one\n"
        assert generation(server) == 2
        assert sorted(title(pid) for pid in server.family()) == [
            "forkd: master",
            "forkd: test: fork server, generation 1",
            "forkd: test: fork server, generation 2",
            "forkd: test: worker 0, generation 1",
            "forkd: test: worker 0, generation 2",
        ]
        states = {(1, "leaving"), (2, "idle")}
        until(lambda: {(each["generation"], each["state"]) for each in server.status()["workers"]} == states)
    settled(server)
    assert server.status("test")["requests"] == 3


def test_the_command_tells_the_generations(reloaded: Reloaded) -> None:
    server = reloaded.start(service("one"), service("two"))
    assert server.ask(command="reload")["generations"] == {"one": 2, "two": 2}


def test_no_connection_is_refused_or_lost_meanwhile(reloaded: Reloaded) -> None:
    server = reloaded.start()
    over = threading.Event()
    answers: list[bytes] = []

    def ask() -> None:
        while not over.is_set():
            answers.append(exchange(server.connect(), b"a\nb\n"))

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for word in ("two", "one", "two"):
            reloaded.application(word)
            server.ask(command="reload")
    finally:
        over.set()
        asker.join()
    assert set(answers) <= {b"one\none\n", b"two\ntwo\n"}
    assert len(answers) > 3


def _syntax(reloaded: Reloaded) -> None:
    reloaded.settings("[service.test\n")


def _unknown_key(reloaded: Reloaded) -> None:
    reloaded.settings(service(more="worcers = 3"))


def _import_error(reloaded: Reloaded) -> None:
    reloaded.write("app.py", "import no_such_module\n")


def _no_service(reloaded: Reloaded) -> None:
    reloaded.settings(service(app="app:question"))


def _lifespan(reloaded: Reloaded) -> None:
    reloaded.settings(service(app="lives:fails", more=f'path = "{HANDLERS}"'))


def _dying_lifespan(reloaded: Reloaded) -> None:
    reloaded.settings(service(app="lives:aborts", more=f'path = "{HANDLERS}"'))


def _exiting_import(reloaded: Reloaded) -> None:
    reloaded.write("app.py", "import os\nos._exit(0)\n")


def _boot_timeout(reloaded: Reloaded) -> None:
    reloaded.settings(service(app="lives:hangs", more=f'path = "{HANDLERS}"\nboot_timeout = 0.4'))


def _import_timeout(reloaded: Reloaded) -> None:
    os.mkfifo(reloaded.folder / "gate")
    reloaded.settings(service(app="gate:shout", more=f'path = "{HANDLERS}"\nboot_timeout = 0.4'))


def _new_service(reloaded: Reloaded) -> None:
    reloaded.settings(service(), service("other", app="app:question"))


def _log_file(reloaded: Reloaded) -> None:
    reloaded.settings(service(), master='log.file = "/no/such/folder/log"')


BROKEN = [
    (_syntax, Exit.CONFIG, r"^forkd.toml:\d+: is not TOML"),
    (_unknown_key, Exit.CONFIG, r"^forkd.toml:8: service.test.worcers: .*workers"),
    (_import_error, Exit.FAILED, r"^forkd.toml:5: service.test.app: .*no module 'no_such_module'|No module named"),
    (_no_service, Exit.FAILED, r"^forkd.toml:5: service.test.app: module 'app' has no 'question'"),
    (_lifespan, Exit.FAILED, r"the lifespan failed: ConnectionError\('no database today'\)"),
    (_dying_lifespan, Exit.FAILED, r"worker 0 could not boot \(signal 6 \(SIGABRT\)\)"),
    (_exiting_import, Exit.FAILED, r"the fork server ended \(exit status 0\)"),
    (_boot_timeout, Exit.FAILED, r"service test: (worker 0: )?not ready within its boot_timeout of 0.4 s"),
    (_import_timeout, Exit.FAILED, r"service test: not ready within its boot_timeout of 0.4 s"),
    (_new_service, Exit.FAILED, r"^forkd.toml:10: service.other.app: "),
    (_log_file, Exit.FAILED, r"cannot open the log file /no/such/folder/log"),
]


@pytest.mark.parametrize(("broken", "status", "why"), BROKEN, ids=[each[0].__name__ for each in BROKEN])
def test_a_broken_reload_changes_nothing(
    reloaded: Reloaded, broken: Callable[[Reloaded], None], status: Exit, why: str
) -> None:
    server = reloaded.start()
    before = server.family()
    reloaded.application("two")
    broken(reloaded)
    refused = reason(server)
    assert refused.exit_status == status
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(str(refused))
    server.said("error reload: nothing changed: ")
    until(lambda: server.family() == before, "the original processes")
    assert exchange(server.connect(), b"\n") == b"one\n"
    assert generation(server) == 1
    reloaded.application("two")
    reloaded.settings(service())
    server.ask(command="reload")
    assert exchange(server.connect(), b"\n") == b"two\n"


def test_a_broken_reload_by_signal_tells_the_log(reloaded: Reloaded) -> None:
    server = reloaded.start()
    _unknown_key(reloaded)
    server.kill(signal.SIGHUP)
    server.said(r"error reload: nothing changed: forkd.toml:8: service.test.worcers: ")
    assert exchange(server.connect(), b"\n") == b"one\n"


def test_an_address_in_use_is_refused(reloaded: Reloaded) -> None:
    server = reloaded.start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        door = reloaded.folder / "door.sock"
        reloaded.settings(
            service(), service("other", listen=f"unix:{door}"), service("third", listen=f"127.0.0.1:{port}")
        )
        assert f"cannot listen on 127.0.0.1:{port}: another process listens there" in str(reason(server))
        assert not door.exists()
    assert exchange(server.connect(), b"\n") == b"one\n"
    server.ask(command="reload")
    assert exchange(connect(f"127.0.0.1:{port}"), b"\n") == b"one\n"


def test_services_come_and_go(reloaded: Reloaded) -> None:
    server = reloaded.start(service("test"), service("goes", listen=f"unix:{reloaded.folder}/goes.sock"))
    with server.connect("goes") as kept:
        kept.sendall(b"\n")
        assert kept.recv(100) == b"one\n"
        reloaded.settings(service("test"), service("comes", listen=f"unix:{reloaded.folder}/comes.sock"))
        server.ask(command="reload")
        server.serving(3)
        assert exchange(server.connect("comes"), b"\n") == b"one\n"
        kept.sendall(b"\n")
        assert kept.recv(100) == b"one\n"
        assert set(server.status()["services"]) == {"test", "comes"}
        assert not (reloaded.folder / "goes.sock").exists()
    settled(server, 2)
    assert server.titled("forkd: goes: .*") == []
    assert server.stop() == 0
    assert not (reloaded.folder / "comes.sock").exists()


def test_a_service_that_went_comes_back(reloaded: Reloaded) -> None:
    server = reloaded.start(service("test"), service("other"))
    exchange(server.connect("other"), b"\n")
    for services in ((service("test"),), (service("test"), service("other"))) * 2:
        reloaded.settings(*services)
        server.ask(command="reload")
    address = server.status("other")["listen"][0]
    assert exchange(connect(address), b"\n") == b"one\n"


def test_listeners_come_and_go(reloaded: Reloaded) -> None:
    first, second = (f"unix:{reloaded.folder}/{name}.sock" for name in ("first", "second"))
    server = reloaded.start(service(listen=first))
    reloaded.settings(service(listen=second))
    server.ask(command="reload")
    assert server.status("test")["listen"] == [second]
    assert exchange(connect(second), b"\n") == b"one\n"
    with pytest.raises(FileNotFoundError):
        connect(first)


def test_a_listener_that_went_can_come_back_while_old_connections_last(reloaded: Reloaded) -> None:
    server = reloaded.start(service(), service("other"))
    address = server.status("other")["listen"][0]
    with server.connect("other") as old:
        old.sendall(b"\n")
        assert old.recv(100) == b"one\n"
        reloaded.settings(service())
        server.ask(command="reload")
        until(lambda: refused(address), "no listener")
        reloaded.settings(service(), service("other", listen=address))
        server.ask(command="reload")
        assert exchange(connect(address), b"\n") == b"one\n"
        old.sendall(b"\n")
        assert old.recv(100) == b"one\n"


def test_a_port_that_the_kernel_picked_stays(reloaded: Reloaded) -> None:
    server = reloaded.start(service(more="backlog = 7"))
    address = server.status("test")["listen"]
    server.ask(command="reload")
    assert server.status("test")["listen"] == address


def test_an_address_may_go_from_one_service_to_another(reloaded: Reloaded) -> None:
    door = f"unix:{reloaded.folder}/door.sock"
    server = reloaded.start(service(listen=door))
    file = (reloaded.folder / "door.sock").stat()
    reloaded.settings(service("other", listen=door))
    server.ask(command="reload")
    assert set(server.status()["services"]) == {"other"}
    assert exchange(connect(door), b"\n") == b"one\n"
    assert (reloaded.folder / "door.sock").stat().st_ino == file.st_ino


def test_new_limits_hold(reloaded: Reloaded) -> None:
    server = reloaded.start()
    reloaded.settings(service(more="idle_timeout = 0.1"))
    server.ask(command="reload")
    with server.connect() as silent:
        assert silent.recv(100) == b""


def test_a_new_size_holds(reloaded: Reloaded) -> None:
    server = reloaded.start()
    reloaded.settings(service().replace("workers = 1", "workers = 4"))
    server.ask(command="reload")
    until(lambda: server.status("test")["workers"]["total"] == 4)
    reloaded.settings(service())
    server.ask(command="reload")
    settled(server)


def test_a_new_log_holds_for_everybody(reloaded: Reloaded, tmp_path: Path) -> None:
    small = service(app="small:complain", more=f'path = "{HANDLERS}"')
    server = reloaded.start(small)
    log = tmp_path / "new.log"
    reloaded.settings(small, master=f'log = {{ file = "{log}", format = "json", level = "debug" }}')
    server.ask(command="reload")
    exchange(server.connect(), b"the first\n")
    until(lambda: "cannot do the first" in log.read_text(), "the worker's word")
    assert '"reload: the new generation serves"' in log.read_text()
    assert all(line.startswith("{") for line in log.read_text().splitlines())
    reloaded.settings(small)
    server.ask(command="reload")
    exchange(server.connect(), b"the second\n")
    server.said("cannot do the second")
    assert "the second" not in log.read_text()


def test_keys_that_take_a_restart_are_told(reloaded: Reloaded) -> None:
    server = reloaded.start()
    reloaded.settings(service(), master='pidfile = "forkd.pid"')
    server.ask(command="reload")
    server.said("warning reload: a change of master.pidfile needs a restart")


def test_many_reloads_in_a_row_converge(reloaded: Reloaded) -> None:
    server = reloaded.start()
    for word in ("two", "three", "four"):
        reloaded.application(word)
        server.kill(signal.SIGHUP)
        server.said("signal: reload", 1)
    results: list[Any] = []
    callers = [threading.Thread(target=lambda: results.append(server.ask(command="reload"))) for _ in range(6)]
    reloaded.application("last")
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 6
    assert exchange(server.connect(), b"\n") == b"last\n"
    settled(server)
    # The reloads that were requested during another one shared the next.
    assert generation(server) <= 8


def test_old_generations_do_not_pile_up(reloaded: Reloaded) -> None:
    """Two old generations may finish at their leisure. An older one ends after its next request."""
    server = reloaded.start()
    with ExitStack() as opened:
        clients = []
        for _ in range(4):
            clients.append(opened.enter_context(server.connect()))
            clients[-1].sendall(b"\n")
            assert clients[-1].recv(100) == b"one\n"
            server.ask(command="reload")
        assert clients[0].recv(100) == b""
        for client in clients[2:]:
            client.sendall(b"\n")
            assert client.recv(100) == b"one\n"


def test_a_drain_has_an_end(reloaded: Reloaded) -> None:
    server = reloaded.start(service(more="drain_timeout = 0.2"))
    with server.connect() as client:
        client.sendall(b"\n")
        assert client.recv(100) == b"one\n"
        server.ask(command="reload")
        assert client.recv(100) == b""
    settled(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_a_reload(reloaded: Reloaded, number: signal.Signals) -> None:
    server = reloaded.start()
    os.mkfifo(reloaded.folder / "gate")
    reloaded.settings(service(app="gate:shout", more=f'path = "{HANDLERS}"'), service("other"))
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(server.control_path))
        caller.sendall(b'{"command": "reload"}\n')
        until(lambda: server.titled("forkd: test: fork server, generation 2"))
        assert exchange(server.connect(), b"\n") == b"one\n"
        assert server.stop(number) == 0
        assert b"forkd is stopping" in caller.recv(1000)
    server.gone()


def test_a_fork_server_that_dies_during_a_reload_fails_it(reloaded: Reloaded) -> None:
    server = reloaded.start()
    os.mkfifo(reloaded.folder / "gate")
    reloaded.settings(service(app="gate:shout", more=f'path = "{HANDLERS}"'))
    server.kill(signal.SIGHUP)
    (coming,) = until(lambda: server.titled("forkd: test: fork server, generation 2"))
    os.kill(coming, signal.SIGKILL)
    server.said(r"nothing changed: service test: the fork server ended \(signal 9 \(SIGKILL\)\)")
    assert not alive(coming)
    assert exchange(server.connect(), b"\n") == b"one\n"


def test_a_new_fork_server_inherits_nothing_of_the_old_ones(forkd: Forkd) -> None:
    server = forkd("small:shout", workers=2).serving()

    def held() -> list[str]:
        """Returns what the only fork server's descriptors refer to, without the numbers of single pipes and sockets."""
        [pid] = until(lambda: len(found := server.fork_servers()) == 1 and found)
        return sorted(re.sub(r"\[\d+\]", "", each) for each in open_files(pid))

    # While it forks, it also has the descriptors that it then hands to the worker and to the master.
    until(lambda: not any("stack" in each for each in held()))
    before = held()
    for _ in range(2):
        server.ask(command="reload")
        until(lambda: held() == before, "the same descriptors")
