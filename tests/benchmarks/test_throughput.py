"""The benchmark of backbones, small, and the page that is written from records."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name_of_helper in ("harness", "peers"):
        monkeypatch.delitem(sys.modules, name_of_helper, raising=False)
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["throughput.py", *args])
    module.main()


@pytest.mark.long
def test_peers_compute_the_same_and_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("throughput", monkeypatch)
    out = tmp_path / "throughput-cpu.json"
    tiny = ["--models", "vit_tiny_patch16_224", "--precision", "fp32", "--batch", "1", "--rounds", "1", "--warmup", "0"]
    run(module, monkeypatch, *tiny, "--no-memory", "--out", str(out))
    record = json.loads(out.read_text())
    rows = record["results"]
    assert list(rows) == ["vit_tiny_patch16_224, inference, fp32", "vit_tiny_patch16_224, training, fp32"]
    for row in rows.values():
        assert set(row["cases"]) == {"visionzoo", "timm", "transformers"}
        assert row["absent"] == {"torchvision": "has no such model"}
        assert row["reference"] in ("timm", "transformers")
    assert record["machine"]["command"].endswith(f"--out .../{out.name}")
    assert str(tmp_path) not in out.read_text()


def test_a_network_that_computes_something_else_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import visionzoo as vz

    module = load("throughput", monkeypatch)
    ours = vz.create_classifier("vit_nano_patch4_32", 10).eval()
    other = vz.create_classifier("vit_nano_patch4_32", 10).eval()
    with pytest.raises(SystemExit, match="timm does not compute the same"):
        module.compare({"visionzoo": ours, "timm": other}, torch.randn(1, 3, 32, 32))


def test_unknown_models_and_absent_peers_are_said(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    module = load("throughput", monkeypatch)
    with pytest.raises(SystemExit):
        run(module, monkeypatch, "--models", "vit_smal")
    assert "unknown models vit_smal" in capsys.readouterr().err
    peers = sys.modules["peers"]
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    there, absent = peers.those_there({"timm": lambda: module.backbone("timm", "vit_tiny_patch16_224", None, 1000)})
    assert (there, absent) == ({}, {"timm": "not installed"})


def test_the_page_says_what_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("report", monkeypatch)

    def case(ratio: float) -> dict[str, Any]:
        three = {"low": ratio, "median": ratio, "high": ratio}
        return {"seconds": {"wall": three, "cpu": three}, "speedup": {"wall": three, "cpu": three}, "peak_gib": 1.5}

    machine = {"command": "python benchmarks/mae.py", "date": "2026-01-01", "cpu": "a CPU", "threads": 2, "cores": 2}
    machine |= {"load": 0.1, "versions": {"torch": "2.8"}, "git": {"commit": "abcdef0123456789", "dirty": False}}
    results = {"fp32": {"cases": {"visionzoo": case(1.2)}}, "bf16": {"cases": {"visionzoo": case(1.2)}}}
    (tmp_path / "mae-cpu.json").write_text(json.dumps({"machine": machine, "results": results}))
    page = module.report(tmp_path)
    assert "| fp32 | visionzoo | 1.200 (1.200-1.200) | 1.20 (1.20-1.20) | 1.15: yes |  | 1.50 |" in page
    assert "| bf16 | visionzoo | 1.200 (1.200-1.200) | 1.20 (1.20-1.20) | 1.3: no |" in page
    assert "commit abcdef0123." in page
    with pytest.raises(SystemExit, match="no records"):
        module.report(tmp_path / "empty")


def test_the_committed_page_is_that_of_the_committed_records(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("report", monkeypatch)
    page = (module.RESULTS.parent / "RESULTS.md").read_text(encoding="utf-8")
    assert page == module.report(module.RESULTS), "run python benchmarks/report.py"
