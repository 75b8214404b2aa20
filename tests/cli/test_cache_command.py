"""``visionzoo cache``, as a user types it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
import torch

from visionzoo.cache import KINDS, Cache, cache_folder
from visionzoo.cli.main import main


@pytest.fixture(autouse=True)
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for key in range(3):
        Cache("texts").write({"x": torch.zeros(2**19)}, key)
    Cache("features").write({"x": torch.zeros(8)}, 0)


def entries() -> dict[str, int]:
    return {kind: len(list(cache_folder(kind).glob("*.safetensors"))) for kind in KINDS}


def test_it_lists_what_each_kind_holds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["cache"]) == 0
    printed = capsys.readouterr().out
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out == printed
    rows = {line.split()[0]: line for line in printed.splitlines()}
    assert set(rows) >= set(KINDS)
    assert rows["texts"].split()[1:4] == ["3", "6.0", "MiB"]
    assert str(datetime.now().year) in rows["texts"]
    assert rows["search"].split()[1:5] == ["0", "0", "bytes", "-"]
    assert printed.splitlines()[-1].startswith(
        "6.0 MiB of at most 50.0 GiB (VISIONZOO_CACHE_LIMIT) in " + str(tmp_path)
    )


def test_it_lists_for_programs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["cache", "list", "texts", "search", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["limit"] == 50 * 2**30
    texts, search = said["held"]
    assert (texts["kind"], texts["entries"], texts["folder"]) == ("texts", 3, str(cache_folder("texts")))
    assert texts["bytes"] == sum(f.stat().st_size for f in cache_folder("texts").iterdir())
    assert datetime.fromisoformat(texts["last_used"]).tzinfo is not None
    assert (search["bytes"], search["last_used"]) == (0, None)
    assert main(["cache", "--json", str(tmp_path / "held.json")]) == 0
    assert "kind" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "held.json").read_text())["held"]) == len(KINDS)


def test_it_clears_a_kind_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "clear", "texts"]) == 0
    assert capsys.readouterr().out == "removed 3 entries, 6.0 MiB: texts\n"
    assert entries() == {**dict.fromkeys(KINDS, 0), "features": 1}
    assert main(["cache", "clear", "--json"]) == 0
    assert sum(one["entries"] for one in json.loads(capsys.readouterr().out)["removed"]) == 1
    assert not any(entries().values())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["claer"], "does not know 'claer'; did you mean clear?"),
        (["clear", "text"], "does not know 'text'; did you mean texts?"),
        (["clear", "texts", "everything"], "does not know 'everything'; known are embeddings, features"),
        (["clear", "--json", "x.txt"], "--json x.txt: the file must end in .json"),
    ],
)
def test_a_slip_clears_nothing(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert main(["cache", *args]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert sum(entries().values()) == 4
