"""A comparison of CNN against ViT in miniature: its options, and how a test runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY = [
    "--data.path", "shapes:60", "--data.num_workers", "0", "--data.eval_limit", "30", "--data.corruption_limit", "12",
    "--models", "lcnet_035,vit_nano_patch4_32", "--image_size", "16", "--budget.steps", "6", "--budget.batch_size", "8",
    "--seeds", "0", "--fractions", "0.5,1", "--corruptions", "jpeg,contrast", "--device", "cpu",
    "--speed_batch", "2", "--speed_rounds", "1",
]  # fmt: skip


def run(load: Any, out: Path, *more: str) -> int:
    return load("cnn_vs_vit").main([*TINY, "--out", str(out), *more])


def records(out: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in json.loads((out / "results.json").read_text())["rows"] if r["kind"] == kind]
