"""The fast path: one request, one reply, and not one call more than that takes.

A conversation that alone writes its worker's row writes its numbers there itself, as exactly as `Meter.began` and
`ended` do: the request in hand and since when, how many there were, and how long each took. In an `event` worker,
finished requests are counted at the end of the loop's turn. Whatever is rare is left to `conversation`.

States. The fast path serves a connection only while it is *reading* (see `conversation`): no request is half received
(`deadline` is None), nothing is `parked` or held in `_unsent`, and the worker does not leave. Each exchange checks only
what its own steps can have changed: after `feed`, whether a request is half received; after the handler, whether
something is unsent, parked or closed, and that only if `_seen`, because a handler that never gets the connection cannot
change it. `leaving` is set by a signal handler at any time, so `_exchange` checks it every time; in an `event` worker
`Visit.hurry` takes the connection off the fast path instead. If a check fails, `conversation` finishes the request in
hand. With threads, `access` or without the black box there is no fast path (`is_quick`), because the row is then not
the conversation's alone.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from operator import sub
from time import monotonic_ns
from typing import Any, Final, TypeGuard, TypeVar

from forkd.errors import DeadlineError, FramingError, PeerGone
from forkd.ipc.meter import (
    COMMON,
    COMMON_NS,
    COMMON_SHIFT,
    DONE,
    DONE_AT,
    IN_HAND,
    IN_HAND_AT,
    Meter,
    Pen,
    bucket,
    peer_record,
)
from forkd.ipc.scoreboard import HISTOGRAM, SLOWEST
from forkd.serving.connection import Connection
from forkd.serving.conversation import HELD_BYTES, HELD_NS, NOTHING, UNCOUNTED, Conversation, Failed
from forkd.serving.counted_framings import Chunks
from forkd.serving.outcome import Outcome
from forkd.serving.service import Close, Service

Owner = TypeVar("Owner")

# The owner, the conversation, and what each of its exchanges needs: one tuple is closer in memory than four objects.
Usual = tuple[
    Owner,
    "QuickConversation",
    Connection,
    socket.socket,
    Callable[[bytes], Any],  # of the framing, to feed
    Callable[[bytes], bytes],  # and to encode
    Any,  # the framing, which may have `pending`
    bytes,  # the peer, as in the row
    int,  # the connection's room
]

# For a framing without `pending`: after a feed that completed a request, nothing is half received.
_NEVER_PENDING: Final = Chunks()

_show: Final = IN_HAND.pack_into
_show_done: Final = DONE.pack_into


def converse(connection: Connection, service: Service[..., Any], meter: Pen, peer: bytes = b"") -> Outcome:
    """Serves one connection to its end, waiting for the client; leaves the socket open for its owner.

    Nothing that a client sends or a handler does leaves it as an exception.
    """
    conversation = conversation_of(connection, service, meter, peer)
    try:
        conversation.start()
        if service.framing is None:
            conversation.session()
        else:
            conversation.run()
        outcome = conversation.over()
    except BaseException as error:
        outcome = conversation.over(error)
    return conversation.finish(outcome)


def conversation_of(connection: Connection, service: Service[..., Any], meter: Pen, peer: bytes) -> Conversation:
    """Makes a conversation, of the fast kind if the meter and the service allow it."""
    if is_quick(meter, service):
        return QuickConversation(connection, service, meter, peer)
    return Conversation(connection, service, meter, peer)


def is_quick(meter: Pen, service: Service[..., Any]) -> TypeGuard[Meter]:
    """Whether conversations of this service, counted by this meter, are of the fast kind."""
    return type(meter) is Meter and meter.keeps and service.framing is not None


class QuickConversation(Conversation):
    """A conversation that is alone with its worker's row.

    `_alone`: the handler takes nothing but the request. `_raw`: the framing's requests are bytes. `_seen`: the
    application can hold the connection, and may send or close at any time.
    """

    __slots__ = ("_alone", "_dress", "_postponed", "_raw", "_row", "_seen", "_whom")
    _meter: Meter

    def open(self) -> None:
        Conversation.open(self)  # super() would cost another call per connection
        self._row = self._meter.row
        self._whom = peer_record(self._peer)
        framing: Any = self.decoder.framing
        service = self._service
        self._raw = service.is_quick
        self._alone = not service.takes_connection
        self._seen = service.shows_connections
        # Together only if the application cannot tell: with the connection it may send between two replies.
        self._dress = framing.encode_all if self._raw and not self._seen else None

    def usual(self, owner: Owner) -> Usual[Owner]:
        """Returns what `answering` needs for an exchange, once the conversation has begun."""
        connection, decoder = self.connection, self.decoder
        framing = decoder.framing if decoder.tells_pending else _NEVER_PENDING
        return owner, self, connection, connection.sock, self._feed, self._encode, framing, self._whom, connection.room

    def run(self) -> None:
        connection = self.connection
        while not (connection.closed or connection.at_end):
            if connection.deadline is None:
                self._exchange()
            elif data := connection.arrived():  # the rest of a request, or more of it
                self.take(data)
        self.end_of_stream()

    def _exchange(self) -> None:
        """Does what `answering` does, waiting for one client, until something unusual happens."""
        connection, handler, meter = self.connection, self._handler, self._meter
        _, _, _, sock, feed, encode, framing, whom, _ = self.usual(self)
        row, raw, alone, seen = self._row, self._raw, self._alone, self._seen
        while True:
            try:
                data = sock.recv(connection.room)
            except BlockingIOError:
                raise connection.silence() from None
            except OSError as error:
                raise PeerGone.by(error) from error
            if not data:
                connection.took(data)
                return
            size = len(data)
            connection.received += size
            if size == connection.room:
                connection.widen()
            try:
                requests = feed(data)
            except FramingError as error:
                self.take_on(data, self.decoder.breaks(error))
                return
            if len(requests) != 1 or framing.pending:
                self.take_on(data, requests)
                return

            request = requests[0]
            shown = request if raw or type(request) is bytes else data
            reply = dressed = failed = None
            began = monotonic_ns()
            _show(row, IN_HAND_AT, whom, began, meter.requests, len(shown) + 1, shown)
            try:
                reply = handler(request) if alone else handler(request, connection)
                if type(reply) is bytes:
                    dressed = encode(reply)
            except BaseException as error:
                failed = error
            taken = monotonic_ns() - began
            meter.requests += 1
            row[COMMON[taken >> COMMON_SHIFT] if taken < COMMON_NS else HISTOGRAM + bucket(taken)] += 1
            if taken > meter.slowest:
                row[SLOWEST] = meter.slowest = taken
            _show_done(row, DONE_AT, 0, meter.requests)

            odd = dressed is None and (reply is not None or failed is not None)
            if odd or connection.leaving or (seen and (self._unsent or connection.parked or connection.closed)):
                try:
                    self.goes_on_with(shown, reply, dressed, failed)
                finally:
                    failed = None  # its traceback refers to this frame: the cycle would keep both
                return
            if dressed is not None:
                try:
                    sent = sock.send(dressed)
                except OSError as error:
                    sent = connection.refuses(error)
                connection.sent += sent
                if sent != len(dressed):
                    connection.falls_short(dressed, sent, (began + taken) / 1e9)
            if connection.received > UNCOUNTED:
                self.account()

    def postpone(self, what: Callable[..., object], *arguments: Any) -> None:
        """Leaves a call to `look_after`."""
        self._postponed = what, arguments

    def look_after(self) -> None:
        """Makes the postponed call: the unusual part of the last exchange."""
        what, arguments = self._postponed
        del self._postponed
        try:
            what(*arguments)
        finally:
            del arguments  # an error's traceback refers to this frame, which would keep the error

    def start(self) -> None:
        self._leave_the_hook_alone(self._service.connect_hook)
        super().start()

    def finish(self, outcome: Outcome) -> Outcome:
        self._leave_the_hook_alone(self._service.close_hook)
        return super().finish(outcome)

    def _leave_the_hook_alone(self, hook: object) -> None:
        """A hook is no handler: settles what was in hand before it in this turn of the loop."""
        if hook is not None:
            self._meter.rests()

    def hears_the_end(self) -> None:
        """The client has ended its side."""
        self.connection.took(b"")
        self.end_of_stream()

    def hears_badly(self, data: bytes, error: BaseException) -> None:
        """The framing has refused `data`, the next bytes of the stream, or has failed."""
        if not isinstance(error, FramingError):
            raise error
        self.take_on(data, self.decoder.breaks(error))

    def goes_on_with(self, shown: bytes, reply: Any, dressed: bytes | None, failed: BaseException | None) -> None:
        """Finishes a request whose result is not one reply that can leave at once."""
        try:
            if dressed is not None:
                self._unsent.append(dressed)
            elif reply is not None or failed is not None:
                self._answer_oddly(shown, reply, failed)
        finally:
            failed = None  # its traceback refers to this frame: the cycle would keep both
        self._queue = NOTHING
        self.go_on()

    def cannot_send(self, data: bytes, error: BaseException, began: float) -> None:
        """The client takes nothing of `data` now, since `began` (of the monotonic clock), or it is not sendable."""
        if not isinstance(error, OSError):
            raise error
        self.connection.falls_short(data, self.connection.refuses(error), began)

    def _answer_some(self) -> bool:
        """The same for requests that arrived together: the end of one is the beginning of the next."""
        connection, handler, encode, dress = self.connection, self._handler, self._encode, self._dress
        alone, raw, seen, latest = self._alone, self._raw, self._seen, connection.latest
        row, whom, meter = self._row, self._whom, self._meter
        replies = self._unsent if dress is None else []
        count, held = meter.requests, 0
        reply: Any = None
        failed: BaseException | None = None
        shown = latest
        done = odd = False
        now = monotonic_ns()
        late = now + HELD_NS
        marks = [now]
        try:
            for request in self._queue:
                shown = request if raw or type(request) is bytes else latest
                _show(row, IN_HAND_AT, whom, now, count, len(shown) + 1, shown)
                count += 1
                reply = handler(request) if alone else handler(request, connection)
                if type(reply) is bytes:
                    replies.append(encode(reply) if dress is None else reply)
                    held += len(reply)
                elif reply is not None:
                    odd = True
                    break
                now = monotonic_ns()
                marks.append(now)
                if held > HELD_BYTES or (now > late and not connection.leaving):
                    break
                if seen and (connection.closed or connection.parked):
                    break
            else:
                done = True
        except BaseException as error:
            reply, failed, odd = None, error, True
        if odd:
            marks.append(monotonic_ns())
        meter.requests = count
        meter.durations += map(sub, marks[1:], marks)
        if not connection.parks:
            meter.rests()
        if dress is not None and replies:
            self._unsent.append(dress(replies))
        if odd:
            try:
                self._answer_oddly(shown, reply, failed)
            finally:
                failed = None  # its traceback refers to this frame: the cycle would keep both
        elif not done:
            self.flush()
        return done

    def _say_the_rest(self) -> None:
        self._meter.met = None  # the row names a peer that the meter does not know of
        super()._say_the_rest()

    def _answer_oddly(self, shown: bytes, reply: Any, failed: BaseException | None) -> None:
        """A handler has returned something other than bytes, or has failed: it is still at work."""
        self.connection.latest = shown
        self._meter.resumed(shown)
        try:
            if isinstance(failed, Close | DeadlineError | PeerGone):
                raise failed
            if failed is None:
                self._reply(reply)
            else:
                self._recover(failed)
        except (Close, DeadlineError, PeerGone, Failed):
            raise
        except BaseException as error:
            self._recover(error)
        finally:
            self._meter.paused()
            failed = None
