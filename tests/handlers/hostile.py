"""Applications that attack the server they run in."""

import os
import random
import socket
import stat
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns

from ledger import answer, ledger

import forkd


@forkd.service(forkd.Lines())
def evil(request: bytes) -> bytes:
    """`cut` and `scribble` damage every memfd in reach, `shut` every listener; anything else is echoed."""
    if request == b"shut":
        _shut_listeners()
    if request not in (b"cut", b"scribble"):
        return request
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "memfd" in str(link.readlink()):
                if request == b"cut":
                    os.ftruncate(int(link.name), 0)
                else:
                    os.pwrite(int(link.name), b"\xff" * 65536, 0)
    return b"done"


@forkd.service(forkd.Lines())
def raving(request: bytes, connection: forkd.Connection) -> bytes:
    """`rave SEED` overwrites everything in reach; anything else is answered as the ledger does."""
    word, _, seed = request.partition(b" ")
    if word != b"rave":
        return answer(request, connection)
    chance = random.Random(int(seed))
    log = Path("/proc/self/fd/2").readlink()
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if int(link.name) > 2 and link.readlink() != log:
                _write_over(int(link.name), str(link.readlink()), chance)
    return b"done"


raving.lifespan(ledger)


def _shut_listeners() -> None:
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(link.name))) as sock:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                sock.shutdown(socket.SHUT_RDWR)


def _write_over(fd: int, link: str, chance: random.Random) -> None:
    """Writes to shared memory, counters, pipes and the sockets to forkd; spares clients and the application's files."""
    mode = os.fstat(fd).st_mode
    if "memfd" in link:
        block = _words(chance) * 256  # a MiB
        for at in range(0, os.fstat(fd).st_size, len(block)):
            os.pwrite(fd, block, at)
    elif stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.type == socket.SOCK_SEQPACKET:
                sock.send(chance.randbytes(chance.randrange(1, 4096)), socket.MSG_DONTWAIT)
                socket.send_fds(sock, [b'{"gone": 0, "pid": 1, "status": 9}'], [1], socket.MSG_DONTWAIT)
    elif stat.S_ISFIFO(mode) or "eventfd" in link:
        os.set_blocking(fd, False)
        os.write(fd, chance.randbytes(8))


def _words(chance: random.Random) -> bytes:
    """Returns a page of numbers: random, or plausible ones."""
    if chance.random() < 0.5:
        return chance.randbytes(4096)
    likely = [0, 1, 2, 3, 4, 5, 8191, 1 << 61, (1 << 64) - 1, monotonic_ns(), monotonic_ns() - 10**12]
    return b"".join(number.to_bytes(8, "little") for number in chance.choices(likely, k=512))
