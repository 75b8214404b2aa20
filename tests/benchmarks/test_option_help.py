"""``--help`` of the scripts says what they do and what their options mean."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.mark.parametrize(
    ("script", "about", "option", "meaning"),
    [
        ("cnn_vs_vit", "Which network should I use?", "--reach", "top-1 whose cost is told, 0.8 is 80 %;"),
        ("cnn_vs_vit", "under one declared budget", "--budget.steps", "optimizer steps"),
        ("evaluate", "Score released checkpoints", "--data.classes", "one for all or one for each: auto,"),
        ("robustness", "What released models, or your runs", "--ood_path", "images of none of the classes"),
    ],
)
def test_help(load: Callable[[str], ModuleType], script: str, about: str, option: str, meaning: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        load(script).main(["--help"])
    text = re.sub(r"\s+", " ", out.getvalue())
    assert "Lightning" not in text
    assert about in text
    assert re.search(rf" {re.escape(option)} \S+(, \S+ \S+)? {re.escape(meaning)}", text), text


def test_comments_of_fields_within_fields(load: Callable[[str], ModuleType]) -> None:
    said = load("comparison.option_help").comments(load("comparison.options").Options)
    assert said["data.eval_limit"] == "held-out images for accuracy and calibration; none for all"
    assert said["pretrain.base_lr"].startswith("peak learning rate for 256 images")
    assert "title" in said
