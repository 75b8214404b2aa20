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
from torchmetrics.utilities import dim_zero_cat

from visionzoo.metrics.retrieval import retrieval_recall
from visionzoo.tasks.classify_evaluation import Answers, EvaluationResults, fewer
from visionzoo.tasks.gathering import from_all_ranks
from visionzoo.tasks.pictures import PictureChoice
from visionzoo.tasks.retrieval_pictures import Retrievals, choose_retrievals

RECALLS = (1, 5, 10)
#: Batches of answers that are put together at a time.
MERGE = 64
#: Held-out images on the sheet of what was found for them.
SHOWN = 12


class Found(NamedTuple):
    """The captions that were most similar to one image."""

    image: np.ndarray  #: (H, W, C) uint8
    captions: list[tuple[str, bool]]  #: best first, and whether it is one of its own


class Retrieval(Metric):
    """Recall at 1, 5 and 10 both ways, over the features of all ranks.

    ``width`` is E. The features of the whole set are kept: 4 E bytes for each image and caption.
    """

    full_state_update = False
    images: list[Tensor]
    owners: list[Tensor]
    texts: list[Tensor]
    text_owners: list[Tensor]
    groups: list[Tensor]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.keep = False  #: whether :meth:`compute` leaves what it compared
        #: images (N, E), texts (M, E), image of each text (M,), positions (N,), groups (M,)
        self.kept: tuple[Tensor, ...] | None = None
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

    def join(self) -> None:
        """Have something of the right shape and type on every rank, also where there were no images to see."""
        nothing, none = (torch.empty(0, *s, device=self.device) for s in ((self.width,), ()))
        self.update(nothing, nothing, none.long(), none.long(), none.long())

    def compute(self) -> dict[str, Tensor]:
        """Recalls by name, and their mean; nothing if nothing was taken in. Call :meth:`join` first."""
        images = dim_zero_cat(self.images)
        if not len(images):
            return {}
        owners, texts, text_owners, groups = map(dim_zero_cat, (self.owners, self.texts, self.text_owners, self.groups))
        order = owners.argsort()  # positions need not be consecutive: unreadable images are left out
        place = torch.searchsorted(owners[order], text_owners)
        if self.keep:  # of all ranks, which torchmetrics has put together for this call alone
            self.kept = images[order], texts, place, owners[order], groups
        recalls = retrieval_recall(images[order], texts, place, RECALLS, groups)
        values = {name: torch.tensor(value, device=images.device) for name, value in recalls.items()}
        return {**values, "recall_mean": torch.stack(list(values.values())).mean()}


def text_groups(ids: Tensor) -> Tensor:
    """(T,) int64, equal where the (T, L) token ids are, on every rank: what the model reads alike is one text."""
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in ids.cpu().numpy())
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)


class Share(Metric):
    """How many of how many, over all ranks: (2,) int64."""

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", default=torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, hits: int = 0, total: int = 0) -> None:
        """Count ``hits`` of ``total``."""
        self.counts[0] += hits  # numbers, not a tensor of them: that would be a copy, for which training waits
        self.counts[1] += total

    def compute(self) -> Tensor:
        """(2,) hits and total, over all ranks."""
        return self.counts


class ClipEvaluation(nn.Module):
    """Both scores, and what the sheet of found captions is drawn from.

    Args:
        width: E.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.retrieval = Retrieval(width)
        self.right = Share()
        self.zero_shot: EvaluationResults | None = None  #: the last evaluation's, where it was to be kept
        self.retrievals: Retrievals | None = None  #: likewise
        self._forget()

    def _forget(self) -> None:
        self._shown: list[np.ndarray] = []
        self._texts: list[str] = []
        self._answers: list[Answers] = []
        self._pictures: PictureChoice | None = None
        self.retrieval.keep, self.retrieval.kept = False, None

    def keep_answers(self) -> None:
        """Keep of the evaluation that begins what a page shows; call it on every rank."""
        self._pictures, self.retrieval.keep = PictureChoice(), True

    def add_captions(
        self,
        image_features: Tensor,
        text_features: Tensor,
        index: Tensor,
        text_image: Tensor,
        images: Tensor,
        texts: Sequence[str],
        ids: Tensor,
    ) -> None:
        """A captioned batch; of ``images`` (B, C, H, W) uint8 and ``texts`` some are kept for the sheet. ``ids`` (T, L)
        are the texts as the model reads them."""
        groups = text_groups(ids).to(text_image.device)
        self.retrieval.update(image_features, text_features, index, text_image, groups)
        room = SHOWN - len(self._shown)
        self._shown += [image.permute(1, 2, 0).cpu().numpy() for image in images[: max(room, 0)]]
        self._texts += texts

    def add_labels(self, logits: Tensor, labels: Tensor, images: Tensor, index: Tensor) -> None:
        """A labelled batch: (B, K) logits, (B,) class indices, (B, C, H, W) uint8 and (B,) positions in the data."""
        self.right.update(int((logits.argmax(dim=1) == labels).sum()), len(labels))
        if self._pictures is not None:
            self._pictures.add(logits, labels, images, index)
            self._answers.append(Answers(logits.float().cpu(), labels.cpu(), index.cpu()))
            self._answers = [fewer(self._answers)] if len(self._answers) > MERGE else self._answers

    def found(self, count: int = 3) -> list[Found]:
        """The best different captions of the first images of this rank; ask before :meth:`finish`."""
        if not self._shown:
            return []
        seen = self.retrieval
        images, texts, owners, text_owners = map(dim_zero_cat, (seen.images, seen.texts, seen.owners, seen.text_owners))
        places = list({text: place for place, text in enumerate(self._texts)}.values())  # one of each text
        different = texts[places]
        rows = []
        for i, picture in enumerate(self._shown):
            own = {self._texts[t] for t in (text_owners == owners[i]).nonzero()[:, 0].tolist()}
            best = (different @ images[i]).topk(min(count, len(places))).indices.tolist()
            names = [self._texts[places[t]] for t in best]
            rows.append(Found(picture, [(name, name in own) for name in names]))
        return rows

    def _zero_shot(self) -> EvaluationResults | None:
        """What was answered on all ranks, where it was kept."""
        if self._pictures is None:
            return None
        answers = from_all_ranks([fewer(self._answers)] if self._answers else [])
        pictures = self._pictures.finish()
        if not answers:
            return None
        every = fewer(answers)
        classes = every.logits.shape[1]
        counts = torch.zeros(classes, classes, dtype=torch.long)
        counts.index_put_((every.labels, every.logits.argmax(1)), torch.ones_like(every.labels), accumulate=True)
        return EvaluationResults(counts, answers=every, pictures=pictures)

    def _retrievals(self) -> Retrievals | None:
        """What was found on all ranks, where it was kept; ask after the scores."""
        if not self.retrieval.keep:
            return None
        words = from_all_ranks(self._texts)
        if self.retrieval.kept is None:
            return None
        images, texts, owner, positions, groups = self.retrieval.kept
        return choose_retrievals(images, texts, owner, positions, groups, words)

    def finish(self) -> dict[str, Tensor]:
        """Scores over all ranks by name; then start afresh."""
        self.zero_shot = self._zero_shot()
        self.retrieval.join()
        self.right.update()  # with nothing: torchmetrics warns of a metric that was never updated
        values = self.retrieval.compute()
        self.retrievals = self._retrievals()
        right, total = self.right.compute()
        if total:
            values["accuracy"] = right / total
        with torch.inference_mode(False):  # or their states could never be changed by a training run that follows
            self.retrieval.reset()
            self.right.reset()
        self._forget()
        return values
