"""What `forkd call` prints and how it exits when nothing answers, on a deliberately broken network.

Two network namespaces are connected by a virtual cable: `here`, where the client runs, is 198.18.0.1, and `there` is
198.18.0.2 (addresses that RFC 2544 reserves for tests).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests import netns
from tests.netns import Namespace

CALL = [sys.executable, "-m", "forkd", "call"]

pytestmark = pytest.mark.slow


class Hosts(NamedTuple):
    here: Namespace
    there: Namespace


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if reason := netns.missing():
        pytest.skip(reason)
    with netns.namespace() as here, netns.namespace() as there:
        netns.join(here, there, "198.18.0.1/24", "198.18.0.2/24")
        yield Hosts(here, there)


def call(host: Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = host.command(*CALL, *arguments, "hello")
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def check(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert (result.returncode, result.stdout) == (status, ""), result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_a_closed_port_is_refused(hosts: Hosts) -> None:
    result = call(hosts.here, "198.18.0.2:7007")
    check(result, 69, "198.18.0.2:7007", "no process listens there", "ECONNREFUSED")


def test_a_closed_port_of_this_machine_is_refused_by_every_address_tried(hosts: Hosts) -> None:
    result = call(hosts.here, "*:7007")
    check(result, 69, "127.0.0.1:7007 (*:7007)", "[::1]:7007 (*:7007)", "no process listens there", "ECONNREFUSED")


def test_a_firewall_that_refuses_looks_like_a_closed_port(hosts: Hosts) -> None:
    hosts.there.filter("tcp dport 7007 reject with tcp reset")
    check(call(hosts.here, "198.18.0.2:7007"), 69, "no process listens there", "ECONNREFUSED")


def test_packets_that_are_lost_time_out(hosts: Hosts) -> None:
    hosts.there.filter("tcp dport 7007 tcp flags syn drop")
    result = call(hosts.here, "--connect-timeout", "0.2", "198.18.0.2:7007")
    check(result, 75, "198.18.0.2:7007", "no answer within 0.2 s", "ETIMEDOUT")


def test_an_address_that_nobody_has_times_out(hosts: Hosts) -> None:
    result = call(hosts.here, "--connect-timeout", "0.2", "198.18.0.77:7007")
    check(result, 75, "no answer within 0.2 s", "ETIMEDOUT")


def test_a_host_that_a_router_calls_unreachable(hosts: Hosts) -> None:
    hosts.there.filter("tcp dport 7007 reject with icmp type host-unreachable")
    result = call(hosts.here, "198.18.0.2:7007")
    check(result, 69, "198.18.0.2:7007", "host unreachable: it is down", "EHOSTUNREACH")


def test_a_host_that_the_routing_table_calls_unreachable(hosts: Hosts) -> None:
    hosts.here.run("ip", "route", "add", "unreachable", "198.18.1.0/24")
    check(call(hosts.here, "198.18.1.1:7007"), 69, "host unreachable: it is down", "EHOSTUNREACH")


def test_a_network_without_a_route(hosts: Hosts) -> None:
    result = call(hosts.here, "198.18.1.1:7007")
    check(result, 69, "198.18.1.1:7007", "network unreachable: there is no route", "ENETUNREACH")


def test_a_network_that_a_router_calls_unreachable(hosts: Hosts) -> None:
    hosts.there.filter("tcp dport 7007 reject with icmp type net-unreachable")
    check(call(hosts.here, "198.18.0.2:7007"), 69, "network unreachable: there is no route", "ENETUNREACH")


def test_a_route_that_prohibits(hosts: Hosts) -> None:
    hosts.here.run("ip", "route", "add", "prohibit", "198.18.2.0/24")
    check(call(hosts.here, "198.18.2.1:7007"), 69, "prohibits it", "EACCES")


def test_a_route_into_a_black_hole(hosts: Hosts) -> None:
    hosts.here.run("ip", "route", "add", "blackhole", "198.18.3.0/24")
    check(call(hosts.here, "198.18.3.1:7007"), 69, "black hole", "EINVAL")


def test_no_local_port_is_left(hosts: Hosts) -> None:
    # The kernel's port range is a single port, and that one is reserved.
    hosts.here.run("sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 40000")
    hosts.here.run("sysctl", "-q", "-w", "net.ipv4.ip_local_reserved_ports=40000")
    check(call(hosts.here, "198.18.0.2:7007"), 69, "no local address or port is free", "EADDRNOTAVAIL")


def test_a_source_that_this_machine_does_not_have(hosts: Hosts) -> None:
    result = call(hosts.here, "--source", "198.18.9.9", "198.18.0.2:7007")
    check(result, 69, "198.18.9.9", "no such address", "EADDRNOTAVAIL")
