"""The greylisting example: its decisions at given times, and its dialogue with Postfix byte for byte."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import forkd
from examples import policy
from examples.policy import REMEMBER, RETRY_WITHIN, TRUSTED_AFTER, Greylist, Triplet, parse
from forkd.serving.outcome import End
from forkd.testing import Client, connect

NOW = 1_000_000_000.0
TRIPLET = Triplet("192.0.2.0/24", "alice@example.org", "bob@example.com")

# The request in SMTPD_POLICY_README, with everything that Postfix 3.2 and later send.
REQUEST = b"""request=smtpd_access_policy
protocol_state=RCPT
protocol_name=SMTP
helo_name=some.domain.tld
queue_id=8045F2AB23
sender=foo@bar.tld
recipient=bar@foo.tld
recipient_count=0
client_address=1.2.3.4
client_name=another.domain.tld
reverse_client_name=another.domain.tld
instance=123.456.7
sasl_method=
sasl_username=
sasl_sender=
size=12345
ccert_subject=
ccert_issuer=
ccert_fingerprint=
encryption_protocol=TLSv1/SSLv3
encryption_cipher=DHE-RSA-AES256-SHA
encryption_keysize=256
etrn_domain=
stress=
ccert_pubkey_fingerprint=
client_port=1234
policy_context=submission
server_address=10.3.2.1
server_port=54321

"""
GREYLISTED = b"action=defer_if_permit Greylisted, try again in 300 seconds\n\n"
DUNNO = b"action=dunno\n\n"


@pytest.fixture
def greylist(tmp_path: Path) -> Iterator[Greylist]:
    with closing(Greylist(tmp_path / "greylist", delay=300)) as greylist:
        yield greylist


# Decisions.


def test_a_new_triplet_waits_and_passes_when_it_comes_back(greylist: Greylist) -> None:
    assert greylist.wait(TRIPLET, NOW) == 300
    assert greylist.wait(TRIPLET, NOW + 1.5) == 299
    assert greylist.wait(TRIPLET, NOW + 299.9) == 1
    assert greylist.wait(TRIPLET, NOW + 300) == 0
    assert greylist.wait(TRIPLET, NOW + 301) == 0


def test_another_triplet_waits_for_itself(greylist: Greylist) -> None:
    assert greylist.wait(TRIPLET, NOW) == 300
    for changed in ({"network": "198.51.100.0/24"}, {"sender": ""}, {"recipient": "carol@example.com"}):
        assert greylist.wait(TRIPLET._replace(**changed), NOW + 300) == 300
    assert greylist.wait(TRIPLET, NOW + 300) == 0


def test_a_triplet_that_does_not_come_back_is_forgotten(greylist: Greylist) -> None:
    greylist.wait(TRIPLET, NOW)
    assert greylist.wait(TRIPLET, NOW + RETRY_WITHIN + 1) == 300


def test_a_triplet_that_came_back_is_remembered_from_its_last_mail_on(greylist: Greylist) -> None:
    greylist.wait(TRIPLET, NOW)
    last = NOW + RETRY_WITHIN
    assert greylist.wait(TRIPLET, last) == 0
    assert greylist.wait(TRIPLET, last := last + REMEMBER) == 0
    assert greylist.wait(TRIPLET, last + REMEMBER + 1) == 300


def test_a_network_is_trusted_when_enough_came_back(greylist: Greylist) -> None:
    triplets = [TRIPLET._replace(recipient=f"{number}@example.com") for number in range(TRUSTED_AFTER)]
    for triplet in triplets:
        assert greylist.wait(triplet, NOW) == 300
    for triplet in triplets[1:]:
        assert greylist.wait(triplet, NOW + 300) == 0
        assert greylist.wait(triplet, NOW + 300) == 0, "a triplet must count once for all its mails"
    assert greylist.wait(TRIPLET, NOW + 300) == 300
    assert greylist.wait(triplets[0], NOW + 300) == 0
    assert greylist.wait(TRIPLET, NOW + 300) == 0
    assert greylist.wait(TRIPLET._replace(network="198.51.100.0/24"), NOW + 300) == 300


def test_no_delay_lets_everything_pass(tmp_path: Path) -> None:
    with closing(Greylist(tmp_path / "greylist", delay=0)) as greylist:
        assert greylist.wait(TRIPLET, NOW) == 0


def test_processes_share_what_they_saw(tmp_path: Path) -> None:
    """Sixteen workers open a new file at the same time, and each sees a different triplet. None is lost."""
    start, started = os.pipe()
    pids = []
    for number in range(16):
        pid = os.fork()
        if pid == 0:
            os.close(started)
            os.read(start, 1)  # until every process exists and the other end is closed
            status = 1
            try:
                greylist = Greylist(tmp_path / "greylist", delay=300)
                status = 0 if greylist.wait(TRIPLET._replace(sender=str(number)), NOW) == 300 else 2
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(start)
    os.close(started)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 16
    with closing(Greylist(tmp_path / "greylist", delay=300)) as greylist:
        assert [greylist.wait(TRIPLET._replace(sender=str(n)), NOW + 300) for n in range(16)] == [0] * 16


# Questions.


def question(**attributes: str) -> bytes:
    usual = {"request": "smtpd_access_policy", "protocol_state": "RCPT", "client_address": "192.0.2.7"}
    return "\n".join(f"{name}={value}" for name, value in {**usual, **attributes}.items()).encode()


@pytest.mark.parametrize(
    ("attributes", "triplet"),
    [
        ({"sender": "Alice@Example.org", "recipient": "BOB@example.com"}, TRIPLET),
        ({}, Triplet("192.0.2.0/24", "", "")),
        (
            {"sender": "a=b@example.org", "recipient": "jörg@example.com"},
            Triplet("192.0.2.0/24", "a=b@example.org", "jörg@example.com"),
        ),
        ({"client_address": "2001:db8:1:2:3:4:5:6"}, Triplet("2001:db8:1:2::/64", "", "")),
        ({"protocol_state": "DATA"}, None),
        ({"protocol_state": ""}, None),
        ({"sasl_username": "alice"}, None),
        ({"never_heard_of": "x"}, Triplet("192.0.2.0/24", "", "")),
    ],
)
def test_what_a_question_is_about(attributes: dict[str, str], triplet: Triplet | None) -> None:
    assert parse(question(**attributes)) == triplet


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (b"", "a line without an equals sign: ''"),
        (b"hello", "a line without an equals sign: 'hello'"),
        (b"a=b", "not a request for a policy: ''"),
        (b"request=junk", "not a request for a policy: 'junk'"),
        (question(client_address="unknown"), "'unknown' does not appear to be an IPv4 or IPv6 address"),
    ],
)
def test_what_is_no_question(request_: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse(request_)


# The dialogue.


@contextmanager
def postfix(greylist: Greylist) -> Iterator[Client]:
    """Runs the service with the test's own list instead of the one that its lifespan would open."""
    assert policy.policy.framing is not None
    service: forkd.Service[..., Any] = forkd.service(policy.policy.framing)(policy.policy.handler)

    @service.lifespan
    def resources() -> Iterator[Greylist]:
        with closing(greylist):
            yield greylist

    service.on_error(policy.let_through)
    with connect(service) as client:
        yield client


def dialogue(client: Client, *turns: tuple[bytes, bytes]) -> None:
    for sent, expected in turns:
        client.send(sent)
        assert client.read_exactly(len(expected)) == expected
    assert client.read_all() == b""


def test_the_documented_dialogue(greylist: Greylist) -> None:
    with postfix(greylist) as client:
        dialogue(client, (REQUEST, GREYLISTED), (REQUEST.replace(b"foo@bar", b"baz@bar"), GREYLISTED))
    assert client.outcome is not None
    assert client.outcome.end is End.CLIENT


def test_the_dialogue_in_pieces_of_any_size(tmp_path: Path) -> None:
    for size in (1, 2, 7, 300, 3000):
        with postfix(Greylist(tmp_path / str(size), delay=300)) as client:
            stream = REQUEST + REQUEST.replace(b"foo@bar", b"baz@bar") + REQUEST.replace(b"RCPT", b"DATA")
            for at in range(0, len(stream), size):
                client.send(stream[at : at + size])
            assert client.read_all() == GREYLISTED + GREYLISTED + DUNNO


def test_after_the_delay_there_is_no_objection(greylist: Greylist) -> None:
    with postfix(greylist) as client:
        client.send(REQUEST)
        assert client.read_exactly(len(GREYLISTED)) == GREYLISTED
        with closing(sqlite3.connect(greylist.path)) as database, database:
            database.execute("UPDATE triplets SET first_seen = first_seen - 300")
        dialogue(client, (REQUEST, DUNNO))


def test_what_is_no_question_is_logged_and_not_objected_to(
    greylist: Greylist, caplog: pytest.LogCaptureFixture
) -> None:
    with postfix(greylist) as client:
        dialogue(client, (b"hello\n\n", DUNNO), (b"\n\n", DUNNO), (REQUEST, GREYLISTED))
    assert "a line without an equals sign: 'hello'" in caplog.text


def test_a_broken_database_lets_mail_pass_until_it_is_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "greylist"
    path.write_bytes(b"this was a database once" * 100)
    with postfix(Greylist(path, delay=300)) as client:
        client.send(REQUEST)
        assert client.read_exactly(len(DUNNO)) == DUNNO
        path.unlink()
        dialogue(client, (REQUEST, GREYLISTED))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "DatabaseError: file is not a database" in caplog.text


def test_a_missing_folder_does_not_keep_the_service_from_starting(tmp_path: Path) -> None:
    with postfix(Greylist(tmp_path / "none" / "greylist")) as client:
        dialogue(client, (REQUEST, DUNNO), (REQUEST, DUNNO))
