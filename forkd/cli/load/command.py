"""The command `forkd load`: turns its options into a plan and one call. It loads the rooms of the test when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from forkd.errors import UsageError
from forkd.kernel import address

# A path, so that shells complete it. Opening it will show whether it can be used.
_FILE: Final = click.Path(readable=False)


@click.command()
@click.argument("target", metavar="ADDRESS")
@click.option("--connections", default=10, show_default=True, metavar="N", help="Number of open connections.")
@click.option("--duration", type=float, metavar="S", help="Length in seconds.  [default: 10, without --requests]")
@click.option("--requests", type=int, metavar="N", help="Number of requests to send.")
@click.option(
    "--rate", type=float, metavar="R", help="Requests per second, on a schedule; the wait of late ones counts."
)
@click.option("--poisson", is_flag=True, help="With --rate: send at random moments, as independent clients do.")
@click.option("--pipeline", default=1, show_default=True, metavar="N", help="Requests in flight on each connection.")
@click.option("--per-connection", type=int, metavar="N", help="Requests on a connection before a new one replaces it.")
@click.option(
    "--framing",
    default="lines",
    show_default=True,
    metavar="KIND",
    help="lines, delimited:MARK, length:SIZE, netstrings, fixed:SIZE or chunks.",
)
@click.option("--request", metavar="TEXT", help="Text to send.  [default: hello]")
@click.option("--requests-from", type=_FILE, metavar="FILE", help="File of requests, one per line, sent in turn.")
@click.option("--expect", metavar="WHAT", help="What replies must be: echo, a text, or /a regular expression/.")
@click.option("--connect-timeout", default=5.0, show_default=True, metavar="S", help="Seconds allowed to connect.")
@click.option("--timeout", default=10.0, show_default=True, metavar="S", help="Seconds of silence allowed.")
@click.option("--warmup", default=0.0, metavar="S", help="Seconds at the start that are not counted.")
@click.option("--workers", default=1, show_default=True, metavar="N", help="Number of client processes.")
@click.option(
    "--json",
    type=_FILE,
    metavar="FILE",
    help="Write the figures as JSON; - writes to standard output, in place of the table.",
)
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw rate and latency as SVG (needs the extra 'plot').")
@click.option("--max-errors", type=click.IntRange(0), metavar="N", help="Fail (exit status 1) if more requests failed.")
@click.option("--max-p99", type=float, metavar="S", help="Fail (exit status 1) if the p99 latency is longer.")
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

    Without --rate, each connection sends its next request when a reply has arrived. With --rate, requests are due on a
    schedule, and a late request's wait counts as latency. Ctrl-C ends the test early and shows the figures so far.
    """
    from forkd.cli.load import plan as load_plan
    from forkd.cli.load import run as test  # late, because other commands start faster without it

    whom = address.parse(target)
    if request is not None and requests_from is not None:
        raise UsageError("--request and --requests-from: use only one of them")
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
