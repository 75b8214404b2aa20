"""What README shows of the models that come with the package, as it is typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_the_embedded_models_answer_as_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [
        b for b in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE) if "embedded" in b
    ]
    names: dict[str, Any] = {}
    for line in block.splitlines():
        said = line.partition("# [[")[2]
        if not said:
            exec(line, names)
            continue
        (best, *_), *_ = eval(line, names)
        label, probability = re.match(r'\("(.+?)", ([\d.]+)\)', said).groups()  # type: ignore[union-attr]
        assert best[0] == label
        assert best[1] == pytest.approx(float(probability), abs=0.002)
    (mask,) = names["masks"]
    assert mask.shape == (256, 256)
    assert mask[62, 132]
    assert 30 < mask.sum() < 1500  # a nucleus, not the picture
