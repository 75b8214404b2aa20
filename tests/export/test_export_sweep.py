"""Every native family, every part: a file that gives PyTorch's answers at three sizes and two batches.

``benchmarks/export_table.py`` measures all formats and writes the table of docs/export.md.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from visionzoo.export.plans import Wish, make_plan
from visionzoo.export.proof import TOLERANCE

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def table() -> Iterator[ModuleType]:
    """The script that makes the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.delitem(sys.modules, "harness", raising=False)
        spec = importlib.util.spec_from_file_location("export_table", FOLDER / "export_table.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.long
def test_a_family_exports(table: ModuleType, tmp_path: Path) -> None:
    found = table.proved("vit_nano_patch4_32", 32, "pyramid", "onnx", tmp_path)
    found.require("fp32")
    assert {row.size for row in found.rows} == {"36x16", "32x32", "29x35"}
    assert max(row.difference for row in found.rows) < TOLERANCE / 5


@pytest.mark.slow
def test_every_family_exports(table: ModuleType, tmp_path: Path) -> None:
    off = {}
    for name, size in table.FAMILIES:
        for part in ("features", "pyramid"):
            folder = tmp_path / f"{name.replace('/', '-')}-{part}"
            folder.mkdir()
            found = table.proved(name, size, part, "onnx", folder)
            if found is not None:
                off[name, part] = max(row.difference for row in found.rows)
    assert {case: value for case, value in off.items() if not value < TOLERANCE / 5} == {}


def test_the_table_of_the_docs_is_the_records(table: ModuleType) -> None:
    results = json.loads(table.TABLE.read_text(encoding="utf-8"))["results"]
    assert all(row["difference"] < TOLERANCE for row in results.values() if "difference" in row)
    text = table.DOCS.read_text(encoding="utf-8")
    assert table.table(results) == text.partition(table.BEGIN)[2].partition(table.END)[0].strip()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "open_size"),
    [
        ("timm/resnet18", True),
        ("timm/vit_tiny_patch16_224", True),
        ("beit_base_patch16_224", True),
        ("timm/swin_tiny_patch4_window7_224", False),
    ],
)
def test_a_graph_of_one_size_says_why(table: ModuleType, name: str, open_size: bool) -> None:
    plan = make_plan(table.made(name, 224, "features"), Wish(), name)
    assert plan.facts["any_size"] is open_size
    assert bool(plan.notes) is not open_size
    if not open_size:
        assert plan.notes[0].startswith("images of 224x224 alone: ")
    assert make_plan(table.made(name, 224, "features"), Wish(fixed_size=True), name).notes == ()
