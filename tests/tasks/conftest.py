"""What the tests of tasks share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tiny_run import Run, run_training


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Run]:
    """``train(name, epochs=2, resume=None, callbacks=(), data={}, trainer={}, **task options) -> Run``."""
    return partial(run_training, tmp_path)
