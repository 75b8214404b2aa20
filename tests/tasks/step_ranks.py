"""Counts what ranks say to each other in a step: ``torchrun step_ranks.py FOLDER TASK OPTION...``."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

from visionzoo.cli import train as cli

COLLECTIVES = (
    "all_reduce", "barrier", "broadcast", "all_gather", "all_gather_object", "broadcast_object_list", "reduce",
    "all_gather_into_tensor", "reduce_scatter_tensor", "monitored_barrier",
)  # fmt: skip


def main() -> int:
    """Train, and write the calls of each step by name, as JSON; gradients, exchanged in C++, are not there."""
    steps: list[Counter[str]] = []
    whole = _TrainingEpochLoop.advance

    def advance(loop: Any, fetcher: Any) -> None:
        steps.append(Counter())
        try:
            whole(loop, fetcher)
        finally:
            inside.append(len(steps))

    inside: list[int] = []
    for name in COLLECTIVES:
        original = getattr(dist, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            if len(steps) > len(inside):
                steps[-1][_name] += 1
            return _original(*args, **kwargs)

        setattr(dist, name, counted)
    _TrainingEpochLoop.advance = advance  # type: ignore[method-assign]
    code = cli.run(sys.argv[2:])
    Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(steps))
    return code


if __name__ == "__main__":
    sys.exit(main())
