"""One connection in an `event` worker: its conversation, and what it waits for.

It never waits itself. It learns that its socket is ready, and says what to wait for next (`interest`, of epoll(7)).
Now and then the loop asks when its time is over (`due`). Whose turn it is, `event` and `threads` decide.

States. *New*: `ready` has not run yet. *Usual*: nothing but the next request is awaited; only then is the visit in the
host's `usual`, where `answering` serves it without coming here. It enters in `_await_the_usual` and leaves in
`_await_anything`, before anything that makes it unusual. *Unusual*: a request is half received (`deadline`), the worker
leaves, or the visit has just come back from *owing*. *Owing*: the client has bytes `parked` to take; `interest` is OUT,
so nothing is read and no request answered until they have gone. *Unfinished*: its turn was over before its requests
were; `interest` is OUT, which brings the next turn. *Ending*: the same as owing, but `_outcome` is known and nothing
follows. *Ended*: `interest` is 0.

`interest == IN` is checked in addition to `parked`, because parked bytes can go without the visit's doing: a handler
that reads or sends may wait for them in `Connection.drain`. Then `parked` is empty but epoll(7) still watches for OUT;
a visit made *usual* in that state would never be read again.

A visit that is `at_work` belongs to the thread that has it in hand. The loop may only `cut` it: that leaves the error
in `_verdict` and shuts the socket down, and the thread finds both when it uses the socket next.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from forkd.errors import ForkdError
from forkd.ipc.deadlines import NEVER, Deadlines
from forkd.ipc.meter import Pen
from forkd.serving.connection import Connection
from forkd.serving.exchange import QuickConversation, Usual, conversation_of
from forkd.serving.outcome import End, Outcome
from forkd.serving.service import Service

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT


class Visitor(Protocol):
    """A visit, as the loop sees it; `at_work` while a thread or a coroutine has it in hand."""

    fd: int
    sock: socket.socket
    connection: Connection
    interest: int
    at_work: bool

    def ready(self, event: int) -> None: ...
    def hurry(self) -> None: ...
    def due(self) -> float: ...
    def expire(self) -> None: ...
    def cut(self) -> None: ...


class Host(Protocol):
    """The loop, as a visit sees it."""

    @property
    def now(self) -> float:
        """The time at the beginning of this turn."""

    def due_by(self, when: float) -> None:
        """A visit's time may be over at `when`, before any of its deadlines."""

    def watch(self, visit: Visitor) -> None:
        """The visit's `interest` has changed."""

    def ended(self, visit: Visitor, outcome: Outcome) -> None:
        """The visit has ended; its socket is the loop's to close."""

    def failed(self, error: BaseException) -> None:
        """A visit has met an error that is neither the client's nor the handler's: the worker cannot continue."""


class AnsweringHost(Host, Protocol):
    """A host that may answer on behalf of a visit: `usual` has what that takes, for each visit that is *usual*.

    It is None if several threads have connections in hand.
    """

    usual: dict[int, Usual[Visit]] | None


class Visit:
    """While it is `at_work`, only the thread that has it in hand may touch it; `cut` is the exception."""

    __slots__ = (
        "_host",
        "_limits",
        "_outcome",
        "_owed_since",
        "_service",
        "_started",
        "_touched",
        "_usual",
        "_verdict",
        "at_work",
        "connection",
        "conversation",
        "fd",
        "interest",
        "sock",
    )

    def __init__(
        self,
        sock: socket.socket,
        connection: Connection,
        service: Service[..., Any],
        meter: Pen,
        limits: Deadlines,
        host: AnsweringHost,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.connection = connection
        self.conversation = conversation_of(
            connection, service, meter, str(connection.peer).encode(errors="backslashreplace")
        )
        self.interest = IN
        self.at_work = False
        self._usual: Usual[Visit] | None = None
        self._service = service
        self._limits = limits
        self._host = host
        self._touched = host.now
        if host.usual is not None:
            connection.stalled = self._wait_for_less
        self._owed_since = 0.0
        self._started = False
        self._outcome: Outcome | None = None
        self._verdict: ForkdError | None = None

    def ready(self, event: int) -> None:
        """Does what there is to do. `interest` then says what to wait for, 0 if the visit has ended."""
        self._touched = self._host.now
        self.does(self._meet, event)

    def does(self, what: Callable[..., object], *arguments: int) -> None:
        """Makes that call, and draws the conclusions."""
        try:
            what(*arguments)
        except BaseException as error:
            self._conclude(self.conversation.over(error))
            return
        connection = self.connection
        if connection.closed or connection.at_end:
            if not connection.parked and not self.conversation.unfinished:
                self._conclude(self._outcome or self.conversation.over())
                return
        elif self.conversation.unfinished:
            pass
        elif not connection.parked and connection.deadline is None and not connection.leaving and self.interest == IN:
            self._await_the_usual()
            return
        self._wait_for_less()

    def _await_the_usual(self) -> None:
        usual, answered = self._usual, self._host.usual
        if usual is not None and answered is not None:
            if usual[-1] != self.connection.room:
                self._usual = usual = usual[1].usual(self)
            answered[self.fd] = usual

    def _await_anything(self) -> None:
        if self._host.usual is not None:
            self._host.usual.pop(self.fd, None)

    def _meet(self, event: int) -> None:
        connection = self.connection
        if not self._started:
            self._start()
        elif connection.parked or self.interest == OUT:  # a handler may have waited for the client to take it
            self._take_up()
        elif event == IN:
            self._read()
        elif event != OUT:  # with an error or a hang-up, which the socket must report
            while not (connection.parked or connection.closed or self.conversation.unfinished) and self._read():
                pass

    def hurry(self) -> None:
        """The worker leaves, and so will this client soon."""
        self._await_anything()
        self.connection.hurry()
        self._host.due_by(self.connection.leave_by)

    def due(self) -> float:
        """Returns when its time is over unless something happens before."""
        connection = self.connection
        if connection.parked:
            # A thread that waits for the client to take its replies has a clock of its own.
            return NEVER if self.at_work else self._owed_since + (self._limits.write_timeout or NEVER)
        if self._verdict is not None or self.conversation.unfinished or (self.at_work and not connection.leaving):
            return NEVER
        if connection.deadline is not None:
            return connection.deadline
        if connection.leaving:
            return connection.leave_by
        return max(self._touched, connection.heard) + (self._limits.idle_timeout or NEVER)

    def expire(self) -> None:
        """Its time is over."""
        self._conclude(self.conversation.over(self._why()))

    def cut(self) -> None:
        """Its time is over while a thread may have it in hand; the thread learns it from the end of the socket."""
        self._verdict = self._why()
        self.connection.cut = True
        with suppress(OSError):  # the client was faster
            self.sock.shutdown(socket.SHUT_RDWR if self.connection.parked else socket.SHUT_RD)

    def _why(self) -> ForkdError:
        return self.connection.too_slow() if self.connection.parked else self.connection.silence()

    def _start(self) -> None:
        self._started = True
        self.conversation.start()
        if self._service.framing is None:
            self.conversation.session()
            self.connection.close()
        elif isinstance(self.conversation, QuickConversation):
            self._usual = self.conversation.usual(self)

    def _read(self) -> bool:
        """Answers what has arrived; False if nothing has, or the end."""
        data = self.connection.arrived()
        if data:
            self.conversation.take(data)
        elif data is not None:
            if self._verdict is not None:
                raise self._verdict
            self.conversation.end_of_stream()
        return bool(data)

    def _take_up(self) -> None:
        """The client takes what is parked; once all of it has gone, the requests that arrived before are answered."""
        if self._verdict is not None:
            raise self._verdict
        connection = self.connection
        if not connection.unpark():
            return
        self._owed_since = self._host.now
        if connection.deadline is not None:  # its time did not run while nothing was read
            connection.deadline = None
            connection.start_clock()
        if not connection.closed:
            self.conversation.go_on()

    def _wait_for_less(self) -> None:
        """Something is owed, half received or hurried: its time may be over sooner than after silence."""
        self._await_anything()
        # The socket of an unfinished visit is writable, so OUT brings its next turn, behind all that are ready now.
        wanted = OUT if self.connection.parked or self.conversation.unfinished else IN
        if wanted != self.interest:
            self.interest = wanted
            self._owed_since = self._host.now
            self._host.watch(self)

    def _conclude(self, outcome: Outcome) -> None:
        """Everything is said: ends the visit as soon as the client has taken it."""
        connection = self.connection
        if outcome.end in (End.RESET, End.WRITE):
            connection.parked.clear()
        connection.close()
        if connection.parked and self._outcome is None:
            self._outcome = outcome
            self._wait_for_less()
            return
        self._await_anything()
        self._usual = connection.stalled = None  # which refer to this visit
        self.interest = 0
        self._host.ended(self, self.conversation.finish(outcome))
