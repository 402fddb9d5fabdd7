"""What a load test is asked to do: words to values, checked, and shared out to its processes.

Pure: no socket, no clock, no process. A mistake is a UsageError that names the option. The story
goes on in `load`, which starts a process for each share, and in `loadloop`, which does one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from forkd.errors import UsageError
from forkd.serving.framing import Framing
from forkd.serving.framings import Chunks, Delimited, Fixed, LengthPrefixed, Lines, Netstrings

MAX_SECONDS: Final = 1_000_000
"""What a tally's longest duration has room for (`loadtally`), eleven days."""

DEFAULT_SECONDS: Final = 10.0
"""How long a test lasts that was told neither a time nor a number of requests."""

SECOND: Final = 1_000_000_000
"""In nanoseconds, which the loop counts in."""

UNLIMITED: Final = 1 << 62
"""More than any count of requests that a process will ever see."""

Expectation: TypeAlias = "bytes | re.Pattern[bytes] | None"
"""What a reply has to be: these bytes, something in which the pattern is found, or anything."""

FRAMINGS: Final = "lines, delimited:MARK, length:SIZE, netstrings, fixed:SIZE or chunks"
_PREPARED: Final = 1 << 22  # bytes
_ESCAPES: Final = {"0": b"\0", "n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A whole test. Seconds are floats; what is None has no limit.

    `rate` is in requests a second and makes the loop an open one: a request is due when the
    schedule says so, whatever became of those before it; with `poisson` at random moments, as many
    a second on the average. `bodies` are used in turn.
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
        """The plan as it can be carried out; UsageError says what cannot."""
        for option in ("connections", "workers", "requests", "pipeline", "per_connection"):
            _check_count(option, getattr(self, option))
        for option in ("duration", "connect_timeout", "timeout"):
            _check_seconds(option, getattr(self, option))
        if not 0 <= self.warmup <= MAX_SECONDS:
            raise UsageError(f"--warmup {self.warmup:g}: no number of seconds from 0 to {MAX_SECONDS}")
        if self.rate is not None and not 0 < self.rate <= 1e9:
            raise UsageError(f"--rate {self.rate:g}: no number of requests a second above 0 and up to 1e9")
        if self.poisson and self.rate is None:
            raise UsageError("--poisson: needs --rate, how many requests a second there are on the average")
        if self.workers > self.connections:
            raise UsageError(f"--workers {self.workers}: each process needs a connection, --connections {self.workers}")
        self._check_bodies()
        if isinstance(self.framing, Chunks) and self.pipeline > 1 and not isinstance(self.expected(0), bytes):
            raise UsageError("--pipeline with chunks: nothing says where a reply ends; add --expect echo or a text")
        return self

    @property
    def limit(self) -> float | None:
        """Seconds after which no request is sent any more."""
        return DEFAULT_SECONDS if self.duration is None and self.requests is None else self.duration

    @property
    def wires(self) -> list[bytes]:
        """The requests as they stand in the stream."""
        return [self.framing.encode(body) for body in self.bodies]

    @property
    def batches(self) -> list[bytes]:
        """Every number of requests that may leave together, made beforehand; none if they differ or are too large."""
        only = self.wires[0]
        if len(self.bodies) > 1 or self.pipeline**2 * len(only) > _PREPARED:
            return []
        return [only * size for size in range(self.pipeline + 1)]

    def expected(self, place: int) -> Expectation:
        """What the reply to the request at `place` of `bodies` has to be."""
        if self.expect is None:
            return None
        if self.expect == "echo":
            return self.bodies[place]
        text = self.expect.encode(errors="surrogateescape")
        if len(text) > 1 and text.startswith(b"/") and text.endswith(b"/"):
            try:
                return re.compile(text[1:-1], re.DOTALL)
            except re.error as error:
                raise UsageError(f"--expect {self.expect}: no regular expression: {error}") from None
        return text

    def _check_bodies(self) -> None:
        if not self.bodies:
            raise UsageError("--requests-from: there is no request in the file, one a line")
        for place, body in enumerate(self.bodies):
            told = f"request {place + 1} of --requests-from" if len(self.bodies) > 1 else "--request"
            if isinstance(self.framing, Delimited) and self.framing.mark in body:
                raise UsageError(f"{told}: holds {self.framing.mark!r}, which would end it; say it without")
            try:
                wire = self.framing.encode(body)
            except ValueError as error:
                raise UsageError(f"{told}: {error}") from None
            if not wire:
                raise UsageError(f"{told}: is empty, and nothing would be sent")
            self.expected(place)


@dataclass(frozen=True, slots=True)
class Share:
    """One process's part of a plan; its `first` request is due that long after the start (seconds)."""

    connections: int
    requests: int
    interval: float | None = None
    first: float = 0.0


def shares(plan: LoadPlan) -> list[Share]:
    """The plan cut into `workers` parts whose requests, on a schedule, take turns."""
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
    """The framing that `text` names in the words of the command line."""
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
    raise UsageError(f"--framing {text}: is none of {FRAMINGS}")


def bodies_of(text: bytes) -> tuple[bytes, ...]:
    """The requests in a file that holds one a line."""
    lines: Sequence[bytes] = text.split(b"\n")
    if lines and not lines[-1]:
        lines = lines[:-1]
    return tuple(line.removesuffix(b"\r") for line in lines)


def _part(total: int, parts: int, number: int) -> int:
    return total // parts + (number < total % parts)


def _unescaped(text: str) -> bytes:
    r"""A mark as it is typed: \0, \n, \r, \t, \\ and \xHH stand for bytes that a shell cannot pass on."""
    found = re.split(r"\\(x[0-9A-Fa-f]{2}|[0nrt\\])", text)
    plain = [piece.encode(errors="surrogateescape") for piece in found]
    plain[1::2] = [_ESCAPES.get(escape) or bytes.fromhex(escape[1:]) for escape in found[1::2]]
    return b"".join(plain)


def _check_count(option: str, value: int | None) -> None:
    if value is not None and not 1 <= value < UNLIMITED:
        raise UsageError(f"--{option.replace('_', '-')} {value}: must be at least 1")


def _check_seconds(option: str, value: float | None) -> None:
    # Said this way round, nan is refused too, to which a clock has no answer.
    if value is not None and not 0 < value <= MAX_SECONDS:
        raise UsageError(
            f"--{option.replace('_', '-')} {value:g}: no number of seconds above 0 and up to {MAX_SECONDS}"
        )
