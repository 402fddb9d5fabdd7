"""The client loop of one process of a load test: epoll(7) over non-blocking sockets, written for speed.

A closed loop sends the next request when a reply has arrived. An open loop sends the requests that its schedule says
are due, and counts each latency from the time when the request was due. If the server stalls and a request leaves
late, its wait counts, so no slow moment is left out of the figures (coordinated omission).

Results go into a `Tally`. The loop knows nothing about processes, reports or readers of the tally. `links` makes and
loses the connections. Times are nanoseconds.
"""

from __future__ import annotations

import contextlib
import random
import select
import time
from enum import Enum, auto
from typing import Final

from forkd.cli.load.figures import LoopFigures
from forkd.cli.load.link import ORDINARY, Link, State, Target
from forkd.cli.load.links import Links
from forkd.cli.load.open_loop import Turns
from forkd.cli.load.plan import SECOND, UNLIMITED, LoadPlan, Share
from forkd.cli.load.schedule import EvenSchedule, RandomSchedule
from forkd.cli.load.tally import Tally
from forkd.errors import FramingError

_TICK: Final = SECOND // 50
# Bytes to receive at once: few enough for the interpreter's own small blocks, until a reply proves longer.
_LITTLE: Final = 470
_MUCH: Final = 65536


class LoadPhase(Enum):
    GATHERING = auto()  # connecting; no request leaves before every link has tried
    WARMING = auto()
    COUNTING = auto()
    DRAINING = auto()  # all is sent; waiting for replies
    OVER = auto()


class ClientLoop:
    """One run of one share of a plan. End of file on `leash` ends it at once."""

    def __init__(self, plan: LoadPlan, share: Share, target: Target, tally: Tally, leash: int) -> None:
        self._plan = plan
        self._share = share
        # Created early, so that its number is low enough for select(2).
        self._epoll = select.epoll()
        self._epoll.register(leash, select.EPOLLIN)
        self._links = Links(plan, share, target, tally, self._epoll)
        self._pipeline, self._batches = plan.pipeline, plan.batches
        self._wires = plan.wires * (1 + plan.pipeline // len(plan.bodies) + 1)
        self._phase, self._phase_end, self._next_tick = LoadPhase.GATHERING, 0, 0
        self._chunk = _LITTLE
        self._turns: Turns | None = None  # an open loop's
        self._to_send = 0
        self._figures = LoopFigures(tally)

    def run(self) -> None:
        """Runs the share to its end."""
        now = time.monotonic_ns()
        self._phase_end = now + int(self._plan.connect_timeout * SECOND)
        self._links.last_hope = now
        with self._epoll:
            for link in self._links.all:
                self._links.connect(link, time.monotonic_ns())
                self._serve(self._epoll.poll(0))  # otherwise the first would seem to take as long as all of them
            while self._phase is not LoadPhase.OVER:
                self._serve(self._wait(now))
                now = time.monotonic_ns()
                if self._phase is not LoadPhase.GATHERING:
                    self._use_opened(now)
                if self._turns is not None and self._to_send > 0:
                    self._send_due(self._turns, now)
                if now >= self._next_tick or self._is_phase_done():
                    self._tick(now)
        self._publish(now)
        self._links.close_all()

    def _wait(self, now: int) -> list[tuple[int, int]]:
        until = self._next_tick
        if self._turns is not None and self._to_send > 0 and (due := self._turns.next_time()) is not None:
            until = min(until, due)
            if (wait := until - time.monotonic_ns()) > 0:
                # epoll_wait(2) counts in whole milliseconds, which would make requests late; select(2) does not.
                select.select((self._epoll,), (), (), wait / SECOND)
            return self._epoll.poll(0)
        return self._epoll.poll(max(0, until - now) / SECOND)

    # The code for every reply and every request, where each line counts.

    def _serve(self, events: list[tuple[int, int]]) -> None:
        links, by_fd, clock = self._links, self._links.by_fd, time.monotonic_ns
        figures, latencies = self._figures, self._figures.latencies
        since, answered, longest, last, received = figures.since, 0, figures.longest, figures.last, 0
        chunk, pipeline, is_closed = self._chunk, self._pipeline, self._turns is None
        for fd, what in events:
            link = by_fd.get(fd)
            if link is None:  # the leash
                self._phase = LoadPhase.OVER
                break
            if what != ORDINARY and not self._is_to_receive(link, what):
                continue
            try:
                data = link.receive(chunk)
                now = clock()
                count = link.count(data)
            except BlockingIOError:
                continue
            except OSError as error:
                links.lose_by(link, error, clock())
                continue
            except FramingError:
                links.lose(link, "wrong", clock())
                continue
            if not data:
                links.lose(link, "cut short", now)
                continue
            received += len(data)
            if len(data) == chunk:
                chunk = self._chunk = _MUCH
                link.watch(self._epoll, new=False)  # there may be more, which no edge would report
            if not count:
                continue
            last = link.quiet_since = now
            link.served = True
            starts = link.starts
            if count > len(starts):
                links.judge.wrong += count - len(starts)  # replies to no request
                count = len(starts)
            links.in_flight -= count
            while count:
                start = starts.popleft()
                together = 1
                if count > 1 and starts[count - 2] == start:  # the times in it never decrease
                    together = count
                    for _ in range(count - 1):
                        starts.popleft()
                count -= together
                if start >= since:
                    took = now - start
                    shift = took.bit_length() - 11  # tally.bucket, without the call
                    latencies[(shift << 10) + (took >> shift) if shift > 0 else took] += together
                    answered += together
                    if took > longest:
                        longest = took
            room = pipeline - len(starts)
            if is_closed and link.left >= room > 0 and self._to_send >= room and not link.rest:
                self._send(link, room, now)  # nearly always the case, so without the detour
                if room == 1:
                    starts.append(now)
                else:
                    starts.extend((now,) * room)
            else:
                self._go_on(link, now)
        figures.answered += answered
        figures.bytes_in += received
        figures.longest, figures.last = longest, last

    def _go_on(self, link: Link, now: int) -> None:
        """Uses a link that has room: in a closed loop it sends, in an open loop it waits for a request that is due."""
        room = self._pipeline - len(link.starts)
        if link.left < room:
            room = link.left
        if self._to_send < room:
            room = self._to_send
        if room <= 0:
            if not link.starts:
                self._links.finish(link, self._to_send, now)
            return
        if link.rest:
            return
        if self._turns is None:
            self._send(link, room, now)
            link.starts.extend((now,) * room)
        else:
            self._turns.offer(link)

    def _send(self, link: Link, count: int, now: int) -> None:
        """Sends the next `count` requests of a link in one call; the caller records when they started."""
        if self._batches:
            data = self._batches[count]
        else:
            data = b"".join(self._wires[link.turn : link.turn + count])
            link.turn = (link.turn + count) % len(self._plan.bodies)
        if not link.starts:
            link.quiet_since = now
        link.left -= count
        self._to_send -= count
        self._links.in_flight += count
        try:
            sent = link.transmit(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the next receive reports why, after what had arrived before
        self._figures.bytes_out += sent
        if sent < len(data):
            link.rest = data[sent:]
            link.watch(self._epoll, new=False)

    def _send_due(self, turns: Turns, now: int) -> None:
        for link, due in turns.deal(min(now, self._phase_end - 1), self._to_send):
            self._send(link, len(due), now)
            link.starts.extend(due)
            self._go_on(link, now)

    # The code that runs now and then.

    def _is_to_receive(self, link: Link, what: int) -> bool:
        """Handles everything in an event but the data. Returns True if there is data to receive, too."""
        if link.state is State.CONNECTING:
            self._links.finish_connecting(link, time.monotonic_ns())
            return False
        if what & select.EPOLLRDHUP:
            # The server's end came with its last reply: a request sent now would be cut short through no fault.
            link.left = 0
            link.watch(self._epoll, new=False, again=True)
        if what & select.EPOLLOUT and link.rest:
            self._send_rest(link)
        return link.state is State.OPEN and what != select.EPOLLOUT

    def _send_rest(self, link: Link) -> None:
        with contextlib.suppress(OSError):  # as in _send
            sent = link.transmit(link.rest)
            self._figures.bytes_out += sent
            link.rest = link.rest[sent:]
            if not link.rest:
                link.watch(self._epoll, new=False)
                self._go_on(link, time.monotonic_ns())

    def _use_opened(self, now: int) -> None:
        opened, self._links.opened = self._links.opened, []
        for link in opened:
            if link.state is State.OPEN:
                self._go_on(link, now)

    def _is_phase_done(self) -> bool:
        if self._phase is LoadPhase.GATHERING:
            return not self._links.connecting
        return not self._to_send and not self._links.in_flight

    def _tick(self, now: int) -> None:
        match self._phase:
            case LoadPhase.GATHERING if now >= self._phase_end or not self._links.connecting:
                self._start(now)
            case LoadPhase.WARMING if now >= self._phase_end:
                self._start_counting(now)
            case LoadPhase.COUNTING if now >= self._phase_end or self._is_hopeless(now):
                self._stop_sending(now)
        if self._phase is not LoadPhase.GATHERING and self._is_phase_done():
            self._phase = LoadPhase.OVER
        else:
            self._links.ending = self._to_send <= 0 and self._phase is not LoadPhase.GATHERING
            self._links.search(now)
        self._publish(now)
        self._next_tick = min(now + _TICK, max(now, self._phase_end))

    def _start(self, now: int) -> None:
        if self._share.interval is not None:
            begin, interval = now + int(self._share.first * SECOND), self._share.interval * SECOND
            at_random = self._plan.poisson
            schedule = RandomSchedule(begin, interval, random.Random()) if at_random else EvenSchedule(begin, interval)
            self._turns = Turns(schedule, self._pipeline)
        self._figures.last = now
        if self._plan.warmup:
            self._phase, self._phase_end = LoadPhase.WARMING, now + int(self._plan.warmup * SECOND)
            self._to_send = UNLIMITED
        else:
            self._start_counting(now)
        self._use_opened(now)

    def _start_counting(self, now: int) -> None:
        limit = self._plan.limit
        self._phase, self._phase_end = LoadPhase.COUNTING, UNLIMITED if limit is None else now + int(limit * SECOND)
        # Requests that were due in the warm-up but have not left yet come on top of the share.
        self._to_send = self._share.requests + (self._turns.overdue(now - 1) if self._turns else 0)
        self._figures.since = now
        if self._plan.warmup:
            self._links.judge.wrong = 0
            self._figures.restart()

    def _stop_sending(self, now: int) -> None:
        if self._turns is not None:
            self._figures.tally["unsent"] = min(self._to_send, self._turns.overdue(self._phase_end - 1))
        self._to_send = 0
        self._links.finish_all(now)
        self._figures.last = now
        self._phase, self._phase_end = LoadPhase.DRAINING, UNLIMITED

    def _is_hopeless(self, now: int) -> bool:
        """True if a test without a time limit has reached no server for so long that it would never end."""
        deadline = max(self._links.last_hope, self._figures.last) + 2 * self._plan.connect_timeout * SECOND
        return self._plan.limit is None and now > deadline and not self._links.is_any_open()

    def _publish(self, now: int) -> None:
        self._figures.publish(self._links.judge.wrong, now if self._to_send > 0 else None)
