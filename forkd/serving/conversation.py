"""One connection from its banner to its end: the request loop.

Bytes become requests, requests go to the handler, replies go out, until one side ends it. How it ended is an `Outcome`,
a fact for the worker to log and count. It knows no processes, listeners or signals. `exchange` is the fast path for the
usual case; everything unusual comes back here.

States. *Reading*: `_queue` is exhausted, `_rest` is None, `parked` is empty; the next bytes may be taken. *Answering*:
`_queue` holds requests that have arrived; one handler runs at a time. *Paused*: the client does not take its replies,
so the connection has bytes `parked` (only where it `parks`, in an `event` worker); `_queue` and `_rest` keep their
places until `go_on`, and no more input is taken. *Unfinished*: likewise, but it is the other clients' turn. *Broken*:
`decoder.broken` holds the framing's error, which `settle` raises once the requests before it are answered. *Over*: an
exception ended the loop, or the stream or the connection has ended; `over` and `finish` run once. Only the thread that
has the connection in hand may touch any of this.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from time import monotonic
from typing import Any, Final

from forkd.errors import DeadlineError, FramingError, PeerGone, WorkerLeaves
from forkd.ipc.meter import Pen
from forkd.ipc.scoreboard import ERRORS
from forkd.serving.connection import Connection
from forkd.serving.decoder import Decoder
from forkd.serving.outcome import COLUMNS, End, Outcome, end_of
from forkd.serving.service import Close, ErrorHook, Service

# Replies to requests that arrived together leave together, unless they exceed this size or their handlers take
# longer than this. In that case, what is ready leaves before the next handler starts.
HELD_BYTES: Final = 65536
HELD_NS: Final = 2_000_000

# Bytes received on an open connection before the scoreboard counts them.
UNCOUNTED: Final = 65536

# A client that never stops sending cannot keep a leaving worker: after this many seconds its connection ends with
# the replies sent so far. Any other connection ends with the reply after which the client is silent.
_LEAVE_SECONDS: Final = 0.5


NOTHING: Final[Iterator[Any]] = iter(())
_BYTES: Final = (bytes, bytearray, memoryview)


class Failed(Exception):
    """A handler raised `error`, and no hook made a reply of it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Conversation:
    """The state of a conversation: requests not yet answered, replies on their way, and the code that makes them.

    It is driven from outside: the owner of the socket hands over what has arrived. What ends the conversation is
    raised, and `over` turns it into an outcome. A client that does not take its replies pauses it, and `go_on` resumes
    it. `peer` is the client's name in the scoreboard.
    """

    __slots__ = (
        "_encode",
        "_feed",
        "_handler",
        "_leave_at",
        "_meter",
        "_peer",
        "_queue",
        "_rest",
        "_service",
        "_unsent",
        "connection",
        "decoder",
        "unfinished",
    )

    def __init__(self, connection: Connection, service: Service[..., Any], meter: Pen, peer: bytes = b"") -> None:
        self.connection = connection
        self._peer = peer
        self._service = service
        self._handler = service.handler
        self._meter = meter
        self._encode = _as_it_is
        # The connection's own list, so that what a handler sends itself goes behind the replies before it.
        self._unsent = connection.unsent
        self._queue: Iterator[Any] = NOTHING
        self._rest: Iterator[Any] | None = None
        self._leave_at = 0.0
        self.unfinished = False

    def open(self) -> None:
        """Gives the conversation a framing of its own."""
        self._meter.meets(self._peer)
        if self._service.framing is not None:
            framing = self._service.framing.copy()
            self.decoder = Decoder(self.connection, framing)
            self._feed, self._encode = framing.feed, framing.encode

    def start(self) -> None:
        """Lets the service speak first, if it has a hook for that."""
        self.open()
        if self._service.connect_hook is not None:
            self._reply(self._service.connect_hook(self.connection))
            self.flush()

    def session(self) -> None:
        """Runs a stream handler's whole conversation."""
        if not self.connection.closed:
            try:
                self._handler(self.connection)
            finally:
                self._meter.served()

    def run(self) -> None:
        """Runs the request loop, waiting for the client, to the end of the stream or of the connection."""
        while not self.connection.closed and (data := self.connection.arrived()):
            self.take(data)
        self.end_of_stream()

    def take(self, data: bytes) -> None:
        """Answers the requests that `data`, the next bytes of the stream, completes."""
        try:
            requests = self._feed(data)
        except FramingError as error:
            requests = self.decoder.breaks(error)
        self.take_on(data, requests)

    def take_on(self, data: bytes, requests: Sequence[Any]) -> None:
        """Answers `requests`, which `data`, the next bytes of the stream, has completed."""
        decoder = self.decoder
        decoder.hears(requests)
        if requests or decoder.broken is not None:
            self.connection.latest = data
            self._queue = iter(requests)
            self.go_on()
        decoder.wait()

    def end_of_stream(self) -> None:
        """Answers the requests that the end of the client's side completes."""
        if not self.connection.closed and (requests := self.decoder.end()):
            self._queue = iter(requests)
            self.go_on()

    def go_on(self) -> None:
        """Answers the remaining requests that have arrived."""
        connection, unsent = self.connection, self._unsent
        if self._rest is not None:
            self._say_the_rest()
        done = False
        while not (done or connection.parked or connection.closed):
            done = self._answer_some()
            if connection.parks and not done:
                break  # its turn, of HELD_NS, is over
        self.unfinished = not (done or connection.parked or connection.closed)
        if self.unfinished or connection.parked:
            return  # the iterator remembers its place
        if connection.leaving or self.decoder.broken is not None:
            self.settle()
        elif unsent:
            connection.flush()
        if connection.received > UNCOUNTED or connection.sent > UNCOUNTED:
            self.account()

    def _answer_some(self) -> bool:
        """Answers requests until something must be done before the next one; True if none are left."""
        connection, meter, unsent, handler = self.connection, self._meter, self._unsent, self._handler
        held = since = 0
        meter.meets(self._peer)
        for request in self._queue:
            # For a request that is not bytes, the row shows the bytes that arrived last.
            began = meter.began(request if type(request) is bytes else connection.latest)
            try:
                reply = handler(request, connection) if self._service.takes_connection else handler(request)
                if type(reply) is bytes:
                    unsent.append(self._encode(reply))
                elif reply is not None:
                    self._reply(reply)
            except (Close, DeadlineError, PeerGone):
                raise
            except BaseException as error:
                self._recover(error)
            finally:
                now = meter.ended(began)
            if unsent:
                if len(unsent) == 1:
                    held, since = 0, began
                held += len(unsent[-1])
                if held > HELD_BYTES or (now - since > HELD_NS and not connection.leaving):
                    self.flush()
            if connection.closed or connection.parked:
                return False
        return True

    def settle(self) -> None:
        """Everything that has arrived is answered: sends the replies, or holds back the last ones for a moment."""
        connection = self.connection
        if connection.leaving and not self.decoder.pending:
            self._leave_at = self._leave_at or monotonic() + _LEAVE_SECONDS
            if monotonic() > self._leave_at:
                raise WorkerLeaves("the worker leaves")
            connection.last_call()
        elif self._unsent:
            self.flush()
        if self.decoder.broken is not None and not connection.parked:
            raise self.decoder.broken

    def over(self, error: BaseException | None = None) -> Outcome:
        """Returns how the conversation ended, from the exception that ended it or else because all has been said."""
        if isinstance(error, Close):
            return self._goodbye(error)
        if isinstance(error, Failed):
            return self.failure(error.error)
        if isinstance(error, DeadlineError | FramingError | PeerGone | WorkerLeaves):
            return Outcome(end_of(error), error)
        connection = self.connection
        # A stream handler may let the end of the stream through; anything else is a mistake of a hook or framing.
        if error is not None and not (isinstance(error, EOFError) and (connection.at_end or connection.leaving)):
            return self.failure(error)
        return Outcome(_quiet_end(connection))

    def finish(self, outcome: Outcome) -> Outcome:
        """Ends our side and runs the service's closing hook; returns the outcome."""
        self.close(outcome)
        for act in (self._drop_rest, self._call_close_hook):
            try:
                act()
            except BaseException as error:
                outcome = self.failure(error)
        self.account()
        return outcome

    def close(self, outcome: Outcome) -> None:
        """Ends our side, and counts how the conversation ended."""
        if outcome.end in COLUMNS:
            self._meter.counted(COLUMNS[outcome.end])
        self.connection.close()

    def failure(self, error: BaseException) -> Outcome:
        """Returns the outcome for an exception in the service's own code."""
        self._meter.counted(ERRORS)
        return Outcome(End.EXIT if isinstance(error, SystemExit) else End.ERROR, error)

    def account(self) -> None:
        """Counts the bytes received and sent."""
        self._meter.moved(*self.connection.counted())

    def hold(self, reply: Any) -> bool:
        """Takes a single reply or none; returns False for several, which go to `send_one`, one by one."""
        if type(reply) is bytes or isinstance(reply, _BYTES):
            self._unsent.append(self._encode(bytes(reply)))
            return True
        if isinstance(reply, str) or not isinstance(reply, Iterable | AsyncIterable | None):
            raise TypeError(f"a reply is bytes, an iterable of bytes, or None, not {type(reply).__name__}")
        return reply is None

    def send_one(self, reply: Any) -> None:
        """Sends one of several replies."""
        if not isinstance(reply, _BYTES):
            raise TypeError(f"each of several replies is bytes, not {type(reply).__name__}")
        self.connection.send(self._encode(bytes(reply)))

    def flush(self) -> None:
        """Sends what is held, and counts the bytes."""
        self.connection.flush()
        self.account()

    def excused(self, error: BaseException) -> ErrorHook:
        """Returns the hook that may turn a handler's error into a reply; without one, raises `Failed`."""
        hook = self._service.error_hook
        if hook is None or not isinstance(error, Exception):
            raise Failed(error) from None
        self._meter.counted(ERRORS)
        return hook

    def _recover(self, error: BaseException) -> None:
        """Turns a handler's error into a reply, if the service has a hook for that."""
        hook = self.excused(error)
        try:
            self._drop_rest()
            self._reply(hook(error, self.connection))  # type: ignore[arg-type]  # no other is excused
        except (Close, DeadlineError, PeerGone):
            raise
        except BaseException as second:
            raise Failed(second) from error

    def _reply(self, reply: Any) -> None:
        """Takes any reply that a handler or hook may return."""
        if not self.hold(reply):
            self.flush()
            self._rest = iter(reply)
            self._send_rest()

    def _send_rest(self) -> None:
        """Sends the rest of several replies, as long as the client takes them."""
        while not self.connection.parked:
            for one in self._rest or ():
                self.send_one(one)
                break
            else:
                self._rest = None
                return

    def _call_close_hook(self) -> None:
        if self._service.close_hook is not None:
            self._service.close_hook(self.connection)

    def _drop_rest(self) -> None:
        """Closes a generator of replies that will not be used up, so that it frees its resources before `on_close`."""
        rest, self._rest = self._rest, None
        if (close := getattr(rest, "close", None)) is not None:
            close()

    def _say_the_rest(self) -> None:
        """The same for a handler that was paused between its replies: it is at work again."""
        self._meter.meets(self._peer)
        self._meter.resumed(self.connection.latest)
        try:
            self._send_rest()
        except (Close, DeadlineError, PeerGone):
            raise
        except BaseException as error:
            self._recover(error)
        finally:
            self._meter.paused()

    def _goodbye(self, close: Close) -> Outcome:
        """Sends the last reply of a handler that ends the connection."""
        try:
            self._drop_rest()
            self._reply(close.reply)
            for one in self._rest or ():
                if not self.connection.parks_all:
                    self.connection.drain()
                self.send_one(one)
            self.connection.flush(last=True)
        except (DeadlineError, PeerGone) as error:
            return Outcome(end_of(error), error)
        except BaseException as error:
            return self.failure(error)
        return Outcome(End.CLOSED)


def _as_it_is(reply: bytes) -> bytes:
    return reply


def _quiet_end(connection: Connection) -> End:
    """Returns which side ended a conversation in which nothing went wrong."""
    if connection.at_end:
        return End.CLIENT
    return End.LEAVING if connection.leaving else End.CLOSED
