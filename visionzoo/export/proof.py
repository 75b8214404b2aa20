"""Whether an exported file gives the model's answers: compared on real pictures, output by output.

Legend: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from visionzoo.export.failure import NotTheSame
from visionzoo.export.parts import Feed, GraphPart
from visionzoo.inference.progress import track

#: fp32: the largest difference of an output as a share of its largest value.
TOLERANCE = 1e-4
#: Lower precisions: the least cosine of an output with the model's.
LEAST_COSINE = 0.999

Run = Callable[..., Sequence[np.ndarray]]


@dataclass
class Compared:
    """How far one output is off, over all feeds of one size and batch."""

    part: str
    output: str
    size: str
    batch: int
    images: int = 0
    difference: float = 0.0  #: worst, as a share of the output's largest value
    cosine: float = 1.0  #: least, of the output of one image
    changed: int = 0  #: images whose best answer is another one; of ranked outputs alone


@dataclass(frozen=True)
class Proof:
    """What came of comparing a part."""

    rows: tuple[Compared, ...]

    def to_list(self) -> list[dict[str, Any]]:
        """Plain JSON types."""
        return [asdict(row) for row in self.rows]

    def require(self, precision: str) -> None:
        """Raise NotTheSame unless every output is what its precision promises."""
        for row in self.rows:
            where = f"{row.part}: output {row.output} at {row.size}, batch {row.batch}"
            exact = precision == "fp32"
            if exact and not row.difference <= TOLERANCE:
                raise NotTheSame(
                    f"{where} differs from PyTorch by {row.difference:.2e} of its largest value; {TOLERANCE:g} is "
                    "allowed in fp32"
                )
            if exact and row.changed:
                raise NotTheSame(f"{where}: {row.changed} of {row.images} best answers are not PyTorch's")
            if precision in ("fp16", "bf16") and not row.cosine >= LEAST_COSINE:
                raise NotTheSame(f"{where} has cosine {row.cosine:.5f} with PyTorch's; {LEAST_COSINE} is needed")


def prove(part: GraphPart, run: Run, images: Sequence[Image.Image]) -> Proof:
    """Compare a file with the model that it was made of.

    Args:
        part: with PyTorch's side.
        run: the file: inputs as arrays -> outputs as arrays.
        images: real ones.
    """
    rows: dict[tuple[str, str, int], Compared] = {}
    feeds = list(part.feeds(images))
    for feed in track(iter(feeds), len(feeds), f"proving {part.name}"):
        with torch.inference_mode():
            wanted = part.module(*feed.inputs)
        wanted = (wanted,) if isinstance(wanted, torch.Tensor) else wanted
        given = run(*(x.numpy() for x in feed.inputs))
        for port, ours, theirs in zip(part.outputs, wanted, given, strict=True):
            key = (port.name, feed.size, feed.batch)
            row = rows.setdefault(key, Compared(part.name, port.name, feed.size, feed.batch))
            _compare(row, ours.float().numpy(), np.asarray(theirs), feed, ranked=port.name in part.ranked)
    return Proof(tuple(rows.values()))


def _compare(row: Compared, wanted: np.ndarray, given: np.ndarray, feed: Feed, *, ranked: bool) -> None:
    row.images += feed.batch
    if wanted.shape != given.shape:
        raise NotTheSame(
            f"{row.part}: output {row.output} at {row.size}, batch {row.batch} has shape {given.shape}, PyTorch's "
            f"{wanted.shape}"
        )
    a, b = wanted.astype(np.float64), given.astype(np.float64)
    off = float(np.abs(a - b).max(initial=0.0))  # NaN where either has one
    row.difference = float(np.maximum(row.difference, off / max(float(np.abs(a).max(initial=0.0)), 1e-6)))
    x, y = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines = np.where(norms > 0, (x * y).sum(1) / np.maximum(norms, 1e-30), (x == y).all(1))
    row.cosine = float(np.minimum(row.cosine, cosines.min(initial=1.0)))
    if ranked:
        row.changed += int((x.argmax(1) != y.argmax(1)).sum())
