"""The notebooks of docs/: outputs are not in git, and every cell runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
SECONDS = 600  #: three minutes are promised on two quiet cores


def test_there_are_six() -> None:
    assert len(NOTEBOOKS) == 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_in_git(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.cells[0].cell_type == "markdown", "a title and a sentence first"


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # what they write is not left in the tree
    copy.mkdir()
    needed = ("benchmarks", "configs", "docs", "pyproject.toml", "train.py", "visionzoo")
    for name in needed:
        whole = ROOT / name
        shutil.copytree(whole, copy / name) if whole.is_dir() else shutil.copy(whole, copy / name)
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(copy / "docs/notebooks")}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources=where).execute()
    texts = [o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    wrong = [t for t in texts if re.search(r"^(error:|Traceback)", t, re.MULTILINE)]  # of a command after `!`
    assert wrong == []
    shown = {kind for c in notebook.cells if c.cell_type == "code" for o in c.outputs for kind in o.get("data", {})}
    assert shown & {"image/png", "text/markdown", "text/plain"}
