"""Output in a separate process whose standard streams are replaced by log records."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from forkd.log import log, stdio
from tests.seams.test_log import in_child, records


def printing(act: Callable[[], None], *, alike: bool = False) -> list[str]:
    """Runs a function in a child. Returns the records it leaves in the log, without its PID."""
    kept = os.memfd_create("log")

    def child_acts() -> None:
        os.dup2(2 if alike else os.open(os.devnull, os.O_WRONLY), 1)
        stdio.lead_to_log("echo", log.set_up("info", "text", kept))
        act()
        sys.stderr.flush()
        sys.stdout.flush()

    try:
        child = in_child(child_acts)
        text = os.pread(kept, 1 << 20, 0).decode()
    finally:
        os.close(kept)
    return [line.removesuffix(f" service=echo pid={child}") for line in records(text)]


def test_each_line_is_a_record() -> None:
    def act() -> None:
        print("one", 1, "\r", file=sys.stderr)
        print("two\n\nthree", file=sys.stderr)
        print(file=sys.stderr)
        sys.stderr.buffer.write(b"\xff\x1b")

    assert printing(act) == [
        "warning stderr: one 1",
        "warning stderr: two",
        "warning stderr: three",
        r"warning stderr: \xff\x1b",
    ]


def test_a_line_without_an_end_is_a_record_when_it_is_long_or_flushed() -> None:
    def act() -> None:
        sys.stderr.write("x" * 40_000)
        sys.stderr.write("y" * 40_000)
        sys.stderr.write("begun")
        sys.stderr.flush()
        sys.stderr.flush()
        sys.stderr.write(" and ended\n")

    long = "x" * 40_000 + "y" * 40_000
    assert printing(act) == [f"warning stderr: {long}", "warning stderr: begun", "warning stderr:  and ended"]


def test_standard_output_is_the_applications_unless_it_goes_the_same_way() -> None:
    assert printing(lambda: print("aside"), alike=True) == ["info stdout: aside"]


def test_programs_have_the_descriptors_themselves(capfd: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        assert (sys.stderr.fileno(), sys.stderr.name, sys.stderr.isatty()) == (2, "<stderr>", False)
        subprocess.run(["sh", "-c", "echo theirs >&2"], stderr=sys.stderr, check=True)
        print("mine")

    assert printing(act) == []
    assert capfd.readouterr().err == "theirs\n"


def test_a_thread_that_ends_by_an_exception_is_one_record_and_one_that_exits_none() -> None:
    def fail(error: BaseException) -> None:
        raise error

    def act() -> None:
        for error in (ValueError("no"), SystemExit(1)):
            thread = threading.Thread(target=fail, args=(error,), name="helper")
            thread.start()
            thread.join()

    (first,) = printing(act)
    assert first == "error the thread 'helper' ended with an exception"
