"""An application that tries to get at what is not its own: at its import, and again in its handler.

The request `import` is answered with what became of each attempt at the import, `now` with the same of attempts
made then: a JSON object of attempts, each with "refused" or, in words, with what it got. Nothing is harmed where
one succeeds: the signals are number 0, which only asks for permission, and what was written is removed.
"""

import ctypes
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import forkd

HERE = Path(__file__).resolve().parent
MASTER = os.getppid()  # a fork server is its child, and has imported this
_AMBIENT, _RAISE, _BIND = 47, 2, 10  # prctl(2), capabilities(7)


def attempts() -> dict[str, str]:
    """Each attempt by its name, with how it ended."""
    return {
        "read /etc/shadow": _try(lambda: len(Path("/etc/shadow").read_bytes())),
        "setuid": _try(lambda: os.setuid(0)),
        "setresuid": _try(lambda: os.setresuid(0, 0, 0)),
        "setgid": _try(lambda: os.setgid(0)),
        "setgroups": _try(lambda: os.setgroups([0])),
        "write in /etc": _try(lambda: _write(Path("/etc"))),
        "write above its folder": _try(lambda: _write(HERE.parent)),
        "write beside forkd": _try(lambda: _write(Path(forkd.__file__).parent)),
        "signal the master": _try(lambda: os.kill(MASTER, 0)),
        "signal the master by pidfd": _try(lambda: _signal_by_pidfd(MASTER)),
        "signal the machine's init": _try(lambda: os.kill(1, 0)),
        "write the master's memory": _try(lambda: Path(f"/proc/{MASTER}/mem").open("r+b").close()),
        "bind a port of root's": _try(_bind_low),
        "ask the master": _try(_ask_master),
        "chroot": _try(lambda: os.chroot("/")),
        "raise a capability": _try(lambda: _prctl(_AMBIENT, _RAISE, _BIND)),
    }


def _try(attempt: Callable[[], object]) -> str:
    try:
        got = attempt()
    except (PermissionError, ProcessLookupError):  # the latter where /proc shows only one's own (hidepid)
        return "refused"
    except Exception as error:  # a folder that is read-only, say
        return f"refused: {error!r}" if isinstance(error, OSError) else f"failed: {error!r}"
    return f"done: {got!r}"


def _write(folder: Path) -> None:
    path = folder / f"forkd-attacker-{os.getpid()}"
    path.write_text("")
    path.unlink()


def _signal_by_pidfd(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


def _ask_master() -> str:
    """Asks for the status at the master's control socket, which is the socket that it listens at besides."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        path = line.split()[-1]
        if path.endswith("control.sock") or (path.startswith("/run/forkd/") and path.endswith(".sock")):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(path)
                sock.sendall(b'{"command": "status"}\n')
                if answer := sock.recv(100):
                    return f"{path} has answered {answer!r}"
    raise PermissionError("nobody answers")


def _bind_low() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 1:
        raise PermissionError("no port is root's on this machine")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", min(first - 1, 1000)))


def _prctl(option: int, *arguments: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, *map(ctypes.c_ulong, (*arguments, 0, 0))) < 0:
        raise OSError(ctypes.get_errno(), "prctl")


AT_IMPORT = attempts()


@forkd.service(forkd.Lines())
def attack(request: bytes) -> bytes:
    if request not in (b"import", b"now"):
        return b"import, or now?"
    return json.dumps(AT_IMPORT if request == b"import" else attempts()).encode()
