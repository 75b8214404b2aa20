"""What each of two processes does in ``test_ssl_processes.py``: ``torchrun ssl_ranks.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tiny_ssl import CASES, fit_ssl

#: A CNN whose norms have an activation, and which are over all images.
CNN: dict[str, Any] = {"backbone": "timm/lcnet_035", "image_size": 32, "lr": 1e-3}


def train(folder: Path, processes: int) -> dict[str, Any]:
    """State and scores of every method after two epochs of batches of 64 in all."""
    results: dict[str, Any] = {}
    for case in [*CASES, "cnn"]:
        shared: dict[str, Any] = {
            "devices": processes,
            "strategy": "ddp" if processes > 1 else "auto",
            "precision": "64-true",
        }
        more = {"task": CNN, "sync_batchnorm": True} if case == "cnn" else {}
        shared |= {"batch_size": 64 // processes, "limit_val_batches": 1.0, **more}
        module, loop = fit_ssl("simclr" if case == "cnn" else case, folder / case, **shared)
        scores = {k: float(v) for k, v in loop.callback_metrics.items() if k.startswith("val/")}
        state = {k: v.detach().clone() for k, v in module.state_dict().items()}
        results[case] = {"state": state, "scores": scores}
    return results


if __name__ == "__main__":
    results = train(Path(sys.argv[1]), 2)
    torch.save(results, Path(sys.argv[1]) / f"rank{torch.distributed.get_rank()}.pt")
