"""How many cores a process may use."""

from __future__ import annotations

import os

import pytest

from visionzoo.auto.recipes import reading_processes
from visionzoo.processors import usable_cores


@pytest.mark.parametrize(("cores", "readers"), [(1, 1), (2, 1), (4, 3), (64, 4)])
def test_it_is_what_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch, cores: int, readers: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert usable_cores() == cores
    assert reading_processes() == readers


@pytest.mark.parametrize("known", [8, None])
def test_where_a_system_does_not_say_it_is_what_there_is(monkeypatch: pytest.MonkeyPatch, known: int | None) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: known)
    assert usable_cores() == (known or 1)
