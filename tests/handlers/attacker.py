"""An application that tries to reach what is not its own: at its import, and again in its handler.

The request `import` returns the results of the attempts made at the import; `now` tries again and returns those
results. Either is a JSON object: each attempt, with "refused" or a description of what it got. An attempt that succeeds
does no harm: the signals are number 0, which only checks permission, and what was written is removed.
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
MASTER = os.getppid()  # this module is imported in a fork server, a child of the master
_AMBIENT, _RAISE, _BIND = 47, 2, 10  # prctl(2), capabilities(7)


def attempts() -> dict[str, str]:
    """Makes all attempts; returns the result of each by name."""
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
    except (PermissionError, ProcessLookupError):  # the latter where /proc hides other users' processes (hidepid)
        return "refused"
    except Exception as error:  # such as a read-only file system
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
    """Asks for the status at every socket that may be the master's control socket."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        path = line.split()[-1]
        if path.endswith("control.sock") or (path.startswith("/run/forkd/") and path.endswith(".sock")):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(path)
                sock.sendall(b'{"command": "status"}\n')
                if answer := sock.recv(100):
                    return f"{path} answered {answer!r}"
    raise PermissionError("no control socket answers")


def _bind_low() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 1:
        raise PermissionError("no port is reserved for root on this machine")
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
