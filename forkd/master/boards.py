"""The scoreboards: one for each service, with the eventfd(2) by which its workers wake the master."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

from forkd.ipc.scoreboard import BOOTING, HIGHEST, PHASE, SPARE, STATE, STOPPING, Board
from forkd.kernel.poller import Poller
from forkd.lifecycle.events import Plan


class Boards:
    """The scoreboards of a running master. `woken` is set when a worker has asked the master to look."""

    def __init__(self, poller: Poller) -> None:
        self.woken = False
        self._poller = poller
        self._boards: dict[str, tuple[Board, int]] = {}

    def leave(self) -> dict[str, tuple[int, int]]:
        """The descriptors of each service's scoreboard and eventfd, for the program that replaces this one."""
        return {service: (board.fd, wake) for service, (board, wake) in self._boards.items()}

    def resume(self, left: Mapping[str, tuple[int, int]]) -> None:
        """Takes over what the program before this one left."""
        for service, (fd, wake) in left.items():
            self._add(service, Board(fd), wake)

    def open(self, service: str) -> tuple[Board, int]:
        """Returns the scoreboard of a service and its eventfd, which are made on the first call."""
        if service not in self._boards:
            self._add(service, Board.create(service), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return self._boards[service]

    def board(self, service: str) -> Board:
        """Returns the scoreboard of a service."""
        return self.open(service)[0]

    def services(self) -> list[str]:
        """The services that have a scoreboard."""
        return list(self._boards)

    def prepare(self, service: str, number: int) -> None:
        """Readies a row for a worker that is about to be forked; the header may have been overwritten, too."""
        board = self.board(service)
        board.heal(0)
        board.heal(number)
        board.header[HIGHEST] = max(board.header[HIGHEST], number)
        board.row(number)[STATE] = BOOTING

    def keep_spare(self, service: str, plan: Plan) -> None:
        """Makes workers wake the master when fewer than the spare ones are idle; never in a pool of a fixed size."""
        self.board(service).header[SPARE] = max(1, plan.spare) if plan.minimum < plan.maximum else 0

    def stopping(self) -> None:
        """Makes leaving workers empty the accept queues."""
        for board, _ in self._boards.values():
            board.header[PHASE] = STOPPING

    def forget(self, service: str) -> None:
        """Closes the scoreboard of a service whose last process has gone."""
        board, wake = self._boards.pop(service)
        self._poller.unwatch(wake)
        os.close(wake)
        board.close()

    def _add(self, service: str, board: Board, wake: int) -> None:
        self._boards[service] = (board, wake)
        self._poller.watch(wake, lambda: self._wake(wake))

    def _wake(self, wake: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(wake)
        self.woken = True
