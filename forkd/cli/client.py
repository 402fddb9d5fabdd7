"""The client behind `forkd call`: sends requests over a connected socket and prints what comes back.

One loop over poll(2) keeps both directions moving. It knows nothing about framings: bytes go out and come in
unchanged. The socket comes from `dial`. `main` turns the errors raised here into exit statuses.
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
"""A file with a descriptor, a descriptor, or None if it was closed before forkd started."""

# How much to read at once, and how much one direction may buffer before reading for it pauses.
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
    """Sends each of `requests` followed by `end`, or copies `input` if there are none; prints replies to `output`.

    At the end of input it ends our side of the connection (shutdown(2)), then prints what arrives until the server
    ends its own. Bytes are copied unchanged: a last line without a newline stays without one. Neither direction
    waits for the other, so it works as a filter in a pipe, and on a terminal each line is sent when it is typed. It
    uses the descriptors directly, past any buffer, and leaves `sock` non-blocking and open. A closed `output` ends
    the call quietly.

    `timeout` limits the seconds of silence while it is the server's turn: something is unsent or unanswered, or our
    side has ended. It does not run while the user is expected to type.

    Raises TimedOutError after such a silence. Raises BrokenOffError for a reset (tcp(7): ECONNRESET, EPIPE), and if
    the server ends its side while requests are still to be sent, already read or readable at that moment; a server
    that ends after the last request so far is fine. Raises ForkdError if input cannot be read or output written.
    KeyboardInterrupt passes through.

    `name` is what errors call the server, instead of its address.
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
    """Both directions of one call, each with its buffer for a slow reader."""

    sock: socket.socket
    source: int | None  # None once there is nothing left to read
    sink: int | None
    timeout: float | None
    peer: str
    to_send: bytearray = field(default_factory=bytearray)
    to_print: bytearray = field(default_factory=bytearray)
    listening: bool = True  # until the server ends its side
    unanswered: bool = False  # whether the last bytes were ours
    last_printed: bytes = b"\n"
    failure: ForkdError | None = None

    def run(self) -> None:
        self._end_our_side_if_done()
        while self.listening or self.to_print:
            ready = self._wait()
            on_socket = ready.get(self.sock.fileno(), 0)
            # Receive first: once the server has ended its side, nothing more may be sent.
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
        """Leaves a terminal's cursor where a prompt belongs."""
        if self.last_printed == b"\n" or self.sink is None or not os.isatty(self.sink):
            return
        with contextlib.suppress(OSError):
            os.write(self.sink, b"\n")

    def _wait(self) -> dict[int, int]:
        # Not epoll: epoll_ctl(2) refuses regular files with EPERM, while poll(2) reports them as always ready.
        poller = select.poll()
        for descriptor, events in self._wanted().items():
            poller.register(descriptor, events)
        ready = poller.poll(self._patience())
        if not ready:
            raise self.failure or TimedOutError(
                f"{self.peer} has been silent for {self.timeout:g} s; forkd stacks shows what holds the server up"
            )
        return dict(ready)

    def _wanted(self) -> dict[int, int]:
        wanted: dict[int, int] = {}

        def want(descriptor: int | None, event: int, when: bool) -> None:
            # The same descriptor may be wanted twice, and poll keeps only the last registration.
            if when and descriptor is not None:
                wanted[descriptor] = wanted.get(descriptor, 0) | event

        want(self.sock.fileno(), select.POLLIN, self.listening and len(self.to_print) < _CHUNK)
        want(self.sock.fileno(), select.POLLOUT, bool(self.to_send))
        want(self.source, select.POLLIN, len(self.to_send) < _CHUNK)
        want(self.sink, select.POLLOUT, bool(self.to_print))
        return wanted

    def _patience(self) -> float | None:
        """Returns how many milliseconds the server may stay silent; None while it owes nothing."""
        servers_turn = self.source is None or self.to_send or self.unanswered
        if self.timeout is None or self.to_print or not servers_turn:
            return None
        return min(self.timeout * 1000, 2**31 - 1)  # poll(2) takes an int

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
                f"{self.peer} ended the connection before all requests were sent; look at the server's log"
            )
        self._stop_sending()

    def _send(self) -> None:
        try:
            sent = self.sock.send(self.to_send)
        except BlockingIOError:
            return
        except OSError as error:
            # What arrived before the break can still be received; _receive will find the end.
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
            with contextlib.suppress(OSError):  # ENOTCONN after a reset, which _receive will report
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
            # A pipe that is ready takes PIPE_BUF without blocking. O_NONBLOCK would instead change the terminal
            # or pipe for every other process that holds it (pipe(7)).
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
        """Stops without a message because the reader of our output is gone, as cat does before head."""
        self.listening = False
        self.failure = None
        self.to_print.clear()
        self._stop_sending()


def _broken_off(peer: str, error: OSError) -> ForkdError:
    if error.errno == errno.ETIMEDOUT:  # keepalive or retransmission gave up, see tcp(7)
        return TimedOutError(f"{peer} no longer answers (ETIMEDOUT); is the network path still up?")
    return BrokenOffError(f"{peer} broke off the connection ({errno_name(error)}); look at the server's log")


def _has_more(descriptor: int | None) -> bool:
    if descriptor is None:
        return False
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0)) and bool(_read(descriptor))


def _read(descriptor: int) -> bytes | None:
    """Reads what the input has now. Returns b"" at its end, None if it was not ready after all."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return None
    except OSError as error:
        # A descriptor closed from the start and a terminal that hung up both count as ended.
        if error.errno in (errno.EBADF, errno.EIO):
            return b""
        raise ForkdError(f"standard input cannot be read: {error.strerror} ({errno_name(error)})") from None


def _descriptor(stream: Stream) -> int | None:
    return stream if stream is None or isinstance(stream, int) else stream.fileno()


def _peer_name(sock: socket.socket) -> str:
    try:
        peer = sock.getpeername()
    except OSError:  # already reset, which the first receive will report
        return "the server"
    return str(from_sockaddr(sock.family, peer)) if peer else "the server"
