"""The reference page of the settings, written from `settings`, so that it can not tell anything else.

`python -m docs.tools.settings_page > docs/reference/settings.md` writes it anew; a test compares the two.
The manual page of the settings, in `manual`, says the same in its own form.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from forkd.settings.schema import Key, Listen, LogSettings, MasterSettings, Rpcbind, ServiceSettings, Workers, keys

_START: Final = """\
# Settings

forkd reads its settings from a TOML file (https://toml.io), `/etc/forkd.toml` unless it is told another one; the file
that comes with forkd, `etc/forkd.toml`, shows every key. This page is made from the program's own list of keys.
"""

RULES: Final = """\
A mistake ends the start, and is told as `FILE:LINE: key: what is wrong`; all mistakes of a file are told at once.
Times are in seconds, with or without a fraction. A relative path starts at the folder of the file.
`forkd check` reads a file and starts nothing. `forkd run module:name --set KEY=VALUE` takes the keys of a service
(`idle_timeout=5`, `workers.max=8`) and those of `[master]` (`master.log.level=debug`) from the command line.
"""

_MASTER = "What holds for the whole server. A reload applies all but `control` and `pidfile`, which want a restart."

_LOG = "What is written, and where."

_SERVICE = """\
A table for each service, at least one. NAME has 1 to 64 letters, digits, dots, `-` or `_`, a letter or digit first; one
with a dot stands in quotes, `[service."a.b"]`."""

_WORKERS = """\
`workers = 4` means that many, always. As a table, `workers = { min = 2, max = 16, spare = 1 }`, the number follows the
load."""

_LISTEN = """\
An address, or a list of addresses. An address is `127.0.0.1:7007`, `[::1]:7007`, `host.example:7007`, `*:7007` (every
IPv4 and IPv6 address), `0.0.0.0:7007`, `[::]:7007` (IPv6 only), `unix:/run/forkd/echo.sock`, `unix:@name` (abstract),
or `systemd:NAME` (a socket that systemd passes in). With port `0` the kernel picks one.

A table gives the file of a unix socket its rights, here for a web server's group:

```toml
listen = { address = "unix:/run/forkd/echo.sock", mode = "0660", user = "forkd", group = "www-data" }
```"""

_RPCBIND = "`rpcbind = { program = 0x20049001, version = 1 }`: for clients that ask the port mapper for the port."

TABLES: Final = (
    ("[master]", MasterSettings, _MASTER),
    ("[master.log]", LogSettings, _LOG),
    ("[service.NAME]", ServiceSettings, _SERVICE),
    ("workers", Workers, _WORKERS),
    ("listen", Listen, _LISTEN),
    ("rpcbind", Rpcbind, _RPCBIND),
)


def reference() -> str:
    """The page, as Markdown."""
    return "\n".join([_START, RULES, *(_section(*table) for table in TABLES)])


def default(key: Key) -> str:
    """What holds when a key is not written; marked as code if it is what could be written."""
    return f"`{key.default}`" if key.default[0] in '"0123456789' else key.default


def _section(title: str, table: type[Struct], about: str) -> str:
    head = [f"## `{title}`", "", about, "", "| key | default | what to write | meaning |", "| --- | --- | --- | --- |"]
    rows = [
        f"| `{key.name}` | {default(key)} | {key.wants} | {key.meaning} |"
        for key in keys(table).values()
        if key.meaning  # [master.log] is a table of its own
    ]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    print(reference(), end="")
