"""Simulated conversations with a promptable model, for training and for evaluation (arXiv 2304.02643, appendix A).

Legend: N objects, P points, (H, W) pixels of the model's input, (h, w) of the masks as they come out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.losses.segmentation import mask_iou
from visionzoo.metrics.clicks import Clicks, central_clicks, noisy_boxes, random_clicks
from visionzoo.metrics.segmentation import mask_boxes
from visionzoo.models.sam.model import Sam, SamOutput
from visionzoo.models.sam.prompts import IGNORED, NOT_A_POINT, Prompts, corner_labels
from visionzoo.types import SegmentBatch, to_device

#: Objects that are asked about at a time in an evaluation, so that an image with many of them fits into memory.
OBJECTS_AT_ONCE = 32


class Objects(NamedTuple):
    """What is asked about."""

    masks: Tensor  #: (N, H, W) bool, none empty
    image_index: Tensor  #: (N,) int64
    valid: Tensor  #: (N, H, W) bool, False for padding

    @classmethod
    def of(cls, batch: SegmentBatch) -> Objects:
        """All objects of a batch."""
        return cls(batch.masks, batch.image_index, batch.valid[batch.image_index])

    def select(self, index: slice) -> Objects:
        """Some of them."""
        return Objects(self.masks[index], self.image_index[index], self.valid[index])


def point_prompts(clicks: Clicks, image_index: Tensor) -> Prompts:
    """A first click on each object: two tokens, the click and Meta's padding."""
    points = torch.stack((clicks.points, torch.zeros_like(clicks.points)), dim=1)
    labels = torch.stack((clicks.labels, torch.full_like(clicks.labels, NOT_A_POINT)), dim=1)
    return Prompts(points, labels, image_index=image_index)


def box_prompts(boxes: Tensor, image_index: Tensor) -> Prompts:
    """A box around each object, (N, 4): two tokens, its corners."""
    return Prompts(boxes.reshape(-1, 2, 2).float(), corner_labels(boxes), image_index=image_index)


def add_clicks(prompts: Prompts, clicks: Clicks, masks: Tensor) -> Prompts:
    """One more click on each object, none where there is no error, and the last answer, (N, 1, h, w) logits."""
    labels = torch.where(clicks.found, clicks.labels, IGNORED)
    return prompts._replace(
        points=torch.cat((prompts.points, clicks.points[:, None]), dim=1),
        labels=torch.cat((prompts.labels, labels[:, None]), dim=1),
        masks=masks,
    )


def best_masks(output: SamOutput) -> Tensor:
    """(N, 1, h, w) logits of the mask that each prompt's answer trusts most."""
    best = output.scores.argmax(dim=1)
    return output.masks[torch.arange(len(best), device=best.device), best][:, None]


def upscale(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, h, w) logits -> (N, H, W) logits."""
    return F.interpolate(masks.float(), size, mode="bilinear", align_corners=False)[:, 0]


class Answer(NamedTuple):
    """One answer of a conversation, about n of the N objects."""

    output: SamOutput  #: of n
    prompts: Prompts  #: n of them
    rows: Tensor  #: (n,) int64, which objects


class Draws(NamedTuple):
    """The random numbers of a conversation. Those of an object do not depend on which others are asked about."""

    boxed: Tensor  #: (N,) bool on the CPU, first shown by a box
    #: (N,) bool, whose first prompt means one thing, and so has the one answer as well as the three; on the CPU too,
    #: since it decides how many answers there are
    clear: Tensor
    box_noise: Tensor  #: (N, 4) normal
    places: Tensor  #: (N, 1 + clicks) in [0, 1), where each click falls among the pixels that it may fall on
    early: int  #: the corrective click after which a round without one comes; -1 for none

    @classmethod
    def of(cls, objects: Objects, *, clicks: int, mask_rounds: int, box_share: float, ambiguous: bool = True) -> Draws:
        """Draw all of them; see :func:`training_rounds`."""
        n, device = len(objects.masks), objects.masks.device
        boxed = torch.rand(n) < box_share
        return cls(
            boxed=boxed,
            clear=boxed if ambiguous else torch.ones_like(boxed),
            box_noise=torch.randn(n, 4, device=device),
            places=torch.rand(n, 1 + clicks, device=device),
            early=torch.randint(clicks, (1,)).tolist()[0] if clicks and mask_rounds > 1 else -1,
        )

    def select(self, rows: Tensor) -> Draws:
        """Those of some objects."""
        here = rows.cpu()
        return Draws(self.boxed[here], self.clear[here], self.box_noise[rows], self.places[rows], self.early)


def training_rounds(
    model: Sam,
    embeddings: Tensor,
    objects: Objects,
    *,
    clicks: int,
    mask_rounds: int,
    box_share: float,
    draws: Draws | None = None,
) -> Iterator[list[Answer]]:
    """The answers that are trained, round by round: to a first click or a noisy box, to corrective clicks, and without
    a further click.

    The algorithm is that of appendix A. A first click is drawn evenly from the object, a corrective one from where the
    last mask is wrong. Each round gets the last mask back as logits, without its gradient: of three masks the one that
    the model trusts most. In the rounds without a click nothing else is new; one of them comes at a random place after
    one of the clicks, the others at the end.

    A first prompt may mean several things and has three answers; later ones are clear and have one. A box is clear as
    well, and is asked for one mask when the model is used, so it has both: those that began with a box come twice. So
    do all where clicks are not ambiguous (``model.ambiguous``), and the one mask is what later rounds get back.

    No round has a gradient to an earlier one: each may have its backward pass before the next is asked for, and memory
    then holds the activations of one. Both answers of the first are of one graph.

    Args:
        model: the network.
        embeddings: (B, C, h', w').
        objects: N of them.
        clicks: corrective clicks; 8 in the paper.
        mask_rounds: rounds without a further click; 2 in the paper.
        box_share: chance that an object is first shown by a box; one half in the paper.
        draws: the random numbers; None draws them.
    """
    n, size = len(objects.masks), objects.masks.shape[-2:]
    if draws is None:
        draws = Draws.of(
            objects, clicks=clicks, mask_rounds=mask_rounds, box_share=box_share, ambiguous=model.ambiguous
        )
    places = iter(draws.places.unbind(dim=1))
    first = random_clicks(torch.zeros_like(objects.masks), objects.masks, draw=next(places))
    by_click = point_prompts(first, objects.image_index)
    boxes = noisy_boxes(mask_boxes(objects.masks), (size[0], size[1]), draw=draws.box_noise)
    by_box = box_prompts(boxes, objects.image_index)
    boxed, early = to_device(draws.boxed, objects.masks.device), draws.early
    prompts = Prompts(
        torch.where(boxed[:, None, None], by_box.points, by_click.points),
        torch.where(boxed[:, None], by_box.labels, by_click.labels),
        image_index=objects.image_index,
    )
    steps = [True] * clicks
    if early >= 0:
        steps.insert(early + 1, False)
    steps += [False] * (mask_rounds - (early >= 0))

    every = torch.arange(n, device=objects.masks.device)
    both = model.decode(embeddings, prompts, None)
    output = SamOutput(both.masks[:, 1:], both.scores[:, 1:])
    one = SamOutput(both.masks[:, :1], both.scores[:, :1])
    rows = to_device(draws.clear.nonzero()[:, 0], objects.masks.device)
    of_clear = Answer(SamOutput(one.masks[rows], one.scores[rows]), prompts.select(rows), rows)
    yield [Answer(output, prompts, every), of_clear]
    if not model.ambiguous:
        output = one
    for is_click in steps:
        last = best_masks(output).detach()
        if is_click:
            seen = (upscale(last, (size[0], size[1])) > 0) & objects.valid
            prompts = add_clicks(prompts, random_clicks(seen, objects.masks, draw=next(places)), last)
        else:
            prompts = prompts._replace(masks=last)
        output = model.decode(embeddings, prompts, False)
        yield [Answer(output, prompts, every)]


class PromptAnswers(NamedTuple):
    """What a model answers in an evaluation."""

    click_ious: Tensor  #: (N, K) after 1 to K clicks
    box_iou: Tensor  #: (N,)
    points: Tensor  #: (N, K, 2), the clicks
    labels: Tensor  #: (N, K); -2 where a mask was right already
    boxes: Tensor  #: (N, 4)
    click_masks: Tensor | None  #: (N, K, H, W) bool, where they were to be kept
    box_masks: Tensor  #: (N, H, W) bool


@torch.no_grad()
def evaluate_prompts(
    model: Sam, embeddings: Tensor, objects: Objects, *, clicks: int, keep_masks: bool = False
) -> PromptAnswers:
    """Ask a model about objects as a careful user would: the same clicks every time.

    The first click is in the middle of the object, each further one in the middle of the largest error. The answer to
    one click is the one of three that the model trusts most, or the only one where ``model.ambiguous`` is false; a box
    has one answer.

    Args:
        model: the network.
        embeddings: (B, C, h', w').
        objects: N of them, at least one.
        clicks: K.
        keep_masks: keep the masks after every click, for a picture.
    """
    parts = [
        _evaluate(model, embeddings, objects.select(slice(start, start + OBJECTS_AT_ONCE)), clicks, keep_masks)
        for start in range(0, len(objects.masks), OBJECTS_AT_ONCE)
    ]
    return PromptAnswers(*(None if x[0] is None else torch.cat(x) for x in zip(*parts, strict=True)))  # type: ignore[arg-type]


def _evaluate(model: Sam, embeddings: Tensor, objects: Objects, clicks: int, keep_masks: bool) -> PromptAnswers:
    size = (objects.masks.shape[-2], objects.masks.shape[-1])
    masks = torch.zeros_like(objects.masks)
    ious, kept, points, labels = [], [], [], []
    prompts: Prompts | None = None
    output: SamOutput | None = None
    for _ in range(clicks):
        click = central_clicks(masks, objects.masks)
        if prompts is None or output is None:
            prompts = point_prompts(click, objects.image_index)
        else:
            prompts = add_clicks(prompts, click, best_masks(output))
        output = model.decode(embeddings, prompts, multimask=model.ambiguous and prompts.masks is None)
        masks = (upscale(best_masks(output), size) > 0) & objects.valid
        ious.append(mask_iou(masks, objects.masks))
        points.append(click.points)
        labels.append(torch.where(click.found, click.labels, IGNORED))
        if keep_masks:
            kept.append(masks)
    boxes = mask_boxes(objects.masks).float()
    output = model.decode(embeddings, box_prompts(boxes, objects.image_index), multimask=False)
    box_masks = (upscale(output.masks, size) > 0) & objects.valid
    return PromptAnswers(
        click_ious=torch.stack(ious, dim=1),
        box_iou=mask_iou(box_masks, objects.masks),
        points=torch.stack(points, dim=1),
        labels=torch.stack(labels, dim=1),
        boxes=boxes,
        click_masks=torch.stack(kept, dim=1) if keep_masks else None,
        box_masks=box_masks,
    )
