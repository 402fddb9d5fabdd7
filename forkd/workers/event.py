"""The `event` worker's loop: many connections, one wait for all of them, each request run to completion.

A connection that is ready is read once and what has come is answered; it is never waited for. Deadlines
cost nothing a request: a coarse `sweep` finds those whose time is over. With threads, `crew` has the connections,
and the loop keeps the listeners, the deadlines and the orders.
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

# So few that the first bytes read are still in the processor's first cache when the last have come.
_EVENTS_AT_ONCE: Final = 32
_ACCEPTS_AT_ONCE: Final = 16
# A worker with 8 connections and 1/32 more than the mean leaves the next ones to the others, for 2 ms.
_WORTH: Final = 8
_SLACK: Final = 32
_DEFER: Final = 0.002
# How coarse the sweep is: an eighth of the shortest deadline, but no finer and no coarser than this.
_FINEST: Final = 0.01
_COARSEST: Final = 1.0


def serve(seat: WorkerContext) -> None:
    """Serves until told to leave; returns when the last connection has ended."""
    loop = EventLoop(seat)
    seat.meter.idle()
    seat.wake()
    loop.run()


class EventLoop:
    """The connections of one worker, `visits` by descriptor, and when to look at their deadlines again.

    Of those that are in `usual`, too, nothing but the next request is waited for.

    A turn that has only had visits served leaves all else as it was: `due_at` is when there is something else to do,
    unless something has `stirred` since it was reckoned.
    `replan` is called when somebody else who waits for this loop has to look at `timeout` or `over` again.
    """

    def __init__(self, seat: WorkerContext, visit: Callable[..., Visitor] = Visit, pen: Pen | None = None) -> None:
        self.seat = seat
        self.now = monotonic()
        self.visits: dict[int, Visitor] = {}
        self.usual: dict[int, Usual[Visit]] = {}
        self.visit = visit
        self.replan: Callable[[], None] = _nothing
        self.lingering = Lingering()
        self.epoll = select.epoll()
        self.epoll.register(seat.inbox.fd, select.EPOLLIN)
        self.doors = Acceptor(seat.doors, self.epoll, seat.meter, seat.report)
        self.crew = ThreadPool(seat, self) if seat.threads else None
        self.pen = pen or (seat.meter if self.crew is None else self.crew.pen)
        self.answering: Answering[Visit] | None = None if seat.access else Answering.of(seat.service, self.pen)
        self.tallies: dict[int, TallyPen] = {}
        self.number = 0
        self.room = ROOMS[0]
        self.open = True
        self.hurried = False
        self.sweep_at: float | None = None
        self.due_at = NEVER
        self.stirred = True
        self.shortest = min((each for each in seat.limits if each), default=NEVER)
        self.coarse = min(_COARSEST, max(_FINEST, self.shortest / 8))
        self.failure: BaseException | None = None
        seat.orders.abandon = self.doors.abandon
        seat.meter.shares(0)

    def run(self) -> None:
        while self.open or not self.over:
            self.turn(self.timeout())

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, ever."""
        return not (self.open or self.visits or self.lingering)

    def turn(self, timeout: float | None) -> None:
        """Waits once, and does all that has come to be done."""
        orders, visits = self.seat.orders, self.visits
        orders.at_work = False
        events = self.epoll.poll(timeout, _EVENTS_AT_ONCE)
        orders.at_work = True
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
            self.stirred = True  # last, for `replan` may have had somebody look at `timeout` before all was done
        self.seat.meter.rests()
        if orders.told is not None:
            self.leave()
            self.stirred = True
        if self.stirred or self.now >= self.due_at:
            self.tidy()
            self.stirred = True
        elif self.seat.tenure.wears:
            self.seat.retire_in_time(self.now)

    def answer(self, answering: Answering[Visit], events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Answers those of whom nothing but their next request is waited for; gives the events that remain."""
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

    # Who comes.

    def accept(self, fd: int) -> None:
        """Accepts what is in the queue, and leaves the rest to others when this worker has clearly more than they.

        The kernel has woken one of them for each connection in the queue that is not this worker's, or all of them are
        awake and look at the queue before they sleep. So a connection waits for `_DEFER` only where all the others
        have started on something long in that very moment.
        """
        for _ in range(_ACCEPTS_AT_ONCE):
            if not self.let_in(fd):
                return
            if self.leaves_the_next():
                self.doors.keep_away(self.now + _DEFER)
                return

    def leaves_the_next(self) -> bool:
        """Whether this worker has many more connections than the mean, and one with fewer has nothing to do."""
        ours = len(self.visits)
        if ours <= _WORTH:
            return False
        board = self.seat.board
        mean = board.mean_share()
        return ours > mean + mean / _SLACK + _WORTH and board.has_free(ours - _WORTH)

    def let_in(self, fd: int) -> bool:
        """Welcomes the next connection in the queue; False when there was none."""
        guest = self.doors.accept(fd, stopping=self.seat.stopping)
        if isinstance(guest, bool):
            return guest
        self.welcome(guest)
        return True

    def welcome(self, guest: Guest) -> None:
        seat = self.seat
        self.number += 1
        connection = Connection(
            guest.sock,
            service=seat.name,
            number=self.number,
            limits=seat.limits,
            resources=seat.resources,
            peer=guest.peer,
            parks=True,
            room=self.room,
        )
        guest.prepare(connection)
        pen = self.pen
        if seat.access:
            pen = self.tallies[guest.sock.fileno()] = TallyPen(pen)
        visit = self.visit(guest.sock, connection, seat.service, pen, seat.limits, self.crew or self)
        self.visits[visit.fd] = visit  # first, or whoever has to plan again may find nothing left to do
        self.due_by(self.now + (self.shortest if self.crew is None else self.coarse))
        self.opened()
        seat.ask_for_spares()
        if self.hurried:
            visit.hurry()
        if self.crew is not None:
            self.crew.take(visit)
        else:
            guest.sock.setblocking(False)
            self.epoll.register(visit.fd, visit.interest)
            visit.ready(0)

    def watch(self, visit: Visitor) -> None:
        """The visit waits for something else now."""
        self.epoll.modify(visit.fd, visit.interest)

    # Who goes.

    def ended(self, visit: Visitor, outcome: Outcome) -> None:
        """The end of a visit; a thread of the crew may be the one to tell."""
        self.stirred = True
        seat, connection = self.seat, visit.connection
        self.room = connection.room_for_the_next
        tally = self.tallies.pop(visit.fd, None)
        seat.report.ended(connection, outcome, None if tally is None else tally.account())
        del self.visits[visit.fd]
        if connection.at_end or outcome.end is End.RESET:
            visit.sock.close()
        elif self.crew is None:
            self.epoll.modify(visit.fd, select.EPOLLIN)
            self.linger(visit)
        else:
            self.crew.part(visit)
        self.pen.closed()
        self.share()
        if outcome.end is End.EXIT:
            seat.orders.leave(Order.FINISH)
        self.replan()

    def failed(self, error: BaseException) -> None:
        """A thread or a task has met what it cannot deal with: the next turn ends with that."""
        self.failure = error
        self.stirred = True
        self.replan()

    def linger(self, visit: Visitor) -> None:
        self.lingering.add(visit.sock, self.now)

    def leave(self) -> None:
        """Off the listeners; at a stop their queues are emptied, unless whoever passed us a socket keeps it.

        A worker that was woken for a connection and left without it would leave its client waiting beside idle
        colleagues, so it has one more look at each listener that was not abandoned.
        """
        if self.seat.orders.told is Order.FINISH and not self.hurried:
            self.hurried, self.coarse = True, STRAGGLERS
            for visit in list(self.visits.values()):
                visit.hurry()
            self.due_by(self.now + self.coarse)
        if self.open:
            self.open = False
            self.doors.unwatch()
            self.seat.meter.shares(None)
            for fd, door in self.doors:
                empty_it = self.seat.stopping and not door.passed
                while self.let_in(fd) and empty_it:
                    pass
                self.doors.shut(fd)
            self.doors.resume_at = None

    # What is due.

    def due_by(self, when: float) -> None:
        """Some visit's time may be over by then."""
        if self.sweep_at is None or when < self.sweep_at:
            self.sweep_at = when
            self.stirred = True
            self.replan()

    def sweep(self) -> None:
        """Ends the visits whose time is over.

        The next look comes no later than the shortest of all deadlines, so that nobody has to say that one is set.
        """
        now = self.now
        next_due = now + self.shortest
        for visit in list(self.visits.values()):
            due = visit.due()
            if due > now:
                next_due = min(next_due, due)
            elif self.crew is None:
                visit.expire()
            else:
                visit.cut()
        if self.crew is not None and self.visits:
            next_due = now  # a thread may have set a nearer one meanwhile
        if self.hurried:
            next_due = now
        self.sweep_at = max(next_due, now + self.coarse) if self.visits and next_due < NEVER else None

    def tidy(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.crew is not None:
            self.crew.see_off()
        if self.sweep_at is not None and self.now >= self.sweep_at:
            self.sweep()
        self.lingering.expire(self.now)
        self.doors.tidy(self.now)
        self.seat.retire_in_time(self.now)

    def timeout(self) -> float | None:
        """Seconds until there is something to do though nothing comes; None for never."""
        now = monotonic()
        if self.stirred:
            self.stirred = False  # before the look: a thread of the crew may stir again meanwhile
            sweep = None if self.sweep_at is None else max(0.0, self.sweep_at - now)
            wait = self.seat.timeout(now, self.lingering.timeout(now), self.doors.timeout(now), sweep)
            self.due_at = NEVER if wait is None else now + wait
        return None if self.due_at == NEVER else max(0.0, self.due_at - now)

    def opened(self) -> None:
        self.pen.opened()
        self.share()

    def share(self) -> None:
        if self.open:
            self.seat.meter.shares(len(self.visits))

    def attend(self, fd: int) -> None:
        """A signal, or word from a thread of the crew."""
        if fd == self.seat.inbox.fd:
            self.seat.inbox.take()

    def close(self) -> None:
        """Lets go of what it waits with, where the process goes on."""
        if self.crew is not None:
            self.crew.close()
        self.epoll.close()


def _nothing() -> None:
    """Nobody else waits."""
