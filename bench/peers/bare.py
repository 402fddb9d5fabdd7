"""PORT WORKERS sync|event STEP: a bare server, to show what each part of forkd's work costs.

STEP is one of `ANSWERS`. It handles only what happens in the trials: it has no limits, no pauses, no graceful leaving,
and no deadlines except those that the kernel keeps for a blocking socket.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import socket
import sys
from collections.abc import Callable
from time import monotonic_ns
from typing import Final

from bench.peers.forkd_lines import lines
from forkd import Lines
from forkd.ipc.meter import COMMON, COMMON_NS, COMMON_SHIFT, DONE, DONE_AT, IN_HAND, IN_HAND_AT, bucket, peer_record
from forkd.ipc.scoreboard import HISTOGRAM, REQUESTS, ROW_BYTES, SLOWEST
from forkd.kernel.sockopts import timeval
from forkd.serving.connection import RECEIVE_BYTES, ROOMS

_ROW: Final = memoryview(mmap.mmap(-1, ROW_BYTES)).cast("Q")

Answer = Callable[[bytes], bytes]


def nothing() -> Answer:
    """Returns the bytes as they came."""
    return lambda data: data


def framing() -> Answer:
    """Cuts lines with forkd's framing, and passes each to forkd's handler."""
    cut = Lines()
    feed, encode, handler = cut.feed, cut.encode, lines.handler

    def answer(data: bytes) -> bytes:
        requests = feed(data)
        if len(requests) == 1:
            return encode(handler(requests[0]))
        return b"".join([encode(handler(request)) for request in requests])

    return answer


def figures() -> Answer:
    """Does the same, and records all that a forkd worker records: peer, request, its start and its duration."""
    cut = Lines()
    feed, encode, handler = cut.feed, cut.encode, lines.handler
    row, whom, show, show_done = _ROW, peer_record(b"127.0.0.1:12345"), IN_HAND.pack_into, DONE.pack_into

    def answer(data: bytes) -> bytes:
        replies = []
        count = row[REQUESTS]
        for request in feed(data):
            began = monotonic_ns()
            show(row, IN_HAND_AT, whom, began, count, len(request) + 1, request)
            count += 1
            replies.append(encode(handler(request)))
            taken = monotonic_ns() - began
            row[COMMON[taken >> COMMON_SHIFT] if taken < COMMON_NS else HISTOGRAM + bucket(taken)] += 1
            if taken > row[SLOWEST]:
                row[SLOWEST] = taken
            show_done(row, DONE_AT, 0, count)
        return replies[0] if len(replies) == 1 else b"".join(replies)

    return answer


ANSWERS: Final = {each.__name__: each for each in (nothing, framing, figures)}


def serve_one_by_one(listener: socket.socket, make: Callable[[], Answer]) -> None:
    while True:
        sock, _ = listener.accept()
        for option, seconds in ((socket.SO_RCVTIMEO, 60), (socket.SO_SNDTIMEO, 30)):
            sock.setsockopt(socket.SOL_SOCKET, option, timeval(seconds))
        receive, send, answer = sock.recv, sock.sendall, make()
        room = ROOMS[0]
        while data := receive(room):
            if len(data) == room:
                room = RECEIVE_BYTES
            if reply := answer(data):
                send(reply)
        sock.close()


def serve_all(listener: socket.socket, make: Callable[[], Answer]) -> None:
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    served: dict[int, tuple[socket.socket, Answer]] = {}
    while True:
        for fd, _ in epoll.poll(None, 64):
            if fd not in served:
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue  # another worker was faster
                sock.setblocking(False)
                served[sock.fileno()] = sock, make()
                epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            sock, answer = served[fd]
            if data := sock.recv(RECEIVE_BYTES):
                if reply := answer(data):
                    sock.send(reply)
            else:
                del served[fd]
                sock.close()


def main() -> None:
    port, workers, loop, step = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    gc.collect()
    gc.freeze()
    for _ in range(workers):
        if not os.fork():
            (serve_one_by_one if loop == "sync" else serve_all)(listener, ANSWERS[step])
    for _ in range(workers):
        os.wait()


if __name__ == "__main__":
    main()
