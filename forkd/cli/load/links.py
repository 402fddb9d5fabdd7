"""Makes the connections of one process of a load test, watches them for silence, and replaces those it loses.

Each loss is counted by class, with all requests that were in flight. New connections go to `loop` in `opened`, so
that only one place sends. Times are nanoseconds.
"""

from __future__ import annotations

import errno
import select
from typing import Final

from forkd.cli.load.link import Link, State, Target
from forkd.cli.load.plan import SECOND, UNLIMITED, LoadPlan, Share
from forkd.cli.load.replies import Judge
from forkd.cli.load.tally import Tally, bucket

_CLASSES: Final = {
    errno.ECONNREFUSED: "refused",
    errno.ENOENT: "refused",  # the path of a unix socket is gone
    errno.ETIMEDOUT: "timed out",
    errno.EAGAIN: "timed out",  # the accept queue of a unix socket stayed full
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
}


class Links:
    """All links of a share. `in_flight` is the sum over them; `opened` are the new ones, which need requests."""

    def __init__(self, plan: LoadPlan, share: Share, target: Target, tally: Tally, epoll: select.epoll) -> None:
        self.in_flight = 0
        self.opened: list[Link] = []
        self.by_fd: dict[int, Link] = {}
        self.judge = Judge(plan)
        self.connecting = 0
        self.ending = False  # make no more connections
        self.last_hope = 0  # when a connection last came up
        self.all = [Link(turn % len(plan.bodies)) for turn in range(share.connections)]
        self._target = target
        self._tally = tally
        self._epoll = epoll
        self._most = plan.per_connection or UNLIMITED
        self._timeout = int(plan.timeout * SECOND)
        self._connect_timeout = int(plan.connect_timeout * SECOND)

    def connect(self, link: Link, now: int) -> None:
        """Begins a connection for a link whose last one is closed."""
        link.attempt.begin(now)
        try:
            done = link.connect(self._target)
        except OSError as error:
            self._failed(link, error, now)
            return
        if done:
            self._came_up(link, now, new=True)
        else:
            self.connecting += 1
            self.by_fd[link.fd] = link
            link.watch(self._epoll, new=True)

    def finish_connecting(self, link: Link, now: int) -> None:
        """Handles an attempt that epoll reports as over, whether it worked or failed."""
        self.connecting -= 1
        try:
            link.finish_connecting(self._target)
        except OSError as error:
            self._failed(link, error, now)
        else:
            self._came_up(link, now, new=False)

    def lose(self, link: Link, failure: str, now: int) -> None:
        """Ends a connection that failed or that the server ended; between requests, the latter is not a failure."""
        lost = len(link.starts)
        self.in_flight -= lost
        if failure == "wrong":
            self.judge.wrong += lost or 1
        elif lost or failure != "cut short":
            self._tally[failure] += lost or 1
        self.renew(link, now)

    def lose_by(self, link: Link, error: OSError, now: int) -> None:
        self.lose(link, _CLASSES.get(error.errno or 0, "reset"), now)

    def finish(self, link: Link, to_send: int, now: int) -> None:
        """Replaces or retires a connection that has nothing left to do, with `to_send` requests still unsent.

        It never stays open for nothing: it could occupy a worker that other clients wait for.
        """
        if to_send > self.connecting + len(self.opened):
            self.renew(link, now)
        else:
            self._retire(link)

    def finish_all(self, now: int) -> None:
        """Stops making connections, and retires those with nothing in flight, because there is nothing left to send."""
        self.ending = True
        for link in self.all:
            if not link.starts:
                self._retire(link)

    def renew(self, link: Link, now: int) -> None:
        """Closes a connection and makes the next: at once if this one has brought a reply, otherwise after a pause."""
        self._close(link)
        if self.ending:
            self._retire(link)
        elif link.served:
            link.attempt.forget_pause()
            self.connect(link, now)
        else:
            link.attempt.back_off(now)

    def search(self, now: int) -> None:
        """Ends connections that have been silent too long, and starts those whose pause is over."""
        for link in self.all:
            if link.state is State.OPEN:
                if link.starts and now - link.quiet_since > self._timeout:
                    self.lose(link, "timed out", now)
            elif link.state is State.RESTING:
                if now >= link.attempt.next_at and not self.ending:
                    self.connect(link, now)
            elif now - link.attempt.since > self._connect_timeout:
                self.connecting -= 1
                self._failed(link, OSError(errno.ETIMEDOUT, ""), now)

    def is_any_open(self) -> bool:
        return any(link.state is State.OPEN for link in self.all)

    def close_all(self) -> None:
        for link in self.all:
            self._close(link)

    def _came_up(self, link: Link, now: int, *, new: bool) -> None:
        took = now - link.attempt.since
        tally = self._tally
        tally["connected"] += 1
        tally.connects[bucket(took)] += 1
        tally["longest_connect"] = max(took, tally["longest_connect"])
        self.last_hope = now
        self.by_fd[link.fd] = link
        link.opened(self.judge.counter(link.turn), self._most)
        link.watch(self._epoll, new=new)
        self.opened.append(link)

    def _failed(self, link: Link, error: OSError, now: int) -> None:
        self._close(link)
        if error.errno == errno.EAGAIN and now - link.attempt.since < self._connect_timeout:
            # The accept queue of a unix socket is full. No event reports room: unix(7) makes only blocking calls wait.
            link.attempt.queue(now)
            return
        self._tally["errno"] = error.errno or 0
        self._tally[_CLASSES.get(error.errno or 0, "unreachable")] += 1
        link.attempt.back_off(now)

    def _retire(self, link: Link) -> None:
        self.connecting -= link.state is State.CONNECTING
        self._close(link)
        link.attempt.give_up()

    def _close(self, link: Link) -> None:
        self.by_fd.pop(link.fd, None)
        link.close()
