"""The status document as printed on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from forkd.cli import table


def document(**changes: Any) -> dict[str, Any]:
    service = {
        "app": "a:b",
        "generation": 3,
        "listen": ["127.0.0.1:7007", "[::1]:7007"],
        "workers": {"total": 2, "idle": 1, "busy": 1},
        "connections": {"open": 1, "accepted": 1234567},
        "requests": 7654321,
        "errors": 2,
        "bytes": {"in": 1, "out": 2},
        "exits": {"recycled": 0, "crashed": 2, "timed_out": 1},
        "latency": {"p50": 0.0000314, "p90": 0.001, "p99": 0.0123, "max": 2.5},
    }
    worker = {
        "service": "echo",
        "slot": 0,
        "pid": 4711,
        "generation": 3,
        "state": "busy",
        "age": 61.0,
        "connections": 5,
        "requests": 70,
        "memory": 1572864,
        "request_age": 1.25,
    }
    return {
        "master": {"pid": 1, "version": "0.1.0", "phase": "serving", "uptime": 12.5, "config": "etc/forkd.toml"},
        "services": {"echo": service},
        "workers": [{**worker, "slot": 1, "pid": 4712, "state": "idle", "request_age": None}, worker],
    } | changes


def shown(found: dict[str, Any], width: int = 200) -> list[str]:
    text = io.StringIO()
    table.show(found, Console(file=text, width=width, highlight=False))
    return [" ".join(line.split()) for line in text.getvalue().splitlines() if line.strip()]


def test_everything_is_there() -> None:
    lines = shown(document())
    assert lines[0] == "forkd 0.1.0 serving, pid 1, up 12.5 s, etc/forkd.toml"
    assert lines[1] == "echo on 127.0.0.1:7007, [::1]:7007"
    assert "echo 3 1 of 2 1 1234567 7654321 2 31 us 12.3 ms 2.50 s" in lines
    one = lines.index("echo 0 4711 3 busy 1.2 s 1 min 5 70 1.5 MiB")
    assert lines[one + 1] == "echo 1 4712 3 idle 1 min 5 70 1.5 MiB"
    assert lines[-1] == "echo: workers 2 crashed, 1 timed out"


def test_nothing_has_happened_yet() -> None:
    found = document(workers=[])
    found["services"]["echo"] |= {
        "latency": dict.fromkeys(("p50", "p90", "p99", "max")),
        "exits": {"recycled": 0, "crashed": 0, "timed_out": 0},
    }
    lines = shown(found)
    assert "echo 3 1 of 2 1 1234567 7654321 2 - - -" in lines
    assert not any("workers" in line for line in lines)


def test_brackets_are_text_not_markup() -> None:
    found = document()
    found["master"]["config"] = "[bold]/x/[red].toml"
    found["services"]["echo"]["listen"] = ["unix:/run/[/].sock"]
    lines = shown(found)
    assert lines[0].endswith(", [bold]/x/[red].toml")
    assert lines[1] == "echo on unix:/run/[/].sock"


@pytest.mark.parametrize(
    ("wrong", "how"),
    [(None, "registered with"), ("Connection refused", "not registered (Connection refused) with")],
)
def test_a_registration_is_shown(wrong: str | None, how: str) -> None:
    found = document()
    mapping = {"program": 0x20049001, "version": 1, "port": 7007}
    found["services"]["echo"]["rpcbind"] = mapping | {"registered": not wrong, "wrong": wrong}
    assert shown(found)[1].endswith(f"7007, {how} rpcbind as 0x20049001 version 1")


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    found = document()
    found["services"]["a-very-long-name-" * 4] = found["services"]["echo"]
    found["workers"].append({**found["workers"][0], "service": "a-very-long-name-" * 4})
    table.show(found)
    out = capsys.readouterr().out
    assert out.count("a-very-long-name-" * 4) == 4  # in its addresses, in both tables, and in how its workers ended
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (86400 * 3, "3 d")],
)
def test_lengths_of_time(seconds: float, told: str) -> None:
    found = document()
    found["master"]["uptime"] = seconds
    assert f", up {told}, " in shown(found)[0]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "0 us"), (0.000999, "999 us"), (0.001, "1.0 ms"), (0.9994, "999.4 ms"), (1.0, "1.00 s")]
)
def test_latencies(seconds: float, told: str) -> None:
    found = document()
    found["services"]["echo"]["latency"]["max"] = seconds
    assert any(line.endswith(f" {told}") for line in shown(found))
