"""The caller's end of the control socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

from forkd.errors import BrokenOffError, ControlError, Exit, TimedOutError, UnreachableError
from forkd.kernel.sockopts import peer_credentials

_CONNECT_SECONDS: Final = 5.0


def ask(path: Path, command: dict[str, Any], timeout: float | None = None) -> Any:
    """Sends one command to the forkd whose control socket is at `path`; returns the result.

    Raises ControlError with the answer to a command that failed, UnreachableError if no forkd is there,
    BrokenOffError if it ends before it answers, TimedOutError after `timeout` seconds.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(str(path))
            sock.sendall(json.dumps(command).encode() + b"\n")
            with sock.makefile("rb") as lines:
                line = lines.readline()
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise UnreachableError(f"no forkd is running with the control socket {path}") from None
    except PermissionError:
        raise _not_ours(path) from None
    except TimeoutError:
        raise TimedOutError(f"no answer from the forkd at {path} within {timeout:g} s") from None
    except OSError as error:
        raise BrokenOffError(f"the forkd at {path} broke the connection: {error.strerror or error}") from None
    if not line.endswith(b"\n"):
        raise BrokenOffError(f"the forkd at {path} ended before it answered")
    try:
        answer = json.loads(line)
        if answer["ok"]:
            return answer["result"]
        refused = ControlError(answer["error"])
        refused.exit_status = Exit(answer["status"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ControlError(f"the program that answers at {path} is not forkd") from None
    raise refused


def listening_process(path: Path) -> int | None:
    """Returns the PID of the process that listens at `path`; None if none does.

    0 if it is in a PID namespace that we cannot see. It is the process that called listen(2), as the kernel recorded
    it (unix(7), SO_PEERCRED). Raises UnreachableError if the socket is another user's.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_CONNECT_SECONDS)
            sock.connect(str(path))
            pid, _ = peer_credentials(sock)
            return pid
    except PermissionError:
        raise _not_ours(path) from None
    except OSError:
        return None


def _not_ours(path: Path) -> UnreachableError:
    return UnreachableError(f"{path} belongs to another user: try as that user or as root")
