"""What features of held-out images say, over all ranks.

Legend: B batch, N images, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visionzoo.data.keys import sample_key
from visionzoo.metrics.representation import dead_share, effective_rank, nearest_accuracy, uniformity
from visionzoo.tasks.gathering import from_all_ranks

#: Images that are scored. Of more, these are drawn, the same ones every time.
MOST = 10_000
#: Images whose pairs are all looked at.
PAIRED = 2048


class FeatureSample:
    """Features and labels of up to :data:`MOST` images, whichever rank and batch they come in."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, Tensor]] = []  # key, position, label, (D,) feature

    def add(self, features: Tensor, labels: Tensor, index: Tensor) -> None:
        """Take (B, D) features, labels (B,), -1 where there is none, and positions (B,) into account."""
        known = labels.tolist() if labels.ndim == 1 else [-1] * len(features)  # several labels each are not scored
        for feature, label, place in zip(features.detach().float().cpu(), known, index.tolist(), strict=True):
            self._rows.append((sample_key(place), place, label, feature))
        if len(self._rows) > 2 * MOST:
            self._rows = _fewer(self._rows)

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, D), labels (N,) and positions (N,) of all ranks, in the order of the data; then start afresh."""
        rows, self._rows = from_all_ranks(_fewer(self._rows)), []
        rows = sorted(_fewer(rows), key=lambda row: row[1])
        features = torch.stack([row[3] for row in rows]) if rows else torch.empty(0, 0)
        return features, torch.tensor([row[2] for row in rows]), torch.tensor([row[1] for row in rows])


def _fewer(rows: list[tuple[int, int, int, Tensor]]) -> list[tuple[int, int, int, Tensor]]:
    return sorted(rows, key=lambda row: row[0])[:MOST] if len(rows) > MOST else rows


def feature_scores(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of (N, D) features, N at least 2: ``knn_accuracy`` where at least two images have labels (N,), else -1;
    ``effective_rank``, ``uniformity`` and ``dead_share``."""
    known = labels >= 0
    scores = {}
    if int(known.sum()) > 1:
        scores["knn_accuracy"] = nearest_accuracy(features[known], labels[known])
    return {
        **scores,
        "effective_rank": effective_rank(features),
        "uniformity": uniformity(features[:PAIRED]),
        "dead_share": dead_share(features),
    }
