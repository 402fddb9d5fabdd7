"""Runs the commands that a page shows, as a reader would, and compares their output with what the page shows.

A page has two kinds of steps. A code block with a title is a file to write. A block marked `console` holds commands,
each after "$ ", with the output below it. There `...` stands for what varies: alone on a line for any number of lines,
within a line for any text. Blank lines and the width of columns do not count. A command must succeed, unless
`echo $?` follows and shows its exit status. `forkd run` serves on until the next `forkd run`, or the end of the page.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import NamedTuple

from tests.server import LIMIT

MACHINE = "<!-- tests/machine runs what follows -->"
"""In a page, everything after this line needs a machine with systemd."""

Wrap = Callable[[list[str]], list[str]]


class File(NamedTuple):
    """A file that the reader writes."""

    path: str
    text: str
    line: int


class Command(NamedTuple):
    """A command that the reader types; `output` is what the page shows, empty if it shows nothing."""

    text: str
    output: tuple[str, ...]
    line: int

    @property
    def serves(self) -> bool:
        return self.text.startswith("forkd run ")


Step = File | Command


def steps(page: str) -> list[Step]:
    """Returns the files and the commands of a page, in order."""
    return list(_steps(page))


def for_machine(page: str) -> tuple[list[Step], list[Step]]:
    """Returns the steps before the line MACHINE, and those after it."""
    border = page[: page.index(MACHINE)].count("\n") + 1
    found = steps(page)
    return [each for each in found if each.line < border], [each for each in found if each.line > border]


def _steps(page: str) -> Iterator[Step]:
    lines = iter(enumerate(page.splitlines(), 1))
    for number, line in lines:
        fence = re.fullmatch(r'```(\w+)(?: title="([^"]+)")?', line)
        if fence is None:
            continue
        block = []
        for _, inner in lines:
            if inner == "```":
                break
            block.append(inner)
        if fence[2]:
            yield File(fence[2], "\n".join(block) + "\n", number)
        elif fence[1] == "console":
            yield from _commands(block, number + 1)


def _commands(block: Sequence[str], first: int) -> Iterator[Command]:
    at = 0
    while at < len(block):
        if not block[at].startswith("$ "):
            raise ValueError(f"line {first + at}: a console block starts with a command")
        begin, text = at, block[at].removeprefix("$ ")
        while text.endswith("\\"):
            at += 1
            text = text.removesuffix("\\") + block[at].strip()
        at += 1
        below = at
        while at < len(block) and not block[at].startswith("$ "):
            at += 1
        yield Command(text, tuple(block[below:at]), first + begin)


def shows(shown: Sequence[str], seen: str, *, all_of_it: bool = True) -> bool:
    """True if `seen` is what a page shows. Without `all_of_it`, other lines may come before, between and after."""
    lines = [line for each in seen.splitlines() if (line := _plain(each)) and not _warns_root(line)]
    between = "" if all_of_it else r"(?:.*\n)*?"
    pattern = between
    for line in shown:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        elif line.strip():
            pattern += ".*".join(re.escape(part) for part in _plain(line).split("...")) + r"\n" + between
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def _plain(line: str) -> str:
    return " ".join(line.split())


def _warns_root(line: str) -> bool:
    """True for the warnings that a tester who is root sees, and a reader does not."""
    return "as root" in line


class Terminal:
    """Runs the steps of a page in a folder.

    `wrap` turns a command line into one that runs elsewhere, in a place whose "/" is the folder `root` here. Commands
    in `done` are skipped, because the test has prepared what they do.
    """

    def __init__(
        self,
        folder: str,
        environment: Mapping[str, str],
        wrap: Wrap,
        *,
        root: Path = Path("/"),
        done: Set[str] = frozenset(),
    ) -> None:
        self.folder = folder
        self.typed: list[str] = []
        self._root = root
        self._environment = environment
        self._wrap = wrap
        self._done = done
        self._status = 0
        self._last = ""
        self._server: _Server | None = None

    def follow(self, page: Sequence[Step]) -> None:
        for step in page:
            if isinstance(step, File):
                self._here(step.path).write_text(step.text)
            else:
                self._type(step)
        self._succeeded()

    def _here(self, path: str) -> Path:
        """Returns a path in the folder, as this process sees it."""
        return self._root / (Path(self.folder) / path).relative_to("/")

    def _type(self, command: Command) -> None:
        if command.text != "echo $?":
            self._succeeded()
        self.typed.append(command.text)
        if command.text in self._done:
            return
        if command.serves:
            self.stop()
            self._server = _Server(self._script(f"exec {command.text}"), self._environment)
            self._server.show(command)
        else:
            self._run(command)

    def _succeeded(self) -> None:
        assert not self._status, f"it ended with status {self._status}: {self._last}"

    def _run(self, command: Command) -> None:
        left_in = self._here(".pwd")
        done = subprocess.run(
            self._script(f"(exit {self._status})\n{command.text}\nstatus=$?\npwd >'{self.folder}/.pwd'\nexit $status"),
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * LIMIT,
            check=False,
        )
        self.folder = left_in.read_text().removesuffix("\n")
        left_in.unlink()
        self._status = done.returncode
        self._last = differs(command, done.stdout)
        assert not command.output or shows(command.output, done.stdout), self._last

    def _script(self, text: str) -> list[str]:
        return self._wrap(["bash", "-c", f"cd '{self.folder}'\n{text}"])

    def stop(self) -> None:
        """Ends the server that runs, as Ctrl-C would."""
        if self._server is not None:
            server, self._server = self._server, None
            server.stop()

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()


@contextmanager
def ending(terminal: Terminal) -> Iterator[Terminal]:
    """Stops the server that still runs at the end of a block; it must end well."""
    try:
        yield terminal
        terminal.stop()
    finally:
        terminal.kill()


class _Server:
    """A command that serves in the foreground, and what it has printed so far."""

    def __init__(self, argv: list[str], environment: Mapping[str, str]) -> None:
        self._printed = ""
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._news:
                    self._printed += line
                    self._news.notify_all()

    def show(self, command: Command) -> None:
        """Waits until it has printed what the page shows."""
        with self._news:
            shown = self._news.wait_for(lambda: shows(command.output, self._printed, all_of_it=False), LIMIT)
            assert shown, differs(command, self._printed)

    def stop(self) -> None:
        self._process.send_signal(SIGINT)
        status = self._process.wait(LIMIT)
        self._reader.join(LIMIT)
        assert status == 0, f"the server ended with status {status}:\n{self._printed}"

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(SIGKILL)
            self._process.wait(LIMIT)


def differs(command: Command, seen: str) -> str:
    """Says what a page shows and what a command printed, for a test that fails."""
    shown = "\n".join(command.output)
    return f"line {command.line} of the page: $ {command.text}\nThe page shows:\n{shown}\n\nIt printed:\n{seen}"
