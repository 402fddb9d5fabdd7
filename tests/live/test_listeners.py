"""Where services listen: every form of address, and every way an address can be refused."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from forkd.kernel.address import Address, parse
from tests import netns
from tests.conftest import Forkd
from tests.server import (
    AS_NOBODY,
    FORKD,
    HANDLERS,
    NOBODY,
    POWERLESS,
    Server,
    connect,
    exchange,
    nobody_missing,
    program,
    running,
    setpriv_missing,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yields a folder with a short path that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="forkd-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def service(*listen: str, name: str = "test", app: str = "small:ends", keys: str = "") -> str:
    """Returns a table of a settings file. Each entry of `listen` is TOML: a quoted string or a table."""
    return (
        f'[service.{name}]\napp = "{app}"\npath = "{HANDLERS}"\nworkers = 1\nlisten = [{", ".join(listen)}]\n{keys}\n'
    )


def called(address: str) -> Address:
    """Returns the server's end of a connection to `address`, as its handler sees it."""
    return parse(exchange(connect(address), b"?\n").decode().split(" ")[0])


def port_of(server: Server) -> int:
    return parse(server.addresses[0][1]).port


# TCP.


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_an_address_of_its_own(forkd: Forkd, host: str) -> None:
    server = forkd("small:ends", workers=1, listen=f"{host}:0").serving()
    [(name, address)] = server.addresses
    assert name == "test"
    assert address.startswith(f"{host}:")
    assert port_of(server) > 0
    assert server.status("test")["listen"] == [address]
    with connect(address) as client:
        here = client.getsockname()
        client.sendall(b"?\n")
        local, peer = client.recv(200).decode().split()
        assert local == address
        assert parse(peer) == Address(here[0], here[1])


def test_a_wildcard_answers_from_the_address_that_was_called(forkd: Forkd) -> None:
    server = forkd("small:ends", workers=1, listen="*:0").serving()
    port = port_of(server)
    assert server.addresses == [("test", f"*:{port}")]
    assert server.status("test")["listen"] == [f"*:{port}"]
    for host in ("127.0.0.1", "127.0.0.2", "::1"):
        ours = Address(host, port)
        with connect(str(ours)) as client:
            assert client.getpeername()[:2] == (host, port)
            client.sendall(b"?\n")
            local, peer = client.recv(200).decode().split()
            assert (parse(local), parse(peer)) == (ours, Address(*client.getsockname()[:2]))


def test_both_families_side_by_side_on_one_port(forkd: Forkd) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as found:
        port = found.getsockname()[1]
    four, six = f"0.0.0.0:{port}", f"[::]:{port}"
    server = forkd(file=service(f'"{four}"', f'"{six}"')).serving(2)
    assert server.addresses == [("test", four), ("test", six)]
    assert called(f"127.0.0.3:{port}") == Address("127.0.0.3", port)
    assert called(f"[::1]:{port}") == Address("::1", port)


def test_an_ipv6_wildcard_is_not_for_ipv4(forkd: Forkd) -> None:
    server = forkd("small:ends", workers=1, listen="[::]:0").serving()
    with pytest.raises(ConnectionRefusedError):
        connect(f"127.0.0.1:{port_of(server)}")


def test_a_name_means_every_address_it_has(forkd: Forkd) -> None:
    found = socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
    hosts = {str(sockaddr[0]) for _, _, _, _, sockaddr in found}
    server = forkd("small:ends", workers=1, listen="localhost:0").serving(len(hosts))
    addresses = [parse(address) for _, address in server.addresses]
    assert {address.host for address in addresses} == hosts
    assert all(address.port for address in addresses)
    assert server.status("test")["listen"] == [str(address) for address in addresses]
    for address in addresses:
        assert called(str(address)) == address


def test_a_name_goes_without_an_address_that_the_machine_lacks(folder: Path) -> None:
    if reason := netns.missing():
        pytest.skip(reason)
    (folder / "forkd.toml").write_text(f'master.control = "{folder}/control.sock"\n' + service('"localhost:0"'))
    with netns.namespace() as here:
        here.run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
        with running(["forkd.toml"], folder, program=here.command(*FORKD)) as server:
            server.serving()
            assert [parse(address).host for address in server.status("test")["listen"]] == ["127.0.0.1"]


def test_several_listeners_of_one_service(forkd: Forkd, folder: Path) -> None:
    listen = ['"127.0.0.1:0"', '"127.0.0.1:0"', '"[::1]:0"', f'"unix:{folder}/echo"']
    server = forkd(file=service(*listen)).serving(4)
    addresses = [address for _, address in server.addresses]
    assert len(set(addresses)) == 4
    assert server.status("test")["listen"] == addresses
    for address in addresses:
        assert called(address) == parse(address)


def test_several_services(forkd: Forkd) -> None:
    server = forkd(file=service('"*:0"') + service('"*:0"', name="other", app="small:shout")).serving(2)
    assert [name for name, _ in server.addresses] == ["test", "other"]
    assert exchange(server.connect("other"), b"hello\n") == b"HELLO\n"


# Unix sockets.


def test_a_unix_socket_has_its_rights_from_the_first_moment(forkd: Forkd, folder: Path) -> None:
    path = folder / "echo.sock"
    rights = 'mode = "0640"'
    if os.geteuid() == 0:
        rights += f', user = "nobody", group = "{NOBODY.pw_gid}"'
    server = forkd(file=service(f'{{ address = "unix:{path}", {rights} }}'))
    while not path.exists():  # a pause could miss the moment
        assert server.pid in server.family()
    found = path.stat()
    connect(f"unix:{path}").close()  # it listens already
    assert stat.S_IMODE(found.st_mode) == 0o640
    if os.geteuid() == 0:
        assert (found.st_uid, found.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
    server.serving()
    assert path.stat().st_ctime_ns == found.st_ctime_ns  # nothing has changed since that moment
    assert sorted(each.name for each in folder.iterdir()) == ["echo.sock"]
    assert server.addresses == [("test", f"unix:{path}")]
    with connect(f"unix:{path}") as client:
        client.sendall(b"?\n")
        assert client.recv(200).decode().split(" ")[0] == f"unix:{path}"
    assert server.stop() == 0
    assert list(folder.iterdir()) == []


def test_a_unix_socket_without_a_mode_has_that_of_the_umask(forkd: Forkd, folder: Path) -> None:
    before = os.umask(0o027)
    try:
        server = forkd(file=service(f'"unix:{folder}/echo"')).serving()
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "echo").stat().st_mode) == 0o750
    # Opening the socket has not changed the master's umask, nor therefore those of the applications.
    for pid in server.family():
        assert "\nUmask:\t0027\n" in Path(f"/proc/{pid}/status").read_text()


def test_an_abstract_unix_socket(forkd: Forkd) -> None:
    address = f"unix:@forkd-test-{os.getpid()}"
    server = forkd(file=service(f'"{address}"')).serving()
    assert server.addresses == [("test", address)]
    assert server.status("test")["listen"] == [address]
    with connect(address) as client:
        client.sendall(b"?\n")
        assert client.recv(200).decode().split(" ")[0] == address
    assert server.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def test_a_stale_unix_socket_is_taken_over(forkd: Forkd, folder: Path) -> None:
    path = folder / "echo"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    stale = path.stat().st_ino
    server = forkd(file=service(f'"unix:{path}"')).serving()
    assert path.stat().st_ino != stale
    assert called(f"unix:{path}") == Address(str(path), 0, "unix")
    assert server.stop() == 0
    assert not path.exists()


def test_a_live_unix_socket_is_refused_and_keeps_its_file(forkd: Forkd, folder: Path) -> None:
    path = folder / "echo"
    first = forkd(file=service(f'"unix:{path}"')).serving()
    before = path.stat().st_ino
    refused = forkd(file=service(f'"unix:{path}"'))
    check_refused(refused, f"unix:{path}", "another server listens there")
    assert path.stat().st_ino == before
    assert called(f"unix:{path}").host == str(path)
    assert first.status("test")["listen"] == [f"unix:{path}"]


def test_a_regular_file_in_the_way_is_refused_and_kept(forkd: Forkd, folder: Path) -> None:
    path = folder / "echo"
    path.write_text("precious")
    check_refused(forkd(file=service(f'"unix:{path}"')), f"unix:{path}", "the file there is not a socket")
    assert path.read_text() == "precious"
    assert [each.name for each in folder.iterdir()] == ["echo"]


def test_a_unix_socket_in_no_folder_is_refused(forkd: Forkd, folder: Path) -> None:
    path = folder / "nowhere/echo"
    check_refused(forkd(file=service(f'"unix:{path}"')), f"unix:{path}", f"there is no folder {folder}/nowhere")


def test_an_owner_whom_nobody_knows_is_refused(forkd: Forkd, folder: Path) -> None:
    entry = f'{{ address = "unix:{folder}/echo", user = "no-such-user" }}'
    check_refused(forkd(file=service(entry)), f"unix:{folder}/echo", "there is no user 'no-such-user'")
    assert list(folder.iterdir()) == []


# Refusals.


def check_refused(server: Server, address: str, *words: str, name: str = "test") -> None:
    """Checks that it exited with status 1 after one sentence, and left nothing behind."""
    assert server.exited() == 1
    said = [line for line in server.lines[:-1] if "as root; set master.user" not in line]
    assert len(said) == 1
    assert said[0].startswith(f"forkd: service {name}: cannot listen on {address}: ")
    for word in words:
        assert word in said[0]
    server.gone()


def test_an_address_in_use_is_refused(forkd: Forkd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = forkd("small:ends", listen=f"127.0.0.1:{port}")
        check_refused(server, f"127.0.0.1:{port}", "another process listens there", f"sport = :{port}")


def test_what_was_opened_before_a_refusal_is_put_away(forkd: Forkd, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = service(f'"unix:{folder}/echo"') + service(f'"127.0.0.1:{port}"', name="other")
        check_refused(forkd(file=text), f"127.0.0.1:{port}", name="other")
    assert list(folder.iterdir()) == []


def test_an_address_of_another_machine_is_refused(forkd: Forkd) -> None:
    server = forkd("small:ends", listen="192.0.2.1:0")
    check_refused(server, "192.0.2.1:0", "192.0.2.1 is not an address of this machine")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid"])
def test_a_name_that_nobody_knows_is_refused(forkd: Forkd, host: str) -> None:
    check_refused(forkd("small:ends", listen=f"{host}:7"), f"{host}:7", "the name has no address")


def test_a_port_for_root_is_refused_to_others(folder: Path) -> None:
    if reason := setpriv_missing():
        pytest.skip(reason)
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 7:
        pytest.skip("every user may bind any port here (net.ipv4.ip_unprivileged_port_start)")
    arguments = ["small:ends", "--listen", "127.0.0.1:7", "--set", f"path={HANDLERS}"]
    with running(arguments, folder, program=[*POWERLESS, *FORKD]) as server:
        check_refused(server, "127.0.0.1:7", "port 7 needs root", "CAP_NET_BIND_SERVICE", name="ends")


def test_a_folder_of_somebody_else_is_refused(folder: Path) -> None:
    if reason := setpriv_missing():
        pytest.skip(reason)
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    arguments = ["small:ends", "--listen", f"unix:{folder}/echo", "--set", f"path={HANDLERS}"]
    with running(arguments, folder, program=[*POWERLESS, *FORKD]) as server:
        check_refused(server, f"unix:{folder}/echo", "Permission denied", name="ends")


def test_it_serves_as_nobody_too(folder: Path) -> None:
    if reason := nobody_missing():
        pytest.skip(reason)
    arguments = ["small:ends", "--listen", "127.0.0.1:0", "--workers", "1", "--set", f"path={HANDLERS}"]
    before = ["env", "-u", "XDG_RUNTIME_DIR", f"RUNTIME_DIRECTORY={folder}/none", *AS_NOBODY]
    with running(arguments, folder, program=[*before, *FORKD]) as server:
        # It may not create the folder of its control socket. It reports that, and serves.
        server.serving().said("cannot open the control socket")
        address = server.addresses[0][1]
        assert called(address) == parse(address)
        assert server.stop() == 0


# What a reload may change.


def test_a_reload_that_changes_a_listener_in_place_says_that_it_is_our_own(forkd: Forkd, folder: Path) -> None:
    server = forkd(file=service(f'"unix:{folder}/echo"', '"127.0.0.1:0"')).serving(2)
    port = parse(server.addresses[1][1]).port
    text = (server.control_path.parent / "forkd.toml").read_text()
    for old, new in (
        (f'"unix:{folder}/echo"', f'{{ address = "unix:{folder}/echo", mode = "0600" }}'),
        ('"127.0.0.1:0"', f'"0.0.0.0:{port}"'),
    ):
        (server.control_path.parent / "forkd.toml").write_text(text.replace(old, new))
        result = program("reload", "-c", "forkd.toml", cwd=server.control_path.parent)
        assert result.returncode == 1
        assert "this forkd already listens on" in result.stderr
        assert "needs a restart" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    for _, address in server.addresses:
        assert called(address) == parse(address)


# systemd.


def activate(folder: Path, stack: ExitStack, listen: list[str], *sockets: str) -> Server:
    """Starts forkd as systemd would, with sockets from systemd-socket-activate, whose options are `sockets`."""
    if not shutil.which("systemd-socket-activate"):
        pytest.skip("needs the program systemd-socket-activate")
    text = f'master.control = "{folder}/control.sock"\n' + service(*(f'"{each}"' for each in listen))
    (folder / "forkd.toml").write_text(text)
    variables = [f"--setenv={name}={value}" for name, value in os.environ.items() if name.startswith("PYTHON")]
    command = ["systemd-socket-activate", *variables, "--setenv=PYTHONPATH", *sockets, *FORKD]
    return stack.enter_context(running(["forkd.toml"], folder, program=command))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def test_sockets_of_systemd_by_name(folder: Path, stack: ExitStack) -> None:
    paths = [f"{folder}/one", f"{folder}/two"]
    server = activate(folder, stack, ["systemd:web"], "--fdname=web:web", *(f"--listen={path}" for path in paths))
    server.said("Listening on", 2)
    with connect(f"unix:{paths[0]}") as first:  # this connection starts forkd
        first.sendall(b"?\n")
        server.serving(2)
        assert server.addresses == [("test", f"unix:{path}") for path in paths]
        assert first.recv(200).decode().split(" ")[0] == f"unix:{paths[0]}"
    assert called(f"unix:{paths[1]}").host == paths[1]
    assert server.stop() == 0
    server.gone()
    assert Path(paths[0]).exists()  # the file belongs to systemd


def test_a_socket_of_systemd_by_its_place(folder: Path, stack: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    server = activate(folder, stack, ["systemd:1"], f"--listen={folder}/one", f"--listen=127.0.0.1:{port}")
    server.said("Listening on", 2)
    with connect(f"127.0.0.1:{port}") as first:
        first.sendall(b"?\n")
        assert first.recv(200).decode().split(" ")[0] == f"127.0.0.1:{port}"
    assert server.serving().addresses == [("test", f"127.0.0.1:{port}")]


def test_a_socket_that_systemd_did_not_pass_is_refused(folder: Path, stack: ExitStack) -> None:
    server = activate(folder, stack, ["systemd:other"], "--fdname=web", f"--listen={folder}/one")
    server.said("Listening on")
    with connect(f"unix:{folder}/one"):
        assert server.exited() == 1
    assert server.said(r"forkd: service test: .*'other'.*it passed: web")


def test_without_systemd_there_is_no_socket_of_it(forkd: Forkd) -> None:
    server = forkd("small:ends", listen="systemd:web")
    assert server.exited() == 1
    assert server.said(r"forkd: service test: systemd passed no socket named 'web' \(it passed: none\)")


def test_a_socket_of_systemd_comes_back_after_a_reload_without_it(folder: Path, stack: ExitStack) -> None:
    server = activate(folder, stack, ["systemd:web"], "--fdname=web", f"--listen={folder}/one")
    server.said("Listening on")
    connect(f"unix:{folder}/one").close()
    server.serving()
    file = folder / "forkd.toml"
    text = file.read_text()
    for listen in ("127.0.0.1:0", "systemd:web"):
        file.write_text(text.replace("systemd:web", listen))
        server.ask(command="reload")
    assert server.status("test")["listen"] == [f"unix:{folder}/one"]
    assert called(f"unix:{folder}/one").host == f"{folder}/one"
