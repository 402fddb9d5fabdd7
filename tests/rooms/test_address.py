"""Addresses as people write them, and the error messages for invalid ones."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkd.errors import AddressError, Exit
from forkd.kernel.address import Address, from_sockaddr, parse

FORMS = "HOST:PORT, [IPV6]:PORT, *:PORT, unix:/PATH, unix:@NAME or systemd:NAME"
LONG_PATH = "/" + "x" * 106


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7007", Address("127.0.0.1", 7007)),
        ("[::1]:7007", Address("::1", 7007)),
        ("*:7007", Address("*", 7007)),
        ("0.0.0.0:7007", Address("0.0.0.0", 7007)),
        ("[::]:7007", Address("::", 7007)),
        ("host.example:7007", Address("host.example", 7007)),
        ("host.example.:7007", Address("host.example.", 7007)),
        ("localhost:0", Address("localhost", 0)),
        ("db_1-a:65535", Address("db_1-a", 65535)),
        ("3com.example:7", Address("3com.example", 7)),
        ("[::ffff:127.0.0.1]:7", Address("::ffff:127.0.0.1", 7)),
        ("[fe80::1%eth0]:7", Address("fe80::1%eth0", 7)),
        ("[fe80::1%2]:7", Address("fe80::1%2", 7)),
        ("unix:/run/forkd/echo.sock", Address("/run/forkd/echo.sock", 0, "unix")),
        ("unix:/with space:7", Address("/with space:7", 0, "unix")),
        ("unix:@name", Address("@name", 0, "unix")),
        (f"unix:{LONG_PATH}", Address(LONG_PATH, 0, "unix")),
        ("systemd:echo", Address("echo", 0, "systemd")),
    ],
)
def test_every_form(text: str, address: Address) -> None:
    assert parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", f"'' has no port: write {FORMS}"),
        ("7007", f"'7007' has no port: write {FORMS}"),
        ("localhost", f"'localhost' has no port: write {FORMS}"),
        ("/run/echo.sock", f"'/run/echo.sock' has no port: write {FORMS}"),
        (":7007", "':7007' has no host: write *:PORT for all addresses of this machine"),
        ("localhost:", "'localhost:': '' is not a port: a number from 0 to 65535"),
        ("localhost:http", "'localhost:http': 'http' is not a port: a number from 0 to 65535"),
        ("localhost:65536", "'localhost:65536': '65536' is not a port: a number from 0 to 65535"),
        ("localhost:-1", "'localhost:-1': '-1' is not a port: a number from 0 to 65535"),
        ("localhost:+1", "'localhost:+1': '+1' is not a port: a number from 0 to 65535"),
        ("localhost: 1", "'localhost: 1': ' 1' is not a port: a number from 0 to 65535"),
        ("localhost:1\n", "'localhost:1\\n': '1\\n' is not a port: a number from 0 to 65535"),
        ("localhost:\u0661", "'localhost:\u0661': '\u0661' is not a port: a number from 0 to 65535"),
        ("localhost:1_0", "'localhost:1_0': '1_0' is not a port: a number from 0 to 65535"),
        ("::1:7007", "'::1:7007': an IPv6 address needs brackets, as in [::1]:7007"),
        ("[::1]", "'[::1]': an IPv6 address needs brackets, as in [::1]:7007"),
        ("[::g]:7", "'[::g]:7': '::g' is not an IPv6 address"),
        ("[]:7", "'[]:7': '' is not an IPv6 address"),
        ("[127.0.0.1]:7", "'[127.0.0.1]:7': '127.0.0.1' is not an IPv6 address"),
        ("[fe80::1%]:7", "'[fe80::1%]:7': 'fe80::1%' is not an IPv6 address"),
        ("[fe80::1%a b]:7", "'[fe80::1%a b]:7': 'fe80::1%a b' is not an IPv6 address"),
        ("[::1\0]:7", "'[::1\\x00]:7': '::1\\x00' is not an IPv6 address"),
        (
            "127.0.0.256:7",
            "'127.0.0.256:7': '127.0.0.256' is not an IPv4 address: four numbers from 0 to 255 with dots",
        ),
        ("127.0.0.01:7", "'127.0.0.01:7': '127.0.0.01' is not an IPv4 address: four numbers from 0 to 255 with dots"),
        ("127.1:7", "'127.1:7': '127.1' is not an IPv4 address: four numbers from 0 to 255 with dots"),
        ("1.2.3.4.5:7", "'1.2.3.4.5:7': '1.2.3.4.5' is not an IPv4 address: four numbers from 0 to 255 with dots"),
        ("a b:7", f"'a b:7': 'a b' is not a host name: write {FORMS}"),
        ("-a:7", f"'-a:7': '-a' is not a host name: write {FORMS}"),
        ("a..b:7", f"'a..b:7': 'a..b' is not a host name: write {FORMS}"),
        ("a\n:7", f"'a\\n:7': 'a\\n' is not a host name: write {FORMS}"),
        ("http://a:7", "'http://a:7': an IPv6 address needs brackets, as in [::1]:7007"),
        ("a" * 254 + ":7", f"{'a' * 254 + ':7'!r}: {'a' * 254!r} is not a host name: write {FORMS}"),
        ("unix:", "'unix:' is not a unix address: write unix:/PATH (an absolute path) or unix:@NAME"),
        ("unix:/", "'unix:/' is not a unix address: write unix:/PATH (an absolute path) or unix:@NAME"),
        ("unix:@", "'unix:@' is not a unix address: write unix:/PATH (an absolute path) or unix:@NAME"),
        ("unix:echo.sock", "'unix:echo.sock' is not a unix address: write unix:/PATH (an absolute path) or unix:@NAME"),
        ("unix:/a\0b", "'unix:/a\\x00b' contains a NUL character"),
        (f"unix:{LONG_PATH}x", f"'unix:{LONG_PATH}x' is longer than the 107 bytes that unix(7) allows"),
        (f"unix:/{'ä' * 54}", f"'unix:/{'ä' * 54}' is longer than the 107 bytes that unix(7) allows"),
        ("systemd:", "'systemd:' names no descriptor: write systemd:NAME, as in FileDescriptorName="),
    ],
)
def test_what_is_no_address(text: str, what: str) -> None:
    with pytest.raises(AddressError) as wrong:
        parse(text)
    assert str(wrong.value) == what
    assert isinstance(wrong.value, ValueError)
    assert wrong.value.exit_status is Exit.USAGE


def test_a_path_may_hold_any_bytes() -> None:
    assert parse("unix:/\udcff").host == "/\udcff"  # how Python passes an argument that is not valid UTF-8


hosts = st.one_of(
    st.just("*"),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,10}[a-z0-9])?){0,3}", fullmatch=True),
)
names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=25)
texts = st.one_of(
    st.builds("{}:{}".format, hosts, st.integers(0, 65535)),
    st.builds("unix:/{}".format, names),
    st.builds("unix:@{}".format, names),
    st.builds("systemd:{}".format, names),
)


@settings(max_examples=50, deadline=None)
@given(texts)
def test_what_is_read_is_written_the_same(text: str) -> None:
    assert str(parse(text)) == text


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("a1.:[]%*@/-\0 unixsystemd"), max_size=20))
def test_a_text_is_an_address_or_an_address_error(text: str) -> None:
    try:
        address = parse(text)
    except AddressError:
        return
    assert parse(str(address)) == address


@settings(max_examples=50, deadline=None)
@given(st.ip_addresses(v=4), st.integers(0, 65535))
def test_ipv4_in_ipv6_is_shown_as_ipv4(host: ipaddress.IPv4Address, port: int) -> None:
    assert from_sockaddr(socket.AF_INET6, (f"::ffff:{host}", port, 0, 0)) == Address(str(host), port)
    assert from_sockaddr(socket.AF_INET, (str(host), port)) == Address(str(host), port)


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [("", "unix:"), ("/a", "unix:/a"), ("/\udcff", "unix:/\\xff"), (b"\0a", "unix:@a"), (b"\0\xff", "unix:@\\xff")],
)
def test_unix_socket_addresses_of_the_kernel(sockaddr: object, text: str) -> None:
    assert str(from_sockaddr(socket.AF_UNIX, sockaddr)) == text
