"""The fast path of an `event` worker: serves all clients that are ready, one after the other.

It does what `exchange` does for one client that is waited for, as a function of its own, because a shared one would
cost 3 % of a request. Each reply leaves before the next handler starts, so a worker that dies has only one request in
hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic_ns
from typing import Any, Final, Generic

from forkd.errors import PeerGone
from forkd.ipc.meter import IN_HAND, IN_HAND_AT, Meter, Pen
from forkd.serving.conversation import UNCOUNTED
from forkd.serving.exchange import Owner, QuickConversation, Usual, is_quick
from forkd.serving.service import Service

_SEVERAL: Final = object()


class Answering(Generic[Owner]):
    """The usual exchanges of an `event` worker, for several connections at a time."""

    @classmethod
    def of(cls, service: Service[..., Any], pen: Pen) -> Answering[Owner] | None:
        """Returns one for this service, or None if its conversations are not of the fast kind."""
        return cls(service, pen) if is_quick(pen, service) else None

    def __init__(self, service: Service[..., Any], meter: Meter) -> None:
        # In one tuple, because a turn of the loop may have one request only and should not begin with many look-ups.
        self._tools = (
            service.handler,
            service.is_quick,
            not service.takes_connection,
            service.shows_connections,
            meter,
            meter.row,
            meter.durations.append,
        )

    def answers(self, usual: Iterable[Usual[Owner]], now: float) -> Iterator[tuple[Owner, QuickConversation]]:
        """Receives from each client, takes what came for one request, as it usually is, and sends the handler's one
        reply.

        Yields the owner and the conversation at once whenever it is anything else; the conversation then has to
        `look_after` it. `now` is the time.
        """
        handler, raw, alone, seen, meter, row, count = self._tools
        show = IN_HAND.pack_into
        received = all_sent = 0
        request: Any
        for (owner, conversation, connection, sock, feed, encode, framing, whom, room), data in _heard(usual):
            if not data:
                if data is not None:
                    conversation.postpone(conversation.hears_the_end)
                yield owner, conversation
                continue
            connection.heard = now
            size = len(data)
            received += size
            if size == room:
                connection.widen()
                conversation.postpone(conversation.take, data)
                yield owner, conversation
                continue
            if seen and (connection.closed or connection.parked):  # by another client's handler
                conversation.postpone(conversation.take, data)
                yield owner, conversation
                continue
            try:
                requests = feed(data)
                request = requests[0] if len(requests) == 1 and not framing.pending else _SEVERAL
            except BaseException as error:
                conversation.postpone(conversation.hears_badly, data, error)
                yield owner, conversation
                continue
            if request is _SEVERAL:
                conversation.postpone(conversation.take_on, data, requests)
                yield owner, conversation
                continue

            shown = request if raw or type(request) is bytes else data
            reply = dressed = failed = None
            began = monotonic_ns()
            try:
                show(row, IN_HAND_AT, whom, began, meter.requests, len(shown) + 1, shown)
                reply = handler(request) if alone else handler(request, connection)
                if type(reply) is bytes:
                    dressed = encode(reply)
            except BaseException as error:
                failed = error
            taken = monotonic_ns() - began
            meter.requests += 1
            count(taken)

            odd = dressed is None and (reply is not None or failed is not None)
            if odd or (seen and (connection.unsent or connection.parked or connection.closed)):
                conversation.postpone(conversation.goes_on_with, shown, reply, dressed, failed)
                failed = None  # its traceback refers to this frame: the cycle would keep both
                yield owner, conversation
                continue
            if dressed is not None:
                try:
                    sent = sock.send(dressed)
                    short = sent != len(dressed)
                except BaseException as error:
                    conversation.postpone(conversation.cannot_send, dressed, error, (began + taken) / 1e9)
                    yield owner, conversation
                    continue
                all_sent += sent
                if short:
                    conversation.postpone(connection.falls_short, dressed, sent, (began + taken) / 1e9)
                    yield owner, conversation
                    continue
            if seen and (connection.received > UNCOUNTED or connection.sent > UNCOUNTED):
                conversation.account()  # what the handler has read and sent itself
        meter.moved(received, all_sent)


def _heard(usual: Iterable[Usual[Owner]]) -> list[tuple[Usual[Owner], bytes | None]]:
    """Returns what has arrived from each client that sent something; None marks a broken connection to `look_after`.

    All are read first, without a handler's work in between, for the sake of the processor's caches.
    """
    heard: list[tuple[Usual[Owner], bytes | None]] = []
    for each in usual:
        _, conversation, _, sock, _, _, _, _, room = each
        try:
            heard.append((each, sock.recv(room)))
        except BlockingIOError:
            continue
        except OSError as error:
            conversation.postpone(_is_gone, error)
            heard.append((each, None))
    return heard


def _is_gone(error: OSError) -> None:
    """recv(2) has reported that the client broke off."""
    raise PeerGone.by(error) from error
