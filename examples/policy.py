"""Greylisting for Postfix: a policy delegation service (https://www.postfix.org/SMTPD_POLICY_README.html).

Before Postfix accepts a mail, it asks this service. A new triplet of network, sender and recipient is rejected for a
while: mail servers try again later, most senders of spam do not. A network that has come back often enough is trusted
from then on. All workers share one SQLite file. If that fails, mail passes: better spam than no mail.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from math import ceil
from pathlib import Path
from typing import Final, NamedTuple

import forkd

log = logging.getLogger(__name__)

DELAY: Final = 300
"""Seconds after which a triplet may come back; FORKD_POLICY_DELAY overrides it."""

RETRY_WITHIN: Final = 2 * 86400
"""Seconds after which a triplet that has not come back is forgotten."""

REMEMBER: Final = 35 * 86400
"""Seconds after which a triplet that came back, but was not seen again, is forgotten: a monthly mail still passes."""

TRUSTED_AFTER: Final = 5
"""Once this many triplets of a network have come back, all others from there pass at once."""

DUNNO: Final = b"action=dunno"
"""Postfix' word for no objection: its other restrictions decide."""

_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS triplets (
        network TEXT NOT NULL, sender TEXT NOT NULL, recipient TEXT NOT NULL,
        first_seen REAL NOT NULL, last_seen REAL NOT NULL, passes INTEGER NOT NULL,
        PRIMARY KEY (network, sender, recipient)
    ) WITHOUT ROWID
"""


class Triplet(NamedTuple):
    """What identifies a mail. It has the network, not the address: large senders retry from a neighbouring address."""

    network: str
    sender: str
    recipient: str


class Greylist:
    """The triplets seen so far; a new one must wait for `delay` seconds."""

    def __init__(self, path: str | Path, delay: float = DELAY) -> None:
        self.path = path
        self.delay = delay
        self._opened: sqlite3.Connection | None = None
        self._forget_at = 0.0

    def wait(self, triplet: Triplet, now: float) -> int:
        """Returns the seconds until a mail of this triplet may come back; 0 if it may pass. `now` is in seconds."""
        database = self._database()
        # IMMEDIATE: two workers with the same triplet read and write one after the other.
        database.execute("BEGIN IMMEDIATE")
        with database:
            if now >= self._forget_at:
                self._forget(database, now)
            row: tuple[float, int] | None = database.execute(
                "SELECT first_seen, passes FROM triplets WHERE network = ? AND sender = ? AND recipient = ?", triplet
            ).fetchone()
            if row is None:
                row = (now, 0)
                database.execute("INSERT INTO triplets VALUES (?, ?, ?, ?, ?, 0)", (*triplet, now, now))
            first_seen, passes = row
            left = first_seen + self.delay - now
            if not passes and left > 0 and not self._trusts(database, triplet.network):
                return ceil(left)
            database.execute(
                "UPDATE triplets SET last_seen = ?, passes = passes + 1"
                " WHERE network = ? AND sender = ? AND recipient = ?",
                (now, *triplet),
            )
            return 0

    def close(self) -> None:
        """Closes the file; the next request opens it again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _database(self) -> sqlite3.Connection:
        # Opened by the first request, not by the lifespan, so that workers start even while the file is broken; and
        # after the fork, as SQLite requires.
        if self._opened is None:
            self._opened = sqlite3.connect(self.path, timeout=5, isolation_level=None)
            self._opened.execute("PRAGMA synchronous = NORMAL")
            self._opened.execute(_SCHEMA)
        return self._opened

    def _trusts(self, database: sqlite3.Connection, network: str) -> bool:
        came_back = "SELECT count(*) FROM triplets WHERE network = ? AND passes > 0"
        return bool(database.execute(came_back, (network,)).fetchone()[0] >= TRUSTED_AFTER)

    def _forget(self, database: sqlite3.Connection, now: float) -> None:
        database.execute(
            "DELETE FROM triplets WHERE last_seen < CASE passes WHEN 0 THEN ? ELSE ? END",
            (now - RETRY_WITHIN, now - REMEMBER),
        )
        self._forget_at = now + 3600


@forkd.service(forkd.Delimited(b"\n\n"))
def policy(request: bytes, connection: forkd.Connection) -> bytes:
    """Answers a request from Postfix: lines of name=value in, one action out."""
    try:
        triplet = parse(request)
    except ValueError as error:
        log.warning("malformed peer=%s error=%s", connection.peer, error)
        return DUNNO
    if triplet is None:
        return DUNNO
    seconds = connection.resources.wait(triplet, time.time())
    if not seconds:
        return DUNNO
    log.info("greylisted network=%s sender=%r recipient=%r seconds=%d", *triplet, seconds)
    # "If permit": if a later restriction rejects the mail, the client gets that rejection instead.
    return b"action=defer_if_permit Greylisted, try again in %d seconds" % seconds


@policy.lifespan
def greylist() -> Iterator[Greylist]:
    path = os.environ.get("FORKD_POLICY_DATABASE") or default_path()
    delay = float(os.environ.get("FORKD_POLICY_DELAY") or DELAY)
    with closing(Greylist(path, delay)) as opened:
        yield opened


@policy.on_error
def let_through(error: Exception, connection: forkd.Connection) -> bytes:
    log.error("no decision, the mail may pass peer=%s", connection.peer, exc_info=error)
    connection.resources.close()
    return DUNNO


def parse(request: bytes) -> Triplet | None:
    """Returns the triplet of a request; None if greylisting does not concern it, ValueError if it is malformed."""
    attributes: dict[str, str] = {}
    # Latin-1 would do as well, since names are only compared. Internationalized ones are UTF-8 (RFC 6531).
    for line in request.decode("utf-8", "backslashreplace").split("\n"):
        name, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"a line without an equals sign: {line[:100]!r}")
        attributes[name] = value
    if attributes.get("request") != "smtpd_access_policy":
        raise ValueError(f"not a request for a policy: {attributes.get('request', '')[:100]!r}")
    # Other states have no recipient, or ask for all recipients again. Clients that have logged in are known.
    if attributes.get("protocol_state") != "RCPT" or attributes.get("sasl_username"):
        return None
    address = ip_address(attributes.get("client_address", ""))
    network = ip_network((address, 24 if address.version == 4 else 64), strict=False)
    return Triplet(str(network), attributes.get("sender", "").lower(), attributes.get("recipient", "").lower())


def default_path() -> Path:
    """Returns a file of this user in the temporary folder: good for a trial, but a reboot may remove it."""
    return Path(tempfile.gettempdir(), f"forkd-policy-{os.geteuid()}.sqlite3")
