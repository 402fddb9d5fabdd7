"""The standard services, checked against their RFCs as a strict client would."""

from __future__ import annotations

import re
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkd import services
from forkd.serving.outcome import End
from forkd.serving.service import Service
from forkd.testing import connect

PRINTABLE = bytes(range(32, 127))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=100), max_size=5))
def test_echo_sends_back_what_it_gets(pieces: list[bytes]) -> None:
    with connect(services.echo) as client:
        for piece in pieces:
            client.send(piece)
        assert client.read_all() == b"".join(pieces)
        assert client.outcome.end is End.CLIENT


def test_echo_answers_before_the_end() -> None:
    with connect(services.echo) as client:
        for byte in (b"a", b"\0", b"\n"):
            client.send(byte)
            assert client.recv(10) == byte


def test_echo_takes_more_than_the_buffers_hold() -> None:
    data = bytes(range(256)) * 4000
    with connect(services.echo) as client:
        for at in range(0, len(data), 32_000):
            client.send(data[at : at + 32_000])
            assert client.read_exactly(len(data[at : at + 32_000])) == data[at : at + 32_000]


def test_discard_never_answers() -> None:
    with connect(services.discard) as client:
        client.send(b"anything\n" * 10_000)
        assert client.read_all() == b""
        assert client.outcome.end is End.CLIENT


def test_chargen_shifts_its_lines_by_one() -> None:
    with connect(services.chargen) as client:
        lines = client.read_exactly(74 * 200).split(b"\r\n")
    assert lines.pop() == b""
    ring = PRINTABLE * 2
    assert lines == [ring[n % 95 : n % 95 + 72] for n in range(200)]
    assert {len(line) for line in lines} == {72}


def test_chargen_goes_on_whatever_the_client_says_or_ends() -> None:
    with connect(services.chargen) as client:
        client.send(b"stop it")
        client.end()
        assert len(client.read_exactly(1_000_000)) == 1_000_000


@pytest.mark.parametrize("service", [services.qotd, services.daytime, services.time], ids=lambda each: each.__name__)
def test_the_short_ones_end_by_themselves_and_ignore_input(service: Service[..., object]) -> None:
    with connect(service) as client:
        assert client.recv(1000)
        assert client.recv(1000) == b""
        assert client.outcome.end is End.CLOSED
    with connect(service) as client:
        client.send(b"unasked for\r\n" * 100)
        assert client.read_all()


def test_qotd_is_one_short_quotation() -> None:
    with connect(services.qotd) as client:
        quote = client.read_all()
    assert quote.endswith(b"\r\n")
    assert 0 < len(quote) < 512
    assert set(quote) <= {*PRINTABLE, 13, 10}


@pytest.mark.parametrize("quote", services._QUOTES)
def test_every_quotation_keeps_to_the_rfc(quote: bytes) -> None:
    assert len(quote) + 2 < 512
    assert set(quote) <= set(PRINTABLE)


def test_daytime_is_one_line_of_ascii() -> None:
    before = int(time.time())
    with connect(services.daytime) as client:
        line = client.read_all()
    after = int(time.time())
    assert re.fullmatch(rb"[A-Z][a-z]+, [A-Z][a-z]+ \d{1,2}, \d{4} \d\d:\d\d:\d\d-[A-Za-z0-9+-]+\r\n", line)
    possible = [time.localtime(second) for second in range(before, after + 1)]
    assert line.decode("ascii") in [
        time.strftime(f"%A, %B {moment.tm_mday}, %Y %H:%M:%S-%Z\r\n", moment) for moment in possible
    ]


def test_time_is_four_bytes_since_1900() -> None:
    before = int(time.time())
    with connect(services.time) as client:
        data = client.read_all()
    assert len(data) == 4
    # RFC 868 itself: "the time 2,208,988,800 corresponds to 00:00 1 Jan 1970 GMT".
    assert before <= struct.unpack(">I", data)[0] - 2_208_988_800 <= int(time.time()) < 2**32 - 2_208_988_800


def test_a_broken_off_chargen_is_nobodys_error() -> None:
    with connect(services.chargen) as client:
        client.read_exactly(10)
    assert client.outcome.end is End.RESET


def test_the_services_are_what_their_names_say() -> None:
    made = {name for name, value in vars(services).items() if isinstance(value, Service)}
    assert made == {"echo", "discard", "chargen", "qotd", "daytime", "time"}
    for name in made:
        assert re.search(r"\(RFC 86[234578]\)", getattr(services, name).__doc__ or ""), name
