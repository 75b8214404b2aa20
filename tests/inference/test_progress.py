"""How far a long command is, where nobody sees a bar."""

from __future__ import annotations

import pytest

from visionzoo.inference.progress import track


def test_a_log_hears_of_long_work_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter(range(0, 1000, 12))
    assert list(track(range(9), 9, "features", clock=lambda: float(next(now)))) == list(range(9))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "features: 3 of 9, about 0:01:12 left",
        "features: 6 of 9, about 0:00:36 left",
    ]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abcdefg"), 7, "features")) == list("abcdefg")
    assert capsys.readouterr() == ("", "")
