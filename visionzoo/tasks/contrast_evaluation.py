"""What held-out images and captions say of a CLIP: recall both ways, and zero-shot accuracy, over all ranks.

Legend: B images, T captions, E embedding, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from visionzoo.metrics.retrieval import retrieval_recall

RECALLS = (1, 5, 10)
#: Held-out images on the sheet of what was found for them.
SHOWN = 12


class Found(NamedTuple):
    """The captions that were most similar to one image."""

    image: np.ndarray  #: (H, W, C) uint8
    captions: list[tuple[str, bool]]  #: best first, and whether it is one of its own


class Retrieval(Metric):
    """Recall at 1, 5 and 10 both ways, over the features of all ranks.

    The features of the whole set are kept: 4 E bytes for each image and caption.
    """

    full_state_update = False
    images: list[Tensor]
    owners: list[Tensor]
    texts: list[Tensor]
    text_owners: list[Tensor]
    groups: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("images", "owners", "texts", "text_owners", "groups"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, texts: Tensor, index: Tensor, text_image: Tensor, groups: Tensor) -> None:
        """
        Args:
            images: (B, E), of length one.
            texts: (T, E), of length one.
            index: (B,) position of each image in the data.
            text_image: (T,) which of the B images each text describes.
            groups: (T,) equal where the texts are.
        """
        self.images.append(images.float())
        self.owners.append(index)
        self.texts.append(texts.float())
        self.text_owners.append(index[text_image])
        self.groups.append(groups)

    def compute(self) -> dict[str, Tensor]:
        """Recalls by name, and their mean; nothing if nothing was taken in."""
        images, owners = _joined(self.images), _joined(self.owners)
        texts, text_owners = _joined(self.texts), _joined(self.text_owners)
        groups = _joined(self.groups)
        if images is None or owners is None or texts is None or text_owners is None or groups is None:
            return {}
        order = owners.argsort()  # positions need not be consecutive: unreadable images are left out
        place = torch.searchsorted(owners[order], text_owners)
        recalls = retrieval_recall(images[order], texts, place, RECALLS, groups)
        values = {name: torch.tensor(value, device=images.device) for name, value in recalls.items()}
        return {**values, "recall_mean": torch.stack(list(values.values())).mean()}


def _joined(parts: list[Tensor] | Tensor) -> Tensor | None:
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(parts) if parts else None


def text_groups(texts: Sequence[str]) -> Tensor:
    """(T,) int64, equal where the texts are, on every rank: Python's own hash differs between processes."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)


class ContrastEvaluation(nn.Module):
    """Both scores, and what the sheet of found captions is drawn from.

    Args:
        num_classes: K; 0 where there are no labelled images.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.retrieval = Retrieval()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro") if num_classes else None
        self._forget()

    def _forget(self) -> None:
        self._shown: list[np.ndarray] = []
        self._texts: list[str] = []

    def add_captions(
        self,
        image_features: Tensor,
        text_features: Tensor,
        index: Tensor,
        text_image: Tensor,
        images: Tensor,
        texts: Sequence[str],
    ) -> None:
        """A captioned batch; of ``images`` (B, C, H, W) uint8 and ``texts`` some are kept for the sheet."""
        groups = text_groups(texts).to(text_image.device)
        self.retrieval.update(image_features, text_features, index, text_image, groups)
        room = SHOWN - len(self._shown)
        self._shown += [image.permute(1, 2, 0).cpu().numpy() for image in images[: max(room, 0)]]
        self._texts += texts

    def add_labels(self, logits: Tensor, labels: Tensor) -> None:
        """A labelled batch: (B, K) logits and (B,) class indices."""
        assert self.accuracy is not None
        self.accuracy.update(logits, labels)

    def found(self, count: int = 3) -> list[Found]:
        """The best captions of the first images of this rank; ask before :meth:`finish`."""
        images, texts = _joined(self.retrieval.images), _joined(self.retrieval.texts)
        owners, text_owners = _joined(self.retrieval.owners), _joined(self.retrieval.text_owners)
        if images is None or texts is None or owners is None or text_owners is None:
            return []
        rows = []
        for i, picture in enumerate(self._shown):
            best = (texts @ images[i]).topk(min(count, len(texts))).indices.tolist()
            rows.append(Found(picture, [(self._texts[t], bool(text_owners[t] == owners[i])) for t in best]))
        return rows

    def finish(self) -> dict[str, Tensor]:
        """Scores over all ranks by name; then start afresh."""
        values = self.retrieval.compute()
        if self.accuracy is not None:
            values["accuracy"] = self.accuracy.compute()
        with torch.inference_mode(False):  # or their states could never be changed by a training run that follows
            self.retrieval.reset()
            if self.accuracy is not None:
                self.accuracy.reset()
        self._forget()
        return values
