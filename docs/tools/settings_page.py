"""Writes the reference page of the settings from `forkd.settings.schema`, so that the two cannot differ.

`make reference` writes the page; a test compares. `manual` writes the same facts as a manual page.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from forkd.settings.schema import Key, Listen, LogSettings, MasterSettings, Rpcbind, ServiceSettings, Workers, keys

_START: Final = """\
# Settings

forkd reads its settings from a TOML file (https://toml.io): `/etc/forkd.toml`, unless you name another one. The sample
file in the distribution, `etc/forkd.toml`, shows every key. This page is generated from the program's own list of keys.
"""

RULES: Final = """\
forkd does not start with a file that has mistakes; it reports all of them at once, as `FILE:LINE: key: what is wrong`.
Times are in seconds, with or without a fraction. A relative path starts at the folder of the file.
`forkd check` reads a file and serves nothing. `forkd run module:name --set KEY=VALUE` takes the keys of a service
(`idle_timeout=5`, `workers.max=8`) and those of `[master]` (`master.log.level=debug`) from the command line.
"""

_MASTER = (
    "Settings of the whole server. A reload applies all of them except `control` and `pidfile`, which need a restart."
)

_LOG = "What forkd logs, and where."

_SERVICE = """\
One table for each service; at least one is required. NAME is 1 to 64 letters, digits, dots, `-` or `_`, and starts with
a letter or digit. Quote a name that has a dot: `[service."a.b"]`."""

_WORKERS = """\
`workers = 4` keeps exactly 4 workers. With a table, such as `workers = { min = 2, max = 16, spare = 1 }`, the number
follows the load."""

_LISTEN = """\
An address, or a list of addresses. An address is `127.0.0.1:7007`, `[::1]:7007`, `host.example:7007`, `*:7007` (every
IPv4 and IPv6 address), `0.0.0.0:7007`, `[::]:7007` (IPv6 only), `unix:/run/forkd/echo.sock`, `unix:@name` (abstract),
or `systemd:NAME` (a socket that systemd passes in). With port `0`, the kernel picks a free port.

A table sets the owner and permissions of a unix socket's file, here for a web server's group:

```toml
listen = { address = "unix:/run/forkd/echo.sock", mode = "0660", user = "forkd", group = "www-data" }
```"""

_RPCBIND = "`rpcbind = { program = 0x20049001, version = 1 }` is for clients that ask the port mapper for the port."

TABLES: Final = (
    ("[master]", MasterSettings, _MASTER),
    ("[master.log]", LogSettings, _LOG),
    ("[service.NAME]", ServiceSettings, _SERVICE),
    ("workers", Workers, _WORKERS),
    ("listen", Listen, _LISTEN),
    ("rpcbind", Rpcbind, _RPCBIND),
)


def reference() -> str:
    """Returns the page as Markdown."""
    return "\n".join([_START, RULES, *(_section(*table) for table in TABLES)])


def default(key: Key) -> str:
    """Returns the default of a key, marked as code if it is a value that could be written."""
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
