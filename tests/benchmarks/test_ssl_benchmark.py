"""The benchmark of pretraining on views, on tiny networks: both sides take the same step."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("lightly")


def _args(**changes: Any) -> argparse.Namespace:
    values = {"simclr": "timm/lcnet_035", "dino": "vit_nano_patch4_32", "batch": 4, "prototypes": 32, "images": 1}
    return argparse.Namespace(**{**values, "small_size": None, "small_views": 1, "rounds": 1, **changes})


@pytest.mark.long
@pytest.mark.parametrize("job", ["simclr", "dino"])
def test_both_take_the_same_step(
    load: Callable[[str], ModuleType], job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = load("ssl_step")
    for precision in ("fp32", "bf16"):
        cases, absent = benchmark.build(_args(), job, 32, precision, [benchmark.OURS, benchmark.THEIRS])
        assert absent == {}
        assert f"{job}: losses" in capsys.readouterr().out
        steps = [cases[name]().item() for name in (benchmark.OURS, benchmark.THEIRS)]  # building has compared them
        assert all(math.isfinite(loss) for loss in steps)


def test_small_views_have_three_sevenths_in_whole_patches(load: Callable[[str], ModuleType]) -> None:
    small = load("ssl_step").small_size
    assert [small(_args(), size) for size in (224, 96, 16)] == [96, 48, 16]
    assert small(_args(small_size=40), 96) == 40


def test_views_are_timed_in_turn(load: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    row = load("ssl_step").measure_views(_args(), 32)
    assert set(row["cases"]) == {"visionzoo", "lightly"}
    assert "3 views of an image, 32 pixels" in capsys.readouterr().out
