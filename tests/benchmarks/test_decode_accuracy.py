"""The benchmark of fast decoding: it trains both ways and keeps what is done."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_throughput import load


def test_both_kinds_are_trained_and_finished_seeds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("decode_accuracy", monkeypatch)
    trained: list[tuple[str, int]] = []

    def accuracy(args: argparse.Namespace, kind: str, seed: int, run_dir: Path) -> float:
        trained.append((kind, seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return 0.5 if kind == "exact" else 0.25

    monkeypatch.setattr(module, "accuracy", accuracy)
    out = tmp_path / "decode-cpu.json"
    monkeypatch.setattr(sys, "argv", ["decode_accuracy.py", "--data.path", "x", "--seeds", "0", "1", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        module.main()
    assert set(json.loads(out.read_text())["results"]) == {"seed 0"}
    module.main()
    assert trained == [("exact", 0), ("fast", 0), ("exact", 1), ("exact", 1), ("fast", 1)]
    page = load("report", monkeypatch).report(tmp_path)
    assert "| seed 1 | exact | accuracy 50.00% |" in page
    assert "| seed 1 | fast | accuracy 25.00% |" in page


@pytest.mark.slow
def test_a_training_gives_its_last_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            folder = tmp_path / "data" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "model: {backbone: vit_nano_patch4_32, image_size: 16}\n"
        "data: {batch_size: 4, num_workers: 0}\n"
        "trainer: {accelerator: cpu}\n"
    )
    module = load("decode_accuracy", monkeypatch)
    args = argparse.Namespace(config=config, path=tmp_path / "data", epochs=2)
    assert module.accuracy(args, "fast", 1, tmp_path / "run") in (0, 0.25, 0.5, 0.75, 1)
    assert "decode: fast" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(RuntimeError, match="training with quick pixels failed: error"):
        module.accuracy(args, "quick", 1, tmp_path / "other")
