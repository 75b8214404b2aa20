"""Two processes train what one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clip_ranks import CASES, train
from test_clip_task import assert_close_weights, assert_same_weights, data, task


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    script = Path(__file__).with_name("clip_ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launch, script, tmp_path], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    alone = train(tmp_path / "alone", 1)
    for name in CASES:
        assert_same_weights(first[name]["weights"], second[name]["weights"])
        assert_close_weights(alone[name]["weights"], first[name]["weights"], 1e-6)
        assert first[name]["scores"] == pytest.approx(alone[name]["scores"], abs=1e-9)
        assert first[name]["summary"] == alone[name]["summary"]
    # a rank without a single image
    module, loader = task(context_length=4), data()
    loader.preprocess = module.preprocess
    module.update_evaluation(loader.sample_batch(5))
    expected = {k: float(v) for k, v in module.finish_evaluation().items()}
    assert first["one image for two"] == second["one image for two"] == pytest.approx(expected)
    assert first["nothing"] == {}
