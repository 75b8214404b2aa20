"""Two processes with 32 images each train what one with 64 does, by every method."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ssl_ranks import train
from tiny_ssl import CASES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    script = Path(__file__).with_name("ssl_ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launch, script, tmp_path], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    alone = train(tmp_path / "alone", 1)
    for case in [*CASES, "cnn"]:
        ours, theirs, one = (result[case]["state"] for result in (first, second, alone))
        for name, tensor in one.items():
            assert torch.equal(ours[name], theirs[name]), f"{case}: {name}"
            if name == "model.queue":  # the same keys, in the order of the processes
                assert sorted(ours[name].sum(1).tolist()) == pytest.approx(sorted(tensor.sum(1).tolist()), abs=1e-5)
            else:
                torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert first[case]["scores"] == pytest.approx(alone[case]["scores"], rel=1e-5)
