"""The client behind `forkd call`: say requests over a connected socket, print what comes back.

One loop over poll(2) keeps both directions moving. It knows nothing of framings: bytes go out and
come in as they are; the socket comes from `dial`. The story goes on in `cli`, which turns the
errors raised here into an exit status.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Sequence
from typing import IO, Final, TypeAlias

from msgspec import Struct, field

from forkd.errors import BrokenOffError, ForkdError, TimedOutError
from forkd.kernel.address import from_sockaddr
from forkd.sockets.explain import errno_name

Stream: TypeAlias = IO[bytes] | int | None
"""A file with a descriptor, a descriptor, or None for one that was closed before forkd began."""

# What is read at once, and how much one direction holds back before its reader has to wait.
_CHUNK: Final = 65536


def call(
    sock: socket.socket,
    requests: Sequence[bytes] | None,
    input: Stream,
    output: Stream,
    *,
    timeout: float | None = None,
    end: bytes = b"\n",
    name: str = "",
) -> None:
    """Send each of `requests` with `end` after it or, without any, copy `input`; print the answer to `output`.

    At the end of input our side of the connection ends (shutdown(2)), and what comes until the
    server ends its own is printed. Bytes are copied as they are: a last line without a newline
    stays without. Nothing waits for anything else, so it serves as a filter in a pipe, and on a
    terminal every line goes out when it is typed. Descriptors are used directly, past any buffer,
    and `sock` is left non-blocking and open. A closed `output` ends the call quietly.

    `timeout` is how many seconds nothing may happen while it is the server's turn: something is
    unsent or unanswered, or our side has ended. While the next word is the user's, it does not run.

    Raises TimedOutError for such a silence, and BrokenOffError for a reset (tcp(7): ECONNRESET,
    EPIPE) and for a server that ends its side while requests are still to be sent: read already,
    or readable at that moment. One that says goodbye after the last request so far has done well.
    ForkdError if input cannot be read or output not written. KeyboardInterrupt passes through.

    `name` is what errors call the server, if not by its address.
    """
    exchange = _Exchange(sock, _descriptor(input), _descriptor(output), timeout, name or _peer_name(sock))
    if requests:
        exchange.source = None
        exchange.to_send += b"".join(request + end for request in requests)
    sock.setblocking(False)
    try:
        exchange.run()
    finally:
        exchange.finish_line()


class _Exchange(Struct):
    """Both directions of one call, each with what it holds back for a slow reader."""

    sock: socket.socket
    source: int | None  # None once there is nothing more to read
    sink: int | None
    timeout: float | None
    peer: str
    to_send: bytearray = field(default_factory=bytearray)
    to_print: bytearray = field(default_factory=bytearray)
    listening: bool = True  # until the server ends its side
    unanswered: bool = False  # whether the last word is ours
    last_printed: bytes = b"\n"
    failure: ForkdError | None = None

    def run(self) -> None:
        self._end_our_side_if_done()
        while self.listening or self.to_print:
            ready = self._wait()
            on_socket = ready.get(self.sock.fileno(), 0)
            # Receiving comes first: once the server has ended its side, nothing more is to be sent.
            if on_socket & ~select.POLLOUT:
                self._receive()
            if on_socket and self.to_send:
                self._send()
            if self.source in ready:
                self._read()
            if self.sink in ready:
                self._print()
        if self.failure:
            raise self.failure

    def finish_line(self) -> None:
        """Leave a terminal's cursor where a prompt belongs."""
        if self.last_printed == b"\n" or self.sink is None or not os.isatty(self.sink):
            return
        with contextlib.suppress(OSError):
            os.write(self.sink, b"\n")

    def _wait(self) -> dict[int, int]:
        # poll and not epoll: epoll_ctl(2) refuses regular files with EPERM, to poll(2) they are always ready.
        poller = select.poll()
        for descriptor, events in self._wanted().items():
            poller.register(descriptor, events)
        ready = poller.poll(self._patience())
        if not ready:
            raise self.failure or TimedOutError(
                f"{self.peer} has been silent for {self.timeout:g} s; see what keeps the server (forkd stacks)"
            )
        return dict(ready)

    def _wanted(self) -> dict[int, int]:
        wanted: dict[int, int] = {}

        def want(descriptor: int | None, event: int, when: bool) -> None:
            # One descriptor may stand for two things, and poll keeps only what was registered last.
            if when and descriptor is not None:
                wanted[descriptor] = wanted.get(descriptor, 0) | event

        want(self.sock.fileno(), select.POLLIN, self.listening and len(self.to_print) < _CHUNK)
        want(self.sock.fileno(), select.POLLOUT, bool(self.to_send))
        want(self.source, select.POLLIN, len(self.to_send) < _CHUNK)
        want(self.sink, select.POLLOUT, bool(self.to_print))
        return wanted

    def _patience(self) -> float | None:
        """Milliseconds until the server has been silent for too long; None while it need not speak."""
        servers_turn = self.source is None or self.to_send or self.unanswered
        if self.timeout is None or self.to_print or not servers_turn:
            return None
        return min(self.timeout * 1000, 2**31 - 1)  # poll(2) counts in an int

    def _receive(self) -> None:
        try:
            data = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self.failure = self.failure or _broken_off(self.peer, error)
            data = b""
        if not data:
            self._server_ended()
            return
        self.unanswered = False
        if self.sink is not None:
            self.to_print += data

    def _server_ended(self) -> None:
        self.listening = False
        if self.failure is None and (self.to_send or _has_more(self.source)):
            self.failure = BrokenOffError(
                f"{self.peer} ended the connection while requests were still to be sent; look at the server's log"
            )
        self._stop_sending()

    def _send(self) -> None:
        try:
            sent = self.sock.send(self.to_send)
        except BlockingIOError:
            return
        except OSError as error:
            # What had arrived before the break can still be received: the end is _receive's to find.
            self.failure = _broken_off(self.peer, error)
            self._stop_sending()
            return
        del self.to_send[:sent]
        self.unanswered = True
        self._end_our_side_if_done()

    def _stop_sending(self) -> None:
        self.source = None
        self.to_send.clear()

    def _end_our_side_if_done(self) -> None:
        if self.source is None and not self.to_send:
            with contextlib.suppress(OSError):  # ENOTCONN after a reset, which _receive is told of
                self.sock.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        assert self.source is not None
        data = _read(self.source)
        if data is None:
            return
        self.to_send += data
        if not data:
            self.source = None
            self._end_our_side_if_done()

    def _print(self) -> None:
        assert self.sink is not None
        try:
            # No more than PIPE_BUF: so much goes into a pipe that is ready, without O_NONBLOCK, which
            # would change the terminal or pipe for every other process that holds it (pipe(7)).
            written = os.write(self.sink, self.to_print[: select.PIPE_BUF])
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._hang_up()
            return
        except OSError as error:
            raise ForkdError(f"standard output cannot be written: {error.strerror} ({errno_name(error)})") from None
        self.last_printed = bytes(self.to_print[written - 1 : written])
        del self.to_print[:written]

    def _hang_up(self) -> None:
        """Nobody reads what we print: a filter leaves without a word, as cat does before head."""
        self.listening = False
        self.failure = None
        self.to_print.clear()
        self._stop_sending()


def _broken_off(peer: str, error: OSError) -> ForkdError:
    if error.errno == errno.ETIMEDOUT:  # keepalive or retransmission gave up, see tcp(7)
        return TimedOutError(f"{peer} does not answer any more (ETIMEDOUT); is the way there still open?")
    return BrokenOffError(f"{peer} broke the connection off ({errno_name(error)}); look at the server's log")


def _has_more(descriptor: int | None) -> bool:
    if descriptor is None:
        return False
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0)) and bool(_read(descriptor))


def _read(descriptor: int) -> bytes | None:
    """What the input has now: b"" at its end, None if it was not ready after all."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return None
    except OSError as error:
        # A descriptor closed from the start, and a terminal that was hung up, have nothing to say.
        if error.errno in (errno.EBADF, errno.EIO):
            return b""
        raise ForkdError(f"standard input cannot be read: {error.strerror} ({errno_name(error)})") from None


def _descriptor(stream: Stream) -> int | None:
    return stream if stream is None or isinstance(stream, int) else stream.fileno()


def _peer_name(sock: socket.socket) -> str:
    try:
        peer = sock.getpeername()
    except OSError:  # reset already: the first receive tells
        return "the server"
    return str(from_sockaddr(sock.family, peer)) if peer else "the server"
