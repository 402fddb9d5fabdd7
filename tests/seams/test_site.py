"""What one reading of the settings serves, and what the port mapper and a fork server learn of it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import forkd
from forkd.errors import ConfigError
from forkd.ipc.brief import FORMAT, Brief
from forkd.kernel.accounts import Identity
from forkd.kernel.owned_file import OwnedFile
from forkd.master.site import open_site
from forkd.settings import config
from forkd.settings.schema import Settings
from forkd.sockets.rpcbind.protocol import Mapping
from forkd.systemd.passed import Passed


def settings(folder: Path, listen: str) -> Settings:
    file = folder / "forkd.toml"
    rpcbind = "rpcbind = { program = 0x20049001, version = 3 }"
    file.write_text(f'[service.echo]\napp = "forkd.services:echo"\nlisten = {listen}\n{rpcbind}\n')
    return config.load(str(file), cores=1)


def test_the_first_listener_that_ipv4_reaches_is_the_one_to_tell_of(tmp_path: Path) -> None:
    listen = f'["unix:{tmp_path}/echo", "[::1]:0", "127.0.0.1:0", "127.0.0.1:0"]'
    site = open_site(settings(tmp_path, listen), Passed([]))
    try:
        first = site.listeners["echo"][2]
        assert site.mappings() == {"echo": Mapping(0x20049001, 3, first.socket.getsockname()[1])}
    finally:
        site.close_but(None)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET6])
def test_a_socket_that_was_passed_in_and_is_not_for_ipv4_cannot_be_told_of(
    tmp_path: Path, family: socket.AddressFamily
) -> None:
    with socket.socket(family) as passed:
        passed.bind(f"{tmp_path}/echo" if family == socket.AF_UNIX else ("::1", 0))
        passed.listen()
        with pytest.raises(ConfigError, match=r"forkd\.toml:4: service\.echo\.rpcbind: registers IPv4 TCP ports"):
            open_site(settings(tmp_path, '"systemd:echo"'), Passed([("echo", passed)]))


@pytest.mark.parametrize(("only", "told"), [(0, True), (1, False)])
def test_a_passed_socket_for_both_families_is_told_of(tmp_path: Path, only: int, told: bool) -> None:
    """systemd.socket(5) creates such a socket for a plain port."""
    with socket.socket(socket.AF_INET6) as passed:
        passed.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        passed.bind(("::", 0))
        passed.listen()
        wanted = settings(tmp_path, '"systemd:echo"')
        if not told:
            with pytest.raises(ConfigError):
                open_site(wanted, Passed([("echo", passed)]))
            return
        site = open_site(wanted, Passed([("echo", passed)]))
        try:
            assert site.mappings()["echo"].port == passed.getsockname()[1]
        finally:
            site.close_but(None)


def test_a_brief_arrives_as_it_was_sent(tmp_path: Path) -> None:
    site = open_site(settings(tmp_path, '"127.0.0.1:0"'), Passed([]))
    try:
        site.identities["echo"] = Identity(1, 2, (2, 3))
        leavings = [OwnedFile("/run/forkd.pid", 4, 5)]
        brief = site.brief("echo", 6, board=7, wake=8, log=9, leavings=leavings)
        assert Brief.decode(brief.encode()) == brief
        assert Brief.origin(brief.encode()) == (FORMAT, forkd.__version__)
        assert brief.descriptors() == {7, 8, 9, site.listeners["echo"][0].socket.fileno()}
        assert brief.legacy.files == tuple(leavings)
    finally:
        site.close_but(None)
