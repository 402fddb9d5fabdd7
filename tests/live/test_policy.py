"""The greylisting example as shipped, queried by a real Postfix.

The Postfix is disposable: its configuration, queue and log are in the test's own folder, it listens on loopback, and it
delivers the mail it accepts to its discard(8). The machine's own Postfix is not touched.
"""

from __future__ import annotations

import os
import shutil
import smtplib
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.seams.test_policy import DUNNO, GREYLISTED, REQUEST
from tests.server import ROOT, Server, exchange, running, until

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.slow

MAIN_CF = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
myhostname = mail.example.com
mydestination = example.com
mynetworks =
alias_maps =
local_recipient_maps =
local_transport = discard
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_peername_lookup = no
smtpd_authorized_xclient_hosts = 127.0.0.1
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = {question}, permit
"""

MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
discard unix - - n - - discard
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
error unix - - n - - error
anvil unix - - n - 1 anvil
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Runs the shipped file, but with a port that the kernel chooses and the test's own database."""
    text = (EXAMPLES / "policy.toml").read_text().replace('"127.0.0.1:10040"', '"127.0.0.1:0"')
    text = text.replace("\napp =", f'\npath = "{EXAMPLES}"\napp =')
    (tmp_path / "policy.toml").write_text(f'[master]\ncontrol = "{tmp_path}/control.sock"\n{text}')
    program = ["env", f"FORKD_POLICY_DATABASE={tmp_path}/greylist", sys.executable, "-m", "forkd"]
    with running(["policy.toml"], tmp_path, program=program) as server:
        yield server.serving()


def time_passes(database: Path, seconds: float) -> None:
    """Makes time pass for the greylist."""
    with closing(sqlite3.connect(database, timeout=10)) as opened, opened:
        opened.execute("UPDATE triplets SET first_seen = first_seen - ?", (seconds,))


@contextmanager
def postfix(question: str) -> Iterator[int]:
    """Runs a Postfix that asks `question` before it accepts a mail. Yields its port."""
    if os.geteuid() != 0:
        pytest.skip("only root can start Postfix")
    if shutil.which("postfix") is None:
        pytest.skip("Postfix is not installed")
    # Not tmp_path: Postfix' processes run as a user that may not enter pytest's folders.
    with tempfile.TemporaryDirectory(prefix="forkd-postfix-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for each in ("etc", "queue", "data"):
            (folder / each).mkdir()
        shutil.chown(folder / "data", "postfix")
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        (folder / "etc" / "main.cf").write_text(MAIN_CF.format(folder=folder, question=question))
        (folder / "etc" / "master.cf").write_text(MASTER_CF.format(port=port))
        command = ["postfix", "-c", f"{folder}/etc"]
        started = subprocess.run([*command, "start"], capture_output=True, text=True, timeout=30, check=False)
        assert started.returncode == 0, started.stderr
        master = int((folder / "queue/pid/master.pid").read_text())
        try:
            yield port
        except BaseException:
            print((folder / "log").read_text())
            raise
        finally:
            subprocess.run([*command, "stop"], capture_output=True, timeout=30, check=False)
            until(lambda: not group_is_there(master), "the end of every Postfix process")


def group_is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def offer(port: int, client: str = "192.0.2.7") -> tuple[int, bytes]:
    """Returns Postfix' final response to a mail: to RCPT if it is refused there, else to the message."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.example.org", timeout=30) as smtp:
        assert smtp.docmd("XCLIENT", f"ADDR={client} NAME=[UNAVAILABLE]")[0] == 220
        smtp.ehlo()
        assert smtp.mail("alice@example.org")[0] == 250
        code, words = smtp.rcpt("bob@example.com")
        return smtp.data(b"Subject: hello\r\n\r\nHello.\r\n") if code == 250 else (code, words)


def test_postfix_defers_a_new_triplet_and_takes_it_after_the_delay(server: Server, tmp_path: Path) -> None:
    [(_, address)] = server.addresses
    with postfix(f"check_policy_service inet:{address}") as port:
        code, words = offer(port)
        assert code == 450
        assert b"4.7.1 <bob@example.com>: Recipient address rejected: Greylisted, try again in 300 seconds" in words
        time_passes(tmp_path / "greylist", 100)
        code, words = offer(port, "192.0.2.8")
        assert code == 450
        assert b"Greylisted, try again in " in words
        time_passes(tmp_path / "greylist", 200)
        code, words = offer(port)
        assert code == 250
        assert words.startswith(b"2.0.0 Ok: queued as ")
    status = server.status("policy")
    assert status["requests"] == 3
    assert status["errors"] == 0


def test_the_documented_dialogue(server: Server, tmp_path: Path) -> None:
    other = REQUEST.replace(b"RCPT", b"DATA")
    assert exchange(server.connect(), REQUEST + other) == GREYLISTED + DUNNO
    time_passes(tmp_path / "greylist", 300)
    assert exchange(server.connect(), REQUEST) == DUNNO
