"""What a load test should do: turns options into checked values, and divides them among its processes.

Pure: no socket, clock or process. A mistake is a UsageError that names the option. Next in the story: `run` starts a
process for each share, and `loop` runs one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from forkd.errors import UsageError
from forkd.serving.counted_framings import Chunks, Fixed, LengthPrefixed, Netstrings
from forkd.serving.delimited_framings import Delimited, Lines
from forkd.serving.framing import Framing

MAX_SECONDS: Final = 1_000_000
"""The longest duration that a tally can count, eleven days."""

DEFAULT_SECONDS: Final = 10.0
"""How long a test lasts without --duration and --requests."""

SECOND: Final = 1_000_000_000
"""In nanoseconds, the unit of the loop."""

UNLIMITED: Final = 1 << 62
"""More requests than a process will ever send."""

Expectation: TypeAlias = "bytes | re.Pattern[bytes] | None"
"""What a reply must be: these bytes, bytes that the pattern matches somewhere, or anything."""

FRAMINGS: Final = "lines, delimited:MARK, length:SIZE, netstrings, fixed:SIZE or chunks"
_PREPARED: Final = 1 << 22  # bytes
_ESCAPES: Final = {"0": b"\0", "n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A whole test. Seconds are floats; None means no limit.

    `rate` is in requests per second and makes the loop an open one: a request is due when the schedule says so, no
    matter what became of those before it. With `poisson` they are due at random moments, at the same average rate.
    `bodies` are used in turn.
    """

    bodies: tuple[bytes, ...] = (b"hello",)
    framing: Framing[bytes] = field(default_factory=Lines)
    expect: str | None = None
    connections: int = 10
    workers: int = 1
    duration: float | None = None
    requests: int | None = None
    rate: float | None = None
    poisson: bool = False
    pipeline: int = 1
    per_connection: int | None = None
    warmup: float = 0.0
    connect_timeout: float = 5.0
    timeout: float = 10.0

    def checked(self) -> LoadPlan:
        """Returns the plan itself. Raises UsageError if it cannot be carried out."""
        for option in ("connections", "workers", "requests", "pipeline", "per_connection"):
            _check_count(option, getattr(self, option))
        for option in ("duration", "connect_timeout", "timeout"):
            _check_seconds(option, getattr(self, option))
        if not 0 <= self.warmup <= MAX_SECONDS:
            raise UsageError(f"--warmup {self.warmup:g}: must be a number of seconds from 0 to {MAX_SECONDS}")
        if self.rate is not None and not 0 < self.rate <= 1e9:
            raise UsageError(f"--rate {self.rate:g}: must be a number of requests per second above 0 and up to 1e9")
        if self.poisson and self.rate is None:
            raise UsageError("--poisson: needs --rate, the average number of requests per second")
        if self.workers > self.connections:
            raise UsageError(f"--workers {self.workers}: each process needs a connection, --connections {self.workers}")
        self._check_bodies()
        if isinstance(self.framing, Chunks) and self.pipeline > 1 and not isinstance(self.expected(0), bytes):
            raise UsageError("--pipeline with chunks: replies have no visible end; add --expect echo or a text")
        return self

    @property
    def limit(self) -> float | None:
        """Seconds after which no more requests are sent."""
        return DEFAULT_SECONDS if self.duration is None and self.requests is None else self.duration

    @property
    def wires(self) -> list[bytes]:
        """The requests as they are sent."""
        return [self.framing.encode(body) for body in self.bodies]

    @property
    def batches(self) -> list[bytes]:
        """Requests joined in advance, by how many leave together; empty if they differ or are too large."""
        only = self.wires[0]
        if len(self.bodies) > 1 or self.pipeline**2 * len(only) > _PREPARED:
            return []
        return [only * size for size in range(self.pipeline + 1)]

    def expected(self, place: int) -> Expectation:
        """Returns what the reply to the request at `place` of `bodies` must be."""
        if self.expect is None:
            return None
        if self.expect == "echo":
            return self.bodies[place]
        text = self.expect.encode(errors="surrogateescape")
        if len(text) > 1 and text.startswith(b"/") and text.endswith(b"/"):
            try:
                return re.compile(text[1:-1], re.DOTALL)
            except re.error as error:
                raise UsageError(f"--expect {self.expect}: not a regular expression: {error}") from None
        return text

    def _check_bodies(self) -> None:
        if not self.bodies:
            raise UsageError("--requests-from: the file has no requests; write one per line")
        for place, body in enumerate(self.bodies):
            which = f"request {place + 1} of --requests-from" if len(self.bodies) > 1 else "--request"
            if isinstance(self.framing, Delimited) and self.framing.mark in body:
                raise UsageError(f"{which}: contains {self.framing.mark!r}, which would end it; leave it out")
            try:
                wire = self.framing.encode(body)
            except ValueError as error:
                raise UsageError(f"{which}: {error}") from None
            if not wire:
                raise UsageError(f"{which}: is empty, so nothing would be sent")
            self.expected(place)


@dataclass(frozen=True, slots=True)
class Share:
    """One process's part of a plan. Its first request is due `first` seconds after the start."""

    connections: int
    requests: int
    interval: float | None = None
    first: float = 0.0


def shares(plan: LoadPlan) -> list[Share]:
    """Divides the plan into `workers` shares; with a schedule, their requests take turns."""
    total = UNLIMITED if plan.requests is None else plan.requests
    parts = []
    for number in range(plan.workers):
        requests = UNLIMITED if plan.requests is None else _part(total, plan.workers, number)
        connections = _part(plan.connections, plan.workers, number)
        if plan.rate is None:
            parts.append(Share(connections, requests))
        else:
            parts.append(Share(connections, requests, plan.workers / plan.rate, number / plan.rate))
    return parts


def framing_named(text: str) -> Framing[bytes]:
    """Returns the framing that the option --framing names. Raises UsageError for an unknown one."""
    name, colon, argument = text.partition(":")
    plain: dict[str, Callable[[], Framing[bytes]]] = {"lines": Lines, "netstrings": Netstrings, "chunks": Chunks}
    try:
        if name in plain and not colon:
            return plain[name]()
        if name == "delimited" and argument:
            return Delimited(_unescaped(argument))
        if name in ("length", "fixed") and re.fullmatch("[0-9]+", argument):
            return LengthPrefixed(int(argument)) if name == "length" else Fixed(int(argument))
    except ValueError as error:
        raise UsageError(f"--framing {text}: {error}") from None
    raise UsageError(f"--framing {text}: must be {FRAMINGS}")


def bodies_of(text: bytes) -> tuple[bytes, ...]:
    """Returns the requests in the text of a file, one per line."""
    lines: Sequence[bytes] = text.split(b"\n")
    if lines and not lines[-1]:
        lines = lines[:-1]
    return tuple(line.removesuffix(b"\r") for line in lines)


def _part(total: int, parts: int, number: int) -> int:
    return total // parts + (number < total % parts)


def _unescaped(text: str) -> bytes:
    r"""Decodes a mark as typed: \0, \n, \r, \t, \\ and \xHH stand for bytes that a shell cannot pass on."""
    found = re.split(r"\\(x[0-9A-Fa-f]{2}|[0nrt\\])", text)
    plain = [piece.encode(errors="surrogateescape") for piece in found]
    plain[1::2] = [_ESCAPES.get(escape) or bytes.fromhex(escape[1:]) for escape in found[1::2]]
    return b"".join(plain)


def _check_count(option: str, value: int | None) -> None:
    if value is not None and not 1 <= value < UNLIMITED:
        raise UsageError(f"--{option.replace('_', '-')} {value}: must be at least 1")


def _check_seconds(option: str, value: float | None) -> None:
    # Written this way round, the check also refuses nan.
    if value is not None and not 0 < value <= MAX_SECONDS:
        raise UsageError(
            f"--{option.replace('_', '-')} {value:g}: must be a number of seconds above 0 and up to {MAX_SECONDS}"
        )
