"""Prints the status document as tables on a terminal. It needs rich, so it is loaded late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from forkd.cli.load.terminal import plain_console, plain_table


def show(document: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the document of `forkd status --json` as text and tables."""
    console = console or plain_console()
    master = document["master"]
    console.print(
        Text(
            f"forkd {master['version']} {master['phase']}, pid {master['pid']}, "
            f"up {_duration(master['uptime'])}, {master['config']}"
        )
    )
    services = document["services"]
    for name, each in services.items():
        console.print(Text(f"  {name} on {', '.join(each['listen'])}{_registration(each.get('rpcbind'))}"))
    console.print(_services(services))
    console.print(_workers(document["workers"]))
    for name, each in services.items():
        exits = [f"{count} {how.replace('_', ' ')}" for how, count in each["exits"].items() if count]
        if exits:
            console.print(Text(f"  {name}: workers {', '.join(exits)}"))


def _registration(mapping: Mapping[str, Any] | None) -> str:
    if mapping is None:
        return ""
    how = "registered with" if mapping["registered"] else f"not registered ({mapping['wrong']}) with"
    return f", {how} rpcbind as {mapping['program']:#x} version {mapping['version']}"


def _services(services: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("service", "gen", "busy", "open", "accepted", "requests", "errors", "p50", "p99", "max")
    for name, each in services.items():
        workers, latency = each["workers"], each["latency"]
        table.add_row(
            Text(name),
            str(each["generation"]),
            f"{workers['busy']} of {workers['total']}",
            str(each["connections"]["open"]),
            str(each["connections"]["accepted"]),
            str(each["requests"]),
            str(each["errors"]),
            *(_latency(latency[key]) for key in ("p50", "p99", "max")),
        )
    return table


def _workers(workers: list[Mapping[str, Any]]) -> Table:
    table = _table("service", "worker", "pid", "gen", "state", "age", "accepted", "requests", "memory")
    for each in sorted(workers, key=lambda worker: (worker["service"], worker["generation"], worker["slot"])):
        state = each["state"]
        if each["request_age"] is not None:
            state += f" {_duration(each['request_age'])}"
        table.add_row(
            Text(each["service"]),
            str(each["slot"]),
            str(each["pid"]),
            str(each["generation"]),
            state,
            _duration(each["age"]),
            str(each["connections"]),
            str(each["requests"]),
            f"{each['memory'] / 1048576:.1f} MiB",
        )
    return table


def _table(*columns: str) -> Table:
    table = plain_table(gap=1)
    words = {"service", "listens on", "state"}
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right", no_wrap=True)
    return table


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 1440} d"


def _latency(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
