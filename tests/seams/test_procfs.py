"""The OOM killer's count: increases within the last two looks."""

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
    assert watch.killed(), "a look between a kill and the death it explains must not lose the kill"
    watch.look(1.9)
    assert watch.killed()
    watch.look(2.0)
    assert not watch.killed(), "an earlier kill explains no later death"


def test_the_kernel_tells_its_count() -> None:
    assert procfs.oom_kills() >= 0
