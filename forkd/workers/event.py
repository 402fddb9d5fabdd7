"""The loop of an `event` worker: many connections, one wait for all of them, each request run to completion.

A connection that is ready is read once, and what has arrived is answered; it is never waited for. Deadlines cost a
request nothing: a coarse `sweep` finds the connections whose time is over. With threads, `threads` has the connections,
and this loop keeps the listeners, the deadlines and the orders.

States. `open`: the listeners are watched, or kept away from for a moment. `hurried`: each visit has been asked to end
soon. `over`: nothing is open, visited or lingering. A visit is in `visits` from accept to `ended`, and in `usual` as
well while it waits for nothing but its next request; only the visit itself puts it there and takes it out. With
threads, `ended` and `failed` run in the thread that has the visit in hand. They change only what one operation changes
safely, such as a dictionary or a word of the row, and leave the rest to `tidy`. `stirred` is set after the change that
it reports, and cleared before the look at what is due, so that no change is missed.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from time import monotonic
from typing import Final

from forkd.ipc.deadlines import NEVER, STRAGGLERS
from forkd.ipc.meter import Pen
from forkd.ipc.order import Order
from forkd.serving.answering import Answering
from forkd.serving.connection import ROOMS, Connection
from forkd.serving.exchange import Usual
from forkd.serving.outcome import End, Outcome
from forkd.serving.visit import IN, Visit, Visitor
from forkd.workers.acceptor import Acceptor, Guest
from forkd.workers.account import TallyPen
from forkd.workers.context import WorkerContext
from forkd.workers.linger import Lingering
from forkd.workers.threads import ThreadPool

# Few enough that the first bytes read are still in the processor's first cache when the last are.
_EVENTS_AT_ONCE: Final = 32
_ACCEPTS_AT_ONCE: Final = 16
# A worker that has its share keeps away from the listeners for this long.
_DEFER: Final = 0.002
_SLACK: Final = 32  # a worker may have 1/32 more than the mean
# The sweep is as coarse as an eighth of the shortest deadline, within these limits.
_FINEST: Final = 0.01
_COARSEST: Final = 1.0


def serve(context: WorkerContext) -> None:
    """Serves until ordered to leave; returns when the last connection has ended."""
    loop = EventLoop(context)
    context.meter.idle()
    context.wake()
    loop.run()


class EventLoop:
    """The connections of one worker, `visits` by descriptor, and when to look at their deadlines again.

    A turn that has only served visits leaves everything else as it was: `due_at` is when something else must be done,
    unless something has `stirred` since it was calculated. `replan` is called when the loop around this one, if there
    is one, must look at `timeout` or `over` again.
    """

    def __init__(self, context: WorkerContext, visit: Callable[..., Visitor] = Visit, pen: Pen | None = None) -> None:
        self.context = context
        self.now = monotonic()
        self.visits: dict[int, Visitor] = {}
        self.usual: dict[int, Usual[Visit]] = {}
        self.visit = visit
        self.replan: Callable[[], None] = _nothing
        self.lingering = Lingering()
        self.epoll = select.epoll()
        self.epoll.register(context.inbox.fd, select.EPOLLIN)
        self.doors = Acceptor(context.doors, self.epoll, context.meter, context.report, context.is_crowded)
        self.threads = ThreadPool(context, self) if context.threads else None
        self.pen = pen or (context.meter if self.threads is None else self.threads.pen)
        self.answering: Answering[Visit] | None = None if context.access else Answering.of(context.service, self.pen)
        self.tallies: dict[int, TallyPen] = {}
        self.number = 0
        self.room = ROOMS[0]
        self.open = True
        self.hurried = False
        self.sweep_at: float | None = None
        self.due_at = NEVER
        self.stirred = True
        self.shortest = min((each for each in context.limits if each), default=NEVER)
        self.coarse = min(_COARSEST, max(_FINEST, self.shortest / 8))
        self.failure: BaseException | None = None
        context.leash.abandon = self.doors.abandon
        context.meter.shares(0)

    def run(self) -> None:
        while self.open or not self.over:
            self.turn(self.timeout())

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.open or self.visits or self.lingering)

    def turn(self, timeout: float | None) -> None:
        """Waits once, and does everything that this brings."""
        leash, visits = self.context.leash, self.visits
        leash.at_work = False
        events = self.epoll.poll(timeout, _EVENTS_AT_ONCE)
        leash.at_work = True
        self.now = monotonic()
        if self.answering is not None:
            events = self.answer(self.answering, events)
        for fd, event in events:
            if fd in visits:
                visits[fd].ready(event)
                continue
            if fd in self.doors:
                self.accept(fd)
            elif fd in self.lingering:
                self.lingering.readable(fd)
            else:
                self.attend(fd)
            self.stirred = True  # last, because `replan` may have looked at `timeout` before everything was done
        self.context.meter.rests()
        if leash.order is not None:
            self.leave()
            self.stirred = True
        if self.stirred or self.now >= self.due_at:
            self.tidy()
            self.stirred = True
        elif self.context.tenure.wears:
            self.context.retire_in_time(self.now)

    def answer(self, answering: Answering[Visit], events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Answers the clients of whom nothing but their next request is awaited; returns the events that remain."""
        usual, others = [], []
        for fd, event in events:
            its = self.usual.get(fd)
            if its is None or event != IN:
                others.append((fd, event))
            else:
                usual.append(its)
        if usual:
            for visit, conversation in answering.answers(usual, self.now):
                visit.does(conversation.look_after)
        return others

    # Connections that come.

    def accept(self, fd: int) -> None:
        """Accepts what is in the queue, up to this worker's share.

        In a small pool the kernel has woken all workers that wait. One that has more connections than the mean keeps
        away from the listeners for `_DEFER`, so that one with fewer accepts the next, but only if there is one that has
        nothing to do and does not keep away itself. So a connection waits only if that one starts something long now.
        """
        for _ in range(_ACCEPTS_AT_ONCE):
            if self.leaves_the_next():
                self.doors.keep_away(self.now + _DEFER)
                self.share()
                return
            if not self.let_in(fd):
                return

    def leaves_the_next(self) -> bool:
        """Whether this worker has more than its share, while one with fewer connections has nothing to do."""
        ours, board = len(self.visits), self.context.board
        mean = board.mean_share()
        return ours > mean + mean / _SLACK and board.has_free(ours)

    def let_in(self, fd: int) -> bool:
        """Accepts the next connection in the queue; False if there was none."""
        guest = self.doors.accept(fd, stopping=self.context.stopping)
        if isinstance(guest, bool):
            return guest
        self.welcome(guest)
        return True

    def welcome(self, guest: Guest) -> None:
        context = self.context
        self.number += 1
        connection = Connection(
            guest.sock,
            service=context.name,
            number=self.number,
            limits=context.limits,
            resources=context.resources,
            peer=guest.peer,
            parks=True,
            room=self.room,
        )
        guest.prepare(connection)
        pen = self.pen
        if context.access:
            pen = self.tallies[guest.sock.fileno()] = TallyPen(pen)
        visit = self.visit(guest.sock, connection, context.service, pen, context.limits, self.threads or self)
        self.visits[visit.fd] = visit  # first, or a `replan` may find nothing left to do
        self.due_by(self.now + (self.shortest if self.threads is None else self.coarse))
        self.opened()
        context.ask_for_spares()
        if self.hurried:
            visit.hurry()
        if self.threads is not None:
            self.threads.take(visit)
        else:
            guest.sock.setblocking(False)
            self.epoll.register(visit.fd, visit.interest)
            visit.ready(0)

    def watch(self, visit: Visitor) -> None:
        """The visit now waits for something else."""
        # EPOLLERR and EPOLLHUP are reported in any case (epoll_ctl(2)); once is enough while nobody reads or sends.
        self.epoll.modify(visit.fd, visit.interest or select.EPOLLONESHOT)

    # Connections that go.

    def ended(self, visit: Visitor, outcome: Outcome) -> None:
        """A visit has ended; with threads, one of them makes this call."""
        self.stirred = True
        context, connection = self.context, visit.connection
        self.room = connection.room_for_the_next
        tally = self.tallies.pop(visit.fd, None)
        context.report.ended(connection, outcome, None if tally is None else tally.account())
        del self.visits[visit.fd]
        if connection.at_end or outcome.end is End.RESET:
            visit.sock.close()
        elif self.threads is None:
            self.epoll.modify(visit.fd, select.EPOLLIN)
            self.linger(visit)
        else:
            self.threads.part(visit)
        self.pen.closed()
        self.share()
        if outcome.end is End.EXIT:
            context.leash.leave(Order.FINISH)
        self.replan()

    def failed(self, error: BaseException) -> None:
        """A thread or task has met an error that it cannot handle; the next turn raises it."""
        self.failure = error
        self.stirred = True
        self.replan()

    def linger(self, visit: Visitor) -> None:
        self.lingering.add(visit.sock, self.now)

    def leave(self) -> None:
        """Leaves the listeners; at a stop it empties their queues first, except those of sockets passed to forkd, whose
        owner keeps them.

        If a worker that was woken for a connection left without it, the client would wait although other workers are
        idle. So it looks at each listener once more that was not abandoned.
        """
        if self.context.leash.order is Order.FINISH and not self.hurried:
            self.hurried, self.coarse = True, STRAGGLERS
            for visit in list(self.visits.values()):
                visit.hurry()
            self.due_by(self.now + self.coarse)
        if self.open:
            self.open = False
            self.doors.unwatch()
            self.context.meter.shares(None)
            for fd, door in self.doors:
                empty_it = self.context.stopping and not door.passed
                while self.let_in(fd) and empty_it:
                    pass
                self.doors.shut(fd)
            self.doors.resume_at = None

    # What is due.

    def due_by(self, when: float) -> None:
        """Some visit's time may be over at `when`."""
        if self.sweep_at is None or when < self.sweep_at:
            self.sweep_at = when
            self.stirred = True
            self.replan()

    def sweep(self) -> None:
        """Ends the visits whose time is over.

        The next sweep comes no later than after the shortest of all deadlines, so nothing has to report that one is
        set.
        """
        now = self.now
        next_due = now + self.shortest
        for visit in list(self.visits.values()):
            due = visit.due()
            if due > now:
                next_due = min(next_due, due)
            elif self.threads is None:
                visit.expire()
            else:
                visit.cut()
        if self.threads is not None and self.visits:
            next_due = now  # a thread may have set a nearer one
        if self.hurried:
            next_due = now
        self.sweep_at = max(next_due, now + self.coarse) if self.visits and next_due < NEVER else None

    def tidy(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.threads is not None:
            self.threads.see_off()
        if self.sweep_at is not None and self.now >= self.sweep_at:
            self.sweep()
        self.lingering.expire(self.now)
        if self.doors.tidy(self.now):
            self.share()
        self.context.retire_in_time(self.now)

    def timeout(self) -> float | None:
        """Returns the seconds until something must be done even if nothing happens; None for never."""
        now = monotonic()
        if self.stirred:
            self.stirred = False  # before the look, because a thread may stir again during it
            sweep = None if self.sweep_at is None else max(0.0, self.sweep_at - now)
            wait = self.context.timeout(now, self.lingering.timeout(now), self.doors.timeout(now), sweep)
            self.due_at = NEVER if wait is None else now + wait
        return None if self.due_at == NEVER else max(0.0, self.due_at - now)

    def opened(self) -> None:
        self.pen.opened()
        self.share()

    def share(self) -> None:
        """Says how many connections this worker has, if it accepts more."""
        if self.open:
            self.context.meter.shares(len(self.visits) if self.doors.resume_at is None else None)

    def attend(self, fd: int) -> None:
        """Takes a signal, or the wake-up of a thread."""
        if fd == self.context.inbox.fd:
            self.context.inbox.take()

    def close(self) -> None:
        """Releases what it waits with, in a process that continues."""
        if self.threads is not None:
            self.threads.close()
        self.epoll.close()


def _nothing() -> None:
    """There is no other loop."""
