"""The fork servers: starting them, messages to and from them, and their deaths.

A fork server's own news becomes events for the lifecycle. What it says about a worker is passed on to the
roster. Nothing is decided here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from forkd.errors import Exit
from forkd.ipc import channel
from forkd.ipc.brief import Brief
from forkd.kernel import process
from forkd.kernel.poller import Poller
from forkd.lifecycle.events import Event, ForkServerGone, ForkServerReady
from forkd.log import log
from forkd.master.handles import ForkServerHandle

Explain = Callable[[str, str], str]
"""Turns a mistake in a service's application into one in the settings, with file and line."""
News = Callable[[ForkServerHandle, dict[str, Any], list[int]], None]
"""Takes a message about a worker, and its descriptors."""


class ForkServers:
    """The fork servers of a running master.

    `happened` gets each event, `about_worker` each message about a worker. While `quiet`, the end of a fork server
    is not logged as an error: a start that fails ends with its reason in any case, and at a stop they are
    meant to end, by whatever signal their whole process group got.
    """

    def __init__(self, poller: Poller, happened: Callable[[Event], None], explain: Explain, about_worker: News) -> None:
        self.quiet = True
        self._poller = poller
        self._happened = happened
        self._explain = explain
        self._about_worker = about_worker
        self._servers: dict[tuple[str, int], ForkServerHandle] = {}

    def leave(self) -> list[ForkServerHandle]:
        """All of them, for the program that replaces this one."""
        return list(self._servers.values())

    def resume(self, left: Iterable[ForkServerHandle]) -> None:
        """Takes over the fork servers of the program before this one."""
        self.quiet = False
        for handle in left:
            self._add(handle)

    def with_pid(self, pid: int) -> ForkServerHandle | None:
        """The fork server with this PID, if it is one."""
        return next((each for each in self._servers.values() if each.pid == pid), None)

    def start(self, brief: Brief) -> None:
        """Starts a fork server; if that fails, the event is the same as when a fork server dies."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = process.spawn("workers.fork_server", theirs.fileno(), sorted(brief.descriptors()))
        except OSError as error:
            ours.close()
            reason = f"service {brief.service}: cannot start a fork server: {error.strerror}"
            self._happened(ForkServerGone(brief.service, brief.generation, reason))
            return
        finally:
            theirs.close()
        ours.send(brief.encode())
        handle = ForkServerHandle(brief.service, brief.generation, pid, ours)
        self._add(handle)
        log.say("debug", "fork server started", handle.name())

    def end(self, service: str, generation: int, *, kill: bool) -> None:
        """Ends a fork server: by an order or, with `kill`, by SIGKILL."""
        handle = self._servers.get((service, generation))
        if handle is None:
            return
        handle.expected = True
        if kill:
            handle.kill()
        else:
            self._post(handle, {"end": True})

    def retire(self, serving: Mapping[str, int]) -> None:
        """Makes the fork servers of all other generations close their listeners; they will fork no more workers."""
        for handle in self._servers.values():
            if handle.generation != serving.get(handle.service):
                self._post(handle, {"retired": True})

    def fork(self, service: str, generation: int, slot: int, row: int) -> None:
        """Orders a worker, if the fork server is still there."""
        handle = self._servers.get((service, generation))
        if handle is not None:
            self._post(handle, {"fork": slot, "row": row})

    def reopened(self, fd: int) -> None:
        """Hands the reopened log to all fork servers."""
        for handle in self._servers.values():
            self._post(handle, {"reopened": True}, fd)

    def gone(self, handle: ForkServerHandle, status: int) -> None:
        """Handles the death of a fork server, once all that it said before has been heard."""
        self._hear(handle)
        self._hear_no_more(handle)
        handle.sock.close()
        del self._servers[handle.service, handle.generation]
        if not handle.reason:
            handle.reason = f"service {handle.service}: the fork server ended ({process.outcome(status)})"
        level = "debug" if handle.expected or self.quiet else "error"
        first, _, rest = handle.reason.partition("\n")
        log.say(level, first, handle.name(), block=rest)
        self._happened(ForkServerGone(handle.service, handle.generation, handle.reason, handle.status))

    def close(self) -> None:
        """Closes the sockets; fork servers that are still there see the end of theirs."""
        for handle in self._servers.values():
            handle.sock.close()

    def _add(self, handle: ForkServerHandle) -> None:
        self._servers[handle.service, handle.generation] = handle
        handle.sock.setblocking(False)
        if handle.heard:
            self._watch(handle, writing=bool(handle.outbox))

    def _watch(self, handle: ForkServerHandle, *, writing: bool) -> None:
        self._poller.watch(handle.sock.fileno(), lambda: self._hear(handle), writing=writing)

    def _post(self, handle: ForkServerHandle, message: dict[str, object], fd: int | None = None) -> None:
        """Sends a message, later if the socket is full: the lifecycle would wait for ever for a lost order."""
        if handle.heard:
            sent = handle.post(message, fd)
            self._watch(handle, writing=not sent)

    def _hear(self, handle: ForkServerHandle) -> None:
        """Reads what a fork server has said. That it has gone is known from its death, not from its silence."""
        if handle.outbox:
            self._watch(handle, writing=not handle.flush())
        while handle.heard:
            try:
                received = channel.receive(handle.sock, 3)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it ended with an order unread (unix(7)); what it said before that comes next
            except (OSError, ValueError):  # an application could write anything here while it is imported
                received = None
            if received is None:
                self._hear_no_more(handle)
            else:
                self._heard(handle, *received)

    def _hear_no_more(self, handle: ForkServerHandle) -> None:
        if handle.heard:
            handle.heard = False
            self._poller.unwatch(handle.sock.fileno())
            handle.discard()

    def _heard(self, handle: ForkServerHandle, message: dict[str, Any], fds: list[int]) -> None:
        service = handle.service
        match message:
            case {"ready": _}:
                left_behind = message.get("left_behind")
                for each in left_behind if isinstance(left_behind, list) else []:
                    log.say("warning", str(each), handle.name())
                self._happened(ForkServerReady(service, handle.generation))
            case {"failed": str(reason), "status": int(status)}:
                wrong = status == Exit.CONFIG
                handle.reason = self._explain(service, reason) if wrong else f"service {service}: {reason}"
                handle.status = status
            case _:
                self._about_worker(handle, message, fds)
                return
        for fd in fds:
            os.close(fd)
