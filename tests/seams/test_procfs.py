"""The OOM killer's count: what is new within two looks."""

from __future__ import annotations

import pytest

from forkd.kernel import procfs


def test_a_kill_is_told_for_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 7
    monkeypatch.setattr(procfs, "oom_kills", lambda: count)
    watch = procfs.OomWatch(0.0)
    assert not watch.killed()
    count += 1
    assert watch.killed()
    watch.look(0.5)  # too early: the last look is still fresh
    watch.look(1.0)
    assert watch.killed(), "told between a kill and the death that it explains"
    watch.look(1.9)
    assert watch.killed()
    watch.look(2.0)
    assert not watch.killed(), "a machine that ran out of memory an hour ago explains nothing"


def test_the_kernel_tells_its_count() -> None:
    assert procfs.oom_kills() >= 0
