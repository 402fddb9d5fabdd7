"""One connection from its banner to its end: the request loop.

Bytes become requests, requests go to the handler, replies go out, until somebody ends it. Nothing
that a peer sends or a handler does passes this room as an exception: `converse` gives an `Outcome`,
a fact for the worker to log and count. It knows no processes, listeners or signals.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Any, Final

from forkd.connection import Connection, DeadlineError, Leaving, PeerGone
from forkd.errors import FramingError, OverLimit, Truncated
from forkd.framing import Framing
from forkd.handler import Close, Service
from forkd.scoreboard import ERRORS, MALFORMED, OVER_LIMIT, REQUESTS, RESET, TIMED_OUT, TRUNCATED, Meter

# Replies to requests that arrived together leave together, unless they grow beyond this or their
# handlers take longer than this: then what is ready leaves before the next handler starts.
_HELD_BYTES: Final = 65536
_HELD_NS: Final = 2_000_000

# A client that never stops sending cannot keep a leaving worker: after so many seconds what has been
# answered by then is the end. All others end with the reply after which they fall silent.
_LEAVE_SECONDS: Final = 0.5


class End(Enum):
    """Why a connection ended."""

    CLIENT = "ended by the client"
    CLOSED = "ended by the handler"
    LEAVING = "ended by the leaving worker"
    IDLE = "idle_timeout"
    READ = "read_timeout"
    WRITE = "write_timeout"
    OVER_LIMIT = "over limit"
    MALFORMED = "malformed"
    TRUNCATED = "truncated"
    RESET = "reset"
    ERROR = "handler error"
    EXIT = "handler exit"


_COLUMNS: Final = {
    End.IDLE: TIMED_OUT,
    End.READ: TIMED_OUT,
    End.WRITE: TIMED_OUT,
    End.OVER_LIMIT: OVER_LIMIT,
    End.MALFORMED: MALFORMED,
    End.TRUNCATED: TRUNCATED,
    End.RESET: RESET,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a connection ended, with the error that ended it, if one did."""

    end: End
    error: BaseException | None = None


def converse(connection: Connection, service: Service[..., Any], meter: Meter) -> Outcome:
    """Serves one connection to its end; the socket stays open for whoever accepted it."""
    outcome = _serve(connection, service, meter)
    if outcome.end in _COLUMNS:
        meter.counted(_COLUMNS[outcome.end])
    connection.close()
    if service.close_hook is not None:
        try:
            service.close_hook(connection)
        except BaseException as error:
            outcome = _failure(error, meter)
    _account(connection, meter)
    return outcome


def _serve(connection: Connection, service: Service[..., Any], meter: Meter) -> Outcome:
    loop = _RequestLoop(connection, service, meter)
    try:
        loop.run()
    except Close as close:
        return loop.goodbye(close)
    except _Failed as failed:
        return _failure(failed.error, meter)
    except (DeadlineError, FramingError, PeerGone, Leaving) as error:
        return Outcome(_end_of(error), error)
    except BaseException as error:
        # The stream's own end, let through by a stream handler; else a hook's or a framing's own mistake.
        if not isinstance(error, EOFError) or not (connection.at_end or connection.leaving):
            return _failure(error, meter)
    return Outcome(_quiet_end(connection))


class _Failed(Exception):
    """A handler raised `error` and nothing made a reply of it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _RequestLoop:
    """The replies on their way, and what makes them."""

    __slots__ = ("connection", "encode", "handler", "held_bytes", "held_since", "meter", "service", "unsent")

    def __init__(self, connection: Connection, service: Service[..., Any], meter: Meter) -> None:
        self.connection = connection
        self.service = service
        self.handler = service.handler
        self.meter = meter
        self.encode = _as_it_is
        # The connection's own list, so that what a handler sends itself comes behind the replies before it.
        self.unsent = connection.unsent
        self.held_bytes = 0
        self.held_since = 0

    def run(self) -> None:
        framing = None if self.service.framing is None else self.service.framing.copy()
        if framing is not None:
            self.encode = framing.encode
        if self.service.connect_hook is not None:
            self.reply(self.service.connect_hook(self.connection))
            self.flush()
        if self.connection.closed:
            return
        if framing is None:
            self.stream()
        else:
            self.answer_all(framing)

    def stream(self) -> None:
        try:
            self.handler(self.connection)
        finally:
            self.meter.counted(REQUESTS)

    def answer_all(self, framing: Framing[Any]) -> None:
        connection = self.connection
        leave_at = 0.0
        for requests in connection.batches(framing):
            for request in requests:
                self.answer(request)
                if connection.closed:
                    break
            if connection.leaving and not getattr(framing, "pending", 0):
                leave_at = leave_at or monotonic() + _LEAVE_SECONDS
                if monotonic() > leave_at:
                    raise Leaving("the worker leaves")
                connection.last_call()
            else:
                self.flush()
            if connection.closed:
                return

    def answer(self, request: Any) -> None:
        # A framing's own kind of request is told of by what came last.
        began = self.meter.began(request if type(request) is bytes else self.connection.latest)
        if not self.unsent:
            self.held_bytes = 0
            self.held_since = began
        try:
            reply = self.handler(request, self.connection) if self.service.takes_connection else self.handler(request)
            if type(reply) is bytes:
                self.hold(reply)
            elif reply is not None:
                self.reply(reply)
        except (Close, DeadlineError, PeerGone):
            raise
        except BaseException as error:
            self.recover(error)
        finally:
            now = self.meter.ended(began)
        if self.held_bytes > _HELD_BYTES or (now - self.held_since > _HELD_NS and not self.connection.leaving):
            self.flush()

    def recover(self, error: BaseException) -> None:
        """Turns a handler's error into a reply, where the service has a hook for that."""
        hook = self.service.error_hook
        if hook is None or not isinstance(error, Exception):
            raise _Failed(error) from None
        self.meter.counted(ERRORS)
        try:
            self.reply(hook(error, self.connection))
        except (Close, DeadlineError, PeerGone):
            raise
        except BaseException as second:
            raise _Failed(second) from error

    def reply(self, reply: Any) -> None:
        """Takes any reply that a handler or hook may give."""
        if reply is None:
            return
        if isinstance(reply, bytes | bytearray | memoryview):
            self.hold(bytes(reply))
        elif isinstance(reply, str) or not isinstance(reply, Iterable):
            raise TypeError(f"a reply is bytes, an iterable of bytes, or None, not {type(reply).__name__}")
        else:
            self.flush()
            for one in reply:
                if not isinstance(one, bytes | bytearray | memoryview):
                    raise TypeError(f"each of several replies is bytes, not {type(one).__name__}")
                self.connection.send(self.encode(bytes(one)))

    def hold(self, reply: bytes) -> None:
        data = self.encode(reply)
        self.unsent.append(data)
        self.held_bytes += len(data)

    def flush(self) -> None:
        """Sends what is held and accounts for the bytes."""
        self.connection.flush()
        _account(self.connection, self.meter)

    def goodbye(self, close: Close) -> Outcome:
        """Sends the last words of a handler that ends the connection."""
        try:
            self.reply(close.reply)
            self.connection.flush(last=True)
        except (DeadlineError, PeerGone) as error:
            return Outcome(_end_of(error), error)
        except BaseException as error:
            return _failure(error, self.meter)
        return Outcome(End.CLOSED)


def _as_it_is(reply: bytes) -> bytes:
    return reply


def _account(connection: Connection, meter: Meter) -> None:
    meter.moved(connection.received, connection.sent)
    connection.received = connection.sent = 0


def _failure(error: BaseException, meter: Meter) -> Outcome:
    meter.counted(ERRORS)
    return Outcome(End.EXIT if isinstance(error, SystemExit) else End.ERROR, error)


def _quiet_end(connection: Connection) -> End:
    """Who ended a conversation in which nothing went wrong."""
    if connection.at_end:
        return End.CLIENT
    return End.LEAVING if connection.leaving else End.CLOSED


def _end_of(error: BaseException) -> End:
    match error:
        case DeadlineError():
            return End(f"{error.what}_timeout")
        case OverLimit():
            return End.OVER_LIMIT
        case Truncated():
            return End.TRUNCATED
        case FramingError():
            return End.MALFORMED
        case Leaving():
            return End.LEAVING
        case _:
            return End.RESET
