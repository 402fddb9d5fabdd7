"""The PID file and its lock: one of many contenders gets it, and no number in a file is trusted."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from forkd.cli import paths
from forkd.errors import ForkdError, RunsAlreadyError
from forkd.kernel.owned_file import OwnedFile
from forkd.kernel.pidfile import Pidfile, claim, holder


class Other:
    """Another process, which does one thing, reports the result, and waits until it is released or killed."""

    def __init__(self, does: Callable[[], object]) -> None:
        said, say = os.pipe()
        wait, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            with suppress(BaseException):
                os.close(said)
                os.close(self._go)
                try:
                    text = str(does())
                except RunsAlreadyError as error:
                    text = f"runs: {error.pid}"
                os.write(say, text.encode())
                os.close(say)
                os.read(wait, 1)
                status = 0
            os._exit(status)
        os.close(say)
        os.close(wait)
        self._said = said

    def said(self) -> str:
        """Waits for the report and returns it."""
        text = os.read(self._said, 4096).decode()
        os.close(self._said)
        return text

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.end()

    def let_go(self) -> None:
        os.close(self._go)

    def end(self) -> None:
        self.let_go()
        os.waitpid(self.pid, 0)


@contextmanager
def other(does: Callable[[], object]) -> Iterator[Other]:
    """Runs another process for the length of a block."""
    found = Other(does)
    try:
        yield found
    finally:
        with suppress(OSError):
            found.end()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "forkd.pid"


def claiming(path: Path) -> Callable[[], str]:
    """Returns a function that claims the PID file and keeps it while its process lives."""
    kept: list[Pidfile] = []

    def does() -> str:
        kept.append(claim(path))
        return "claimed"

    return does


def test_a_living_process_has_it(path: Path) -> None:
    umask = os.umask(0o077)
    try:
        with other(claiming(path)) as first:
            assert first.said() == "claimed"
            assert path.read_text() == f"{first.pid}\n"
            assert path.stat().st_mode & 0o777 == 0o644  # other users can read it, whoever started us
            assert [each.name for each in path.parent.iterdir()] == [path.name]
            assert holder(path) == first.pid
            for _ in range(2):  # looking does not change the holder
                with pytest.raises(
                    RunsAlreadyError, match=f"^already running as process {first.pid}: .*{path}"
                ) as refused:
                    claim(path)
                assert refused.value.pid == first.pid
            assert holder(path) == first.pid
            assert path.read_text() == f"{first.pid}\n"
    finally:
        os.umask(umask)


def test_nobody_has_none(path: Path) -> None:
    assert holder(path) is None
    assert holder(path / "below") is None


def test_it_goes_with_its_process(path: Path) -> None:
    with other(lambda: claim(path).remove()) as first:
        first.said()
        assert not path.exists()


def test_that_of_a_dead_process_is_replaced(path: Path) -> None:
    with other(claiming(path)) as first:
        first.said()
        first.kill()
        assert path.read_text() == f"{first.pid}\n"
        assert holder(path) is None
    with other(claiming(path)) as second:
        assert second.said() == "claimed"
        assert path.read_text() == f"{second.pid}\n"
        assert holder(path) == second.pid


@pytest.mark.parametrize("text", ["", "\n", "\0\0\0", "1\n", f"{os.getppid()}", "99999999\n"])
def test_a_number_alone_is_nobodys(path: Path, text: str) -> None:
    path.write_text(text)
    assert holder(path) is None
    with other(claiming(path)) as new:
        assert new.said() == "claimed"
        assert path.read_text() == f"{new.pid}\n"


@pytest.mark.parametrize("text", ["precious\n", "12 34\n", "4711\nmore"])
def test_what_is_no_pid_file_stays(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ForkdError, match="the file there is not a PID file; remove it or choose another path"):
        claim(path)
    assert path.read_text() == text


@pytest.mark.parametrize("there", [True, False])
def test_no_link_is_followed(path: Path, tmp_path: Path, there: bool) -> None:
    victim = tmp_path / "victim"
    if there:
        victim.write_text("4711\n")
    path.symlink_to(victim)
    with pytest.raises(
        ForkdError, match=f"cannot write the PID file {path}: it is a symbolic link, which forkd does not follow"
    ):
        claim(path)
    assert holder(path) is None
    assert path.is_symlink()
    assert (victim.read_text() if victim.exists() else None) == ("4711\n" if there else None)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([path.name, *(["victim"] if there else [])])


def test_a_hard_link_is_replaced_and_not_written_to(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("4711\n")
    os.link(victim, path)
    claimed = claim(path)
    assert victim.read_text() == "4711\n"
    assert path.read_text() == f"{os.getpid()}\n"
    claimed.remove()
    assert victim.read_text() == "4711\n"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    with pytest.raises(ForkdError, match=f"cannot write the PID file {path}: "):
        claim(path)
    assert holder(path) is None


def test_a_folder_that_is_not_there(path: Path) -> None:
    with pytest.raises(ForkdError, match=f"cannot write the PID file {path}/x: "):
        claim(path / "x")


def test_a_lock_of_somebody_who_may_only_read_is_no_server(path: Path) -> None:
    path.write_text("4711\n")

    def locks() -> None:
        fcntl.lockf(os.open(path, os.O_RDONLY), fcntl.LOCK_SH)

    with other(locks) as reader:
        reader.said()
        assert holder(path) is None
        with pytest.raises(ForkdError, match=f"process {reader.pid} has locked it"):
            claim(path)


@pytest.mark.slow
@pytest.mark.parametrize("text", [None, "", "4711\n"])
def test_of_twenty_at_once_one_has_it(path: Path, text: str | None) -> None:
    for _ in range(5):
        if text is not None:
            path.write_text(text)
        go, start = os.pipe()

        def waits(go: int = go, start: int = start) -> str:
            os.close(start)
            os.read(go, 1)
            return claiming(path)()

        others = [Other(waits) for _ in range(20)]
        os.close(go)
        os.close(start)
        said = {each.pid: each.said() for each in others}
        winners = [pid for pid, word in said.items() if word == "claimed"]
        assert len(winners) == 1, said
        assert set(said.values()) == {"claimed", f"runs: {winners[0]}"}
        assert holder(path) == winners[0]
        assert [each.name for each in path.parent.iterdir()] == [path.name]
        for each in others:
            each.let_go()  # later ones also hold the earlier ones' pipes
        for each in others:
            os.waitpid(each.pid, 0)
        path.unlink()


def test_it_is_kept_by_the_program_that_takes_the_place_of_another(path: Path) -> None:
    def becomes() -> None:
        claimed = claim(path)
        os.set_inheritable(claimed.fd, True)
        os.execv(sys.executable, [sys.executable, "-c", "import os, signal; os.write(1, b'here'); signal.pause()"])

    said, say = os.pipe()

    def does() -> None:
        os.dup2(say, 1)
        becomes()

    successor = Other(does)
    os.close(say)
    assert os.read(said, 4) == b"here"
    os.close(said)
    assert holder(path) == successor.pid
    successor.kill()
    assert holder(path) is None


def test_what_was_removed_is_made_again_with_its_lock(path: Path) -> None:
    def does() -> None:
        mine = claim(path)
        path.unlink()
        assert mine.remake() == mine.leaving == OwnedFile.at(str(path))
        kept.append(mine)

    kept: list[Pidfile] = []
    with other(does) as first:
        assert first.said() == "None"
        assert holder(path) == first.pid
        assert path.read_text() == f"{first.pid}\n"


def test_it_is_not_made_again_in_place_of_anothers(path: Path) -> None:
    mine = claim(path)
    path.unlink()
    path.write_text("4711\n")
    with pytest.raises(FileExistsError):
        mine.remake()
    mine.remove()
    assert path.read_text() == "4711\n"


def test_it_stands_beside_the_control_socket_where_none_is_named() -> None:
    assert paths.pidfile_beside(Path("/run/forkd/shop-1a2b.sock")) == Path("/run/forkd/shop-1a2b.pid")
    assert paths.pidfile_beside(Path("/run/forkd.pid")) == Path("/run/forkd.pid.pid")


def test_a_process_that_cannot_be_seen_is_told_of_all_the_same() -> None:
    assert str(RunsAlreadyError(0, "why")) == "already running as a process that cannot be seen from here: why"
