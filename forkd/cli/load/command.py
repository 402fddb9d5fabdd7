"""The words of `forkd load`: its options to a plan and one call; the rooms of the test are loaded when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from forkd.errors import UsageError
from forkd.kernel import address

# A path so that shells complete it; an attempt tells whether it can be used.
_FILE: Final = click.Path(readable=False)


@click.command()
@click.argument("target", metavar="ADDRESS")
@click.option("--connections", default=10, show_default=True, metavar="N", help="Connections open at once.")
@click.option("--duration", type=float, metavar="S", help="Seconds to go on.  [default: 10, without --requests]")
@click.option("--requests", type=int, metavar="N", help="Requests to send.")
@click.option("--rate", type=float, metavar="R", help="Requests a second, on a schedule; late ones have waited.")
@click.option(
    "--poisson", is_flag=True, help="With --rate: at random moments, as from clients who do not know each other."
)
@click.option("--pipeline", default=1, show_default=True, metavar="N", help="Requests in flight on a connection.")
@click.option("--per-connection", type=int, metavar="N", help="Requests before a new connection; 1: one each.")
@click.option(
    "--framing",
    default="lines",
    show_default=True,
    metavar="KIND",
    help="lines, delimited:MARK, length:SIZE, netstrings, fixed:SIZE or chunks.",
)
@click.option("--request", metavar="TEXT", help="What to send.  [default: hello]")
@click.option("--requests-from", type=_FILE, metavar="FILE", help="A file of requests, one a line, sent in turn.")
@click.option("--expect", metavar="WHAT", help="What a reply has to be: echo, a text, or /a regular expression/.")
@click.option("--connect-timeout", default=5.0, show_default=True, metavar="S", help="Seconds to connect.")
@click.option("--timeout", default=10.0, show_default=True, metavar="S", help="Seconds of silence to bear.")
@click.option("--warmup", default=0.0, metavar="S", help="Seconds at the start that do not count.")
@click.option("--workers", default=1, show_default=True, metavar="N", help="Processes to share the work.")
@click.option(
    "--json",
    type=_FILE,
    metavar="FILE",
    help="Writes the figures as JSON; - for standard output, in place of the table.",
)
@click.option("--plot", type=_FILE, metavar="FILE", help="Draws rate and latency as SVG (needs the extra 'plot').")
@click.option("--max-errors", type=click.IntRange(0), metavar="N", help="Fails (exit status 1) if more failed.")
@click.option("--max-p99", type=float, metavar="S", help="Fails (exit status 1) if p99 is more seconds.")
def load(
    target: str,
    connections: int,
    duration: float | None,
    requests: int | None,
    rate: float | None,
    poisson: bool,
    pipeline: int,
    per_connection: int | None,
    framing: str,
    request: str | None,
    requests_from: str | None,
    expect: str | None,
    connect_timeout: float,
    timeout: float,
    warmup: float,
    workers: int,
    json: str | None,
    plot: str | None,
    max_errors: int | None,
    max_p99: float | None,
) -> int:
    """Puts load on the service at ADDRESS and measures its replies.

    Without --rate each connection sends when its reply has come. With it, requests leave on a schedule, and the time
    that a late one has waited counts. Ctrl-C ends the test early, with the figures so far.
    """
    from forkd.cli.load import plan as load_plan
    from forkd.cli.load import run as test  # the other commands do without it, and start faster

    whom = address.parse(target)
    if request is not None and requests_from is not None:
        raise UsageError("--request and --requests-from: one of them says what is sent")
    if requests_from is not None:
        try:
            bodies = load_plan.bodies_of(Path(requests_from).read_bytes())
        except OSError as error:
            raise UsageError(f"--requests-from {requests_from}: {error.strerror}") from None
    else:
        bodies = (b"hello" if request is None else os.fsencode(request),)
    plan = load_plan.LoadPlan(
        bodies=bodies,
        framing=load_plan.framing_named(framing),
        expect=expect,
        connections=connections,
        workers=workers,
        duration=duration,
        requests=requests,
        rate=rate,
        poisson=poisson,
        pipeline=pipeline,
        per_connection=per_connection,
        warmup=warmup,
        connect_timeout=connect_timeout,
        timeout=timeout,
    ).checked()
    return test.run(plan, whom, test.LoadOptions(json, plot, max_errors, max_p99))
