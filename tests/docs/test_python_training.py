"""The code blocks of docs/python-training.md run, in order, and do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "python-training.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_network: None) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    assert names["again"].classes == names["data"].classes
    assert len(names["labels"]) == 32
    resumed = torch.load(names["folder"].last, weights_only=True)
    assert resumed["epoch"] == 1
    assert resumed["global_step"] == 8
    assert names["folder"].model.is_file()
    assert names["trainer"].global_step == 3
