"""What each of two processes does in ``test_clip_processes.py``: ``torchrun clip_ranks.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from test_clip_task import data, fit, task, weights

#: Options of the task in each case: all at once, and from a cache, with both losses.
CASES: dict[str, dict[str, Any]] = {
    "whole": {"loss": "softmax"},
    "cached": {"loss": "sigmoid", "micro_batch": 3},
}


def train(folder: Path, processes: int) -> dict[str, Any]:
    """Weights and scores of every case after two epochs."""
    results: dict[str, Any] = {}
    for name, options in CASES.items():
        module = task(**options)
        shared = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto", "precision": "64-true"}
        shared |= {"limit_val_batches": 1.0, "check_val_every_n_epoch": 2}
        shared |= {"gradient_clip_val": 0.5} if "micro_batch" in options else {}
        loop = fit(module, folder / name, datamodule=data(batch_size=16 // processes), **shared)
        scores = {k: float(v) for k, v in loop.callback_metrics.items() if k.startswith("val/")}
        results[name] = {"weights": weights(module), "scores": scores, "summary": module.summary({})}
    return results


def main() -> None:
    folder = Path(sys.argv[1])
    results = train(folder, 2)
    rank = torch.distributed.get_rank()
    module, loader = task(context_length=4), data()
    loader.preprocess = module.preprocess
    batch = loader.sample_batch(5)
    if rank == 0:
        module.update_evaluation(batch)
    results["one image for two"] = {k: float(v) for k, v in module.finish_evaluation().items()}
    results["nothing"] = module.finish_evaluation()
    torch.save(results, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
