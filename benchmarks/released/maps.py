"""Where models look: attention rolled out, and class-activation maps by gradients, of the same pictures.

Legend: B batch, C channels, D width, (H, W) pixels, (h, w) the grid of a map, T tokens, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from released.subject import Subject
from visionzoo.inference.attention import attention_heat

#: Pictures whose maps are compared, and the grid on which they are.
LOOKED, GRID = 48, 14
#: What a map shows, in the words of the page.
KINDS = {"cam": "Grad-CAM", "attention": "attention"}


def grad_cam(model: Any, images: Tensor, outputs: Tensor) -> Tensor:
    """Grad-CAM (arXiv 1610.02391, equations 1 and 2): where the evidence for an output is.

    Of the last map that the answer is read from. Where the head reads a class token alone, that is what the last
    block's attention sees: its normalised patches.

    Args:
        model: a classifier of :func:`visionzoo.create_classifier`, in evaluation mode.
        images: (B, C, H, W), normalised.
        outputs: (B,) of which output.

    Returns:
        (B, h, w), not negative.

    Raises:
        ValueError: for a model whose map cannot be had.
    """
    size = (images.shape[2], images.shape[3])
    with torch.no_grad():
        last = model.forward_features(images)
    if not isinstance(last, Tensor):
        raise ValueError(f"{model.name} has maps of several branches, and no last one")
    cam = _weighed(model, last, lambda x: model.forward_head(x), outputs, size)
    return cam if cam is not None else _before_last_block(model, images, outputs, size)


def _weighed(model: Any, maps: Tensor, answer: Any, outputs: Tensor, size: tuple[int, int]) -> Tensor | None:
    """The map of what ``answer`` makes of ``maps``; None if it does not read their places."""
    with torch.enable_grad():
        leaf = maps.detach().requires_grad_()
        (slope,) = torch.autograd.grad(answer(leaf).float().gather(1, outputs[:, None]).sum(), leaf)
    grid, slopes = model.split(leaf.detach(), size)[0].float(), model.split(slope, size)[0].float()
    if not slopes.any():
        return None
    return (slopes.mean((2, 3), keepdim=True) * grid).sum(1).relu()


def _before_last_block(model: Any, images: Tensor, outputs: Tensor, size: tuple[int, int]) -> Tensor:
    norm = getattr(model.blocks[-1], "norm1", None) if hasattr(model, "blocks") else None
    if norm is None:
        raise ValueError(f"{model.name} answers from a class token, and its blocks are not known")
    seen: list[Tensor] = []
    handle = norm.register_forward_hook(lambda _module, _args, out: seen.append(out.detach()))
    with torch.no_grad():
        model(images)
    handle.remove()

    def answer(leaf: Tensor) -> Tensor:
        handle = norm.register_forward_hook(lambda _module, _args, _out: leaf)
        try:
            return model(images)
        finally:
            handle.remove()

    cam = _weighed(model, seen[0], answer, outputs, size)
    if cam is None:
        raise ValueError(f"{model.name} reads no place of its last block")
    return cam


def look_at(subject: Subject, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """The maps of a model's own answers.

    Args:
        subject: the model.
        pictures: (H, W, 3) uint8, the same for every model.

    Returns:
        answers, and for each of :data:`KINDS` a map of ``GRID`` x ``GRID`` for each picture, the highest value 1, or
        why there is none.
    """
    model, question = subject.model, subject.question
    columns = torch.from_numpy(question.asked).to(next(model.parameters()).device)
    found: dict[str, Any] = {"answers": [], "cam": [], "attention": [], "left_out": {}}
    if "attention_maps" not in model.capabilities:
        found["left_out"]["attention"] = "it gives no attention weights"
    for batch in subject.batches([subject.resized(p) for p in pictures]):
        images = subject.normalize(batch)
        with torch.no_grad():
            outputs = columns[model(images).float()[:, columns].argmax(1)]
        found["answers"] += [subject.name_of(output) for output in outputs.tolist()]
        for kind in [k for k in KINDS if k not in found["left_out"]]:
            try:
                with torch.no_grad():
                    maps = attention_heat(model, images) if kind == "attention" else grad_cam(model, images, outputs)
            except ValueError as error:
                found["left_out"][kind] = str(error)
                continue
            found[kind] += _on_grid(maps).round(decimals=3).tolist()
    return found


def _on_grid(maps: Tensor) -> Tensor:
    """(B, h, w) -> (B, GRID, GRID) on the CPU, the highest value of each 1; nothing but zeros stays that."""
    same = F.interpolate(maps.float().cpu()[:, None], (GRID, GRID), mode="bilinear", antialias=True)[:, 0]
    return same / same.amax((1, 2), keepdim=True).clamp_min(1e-12)


def agreement(one: Sequence[Any], other: Sequence[Any]) -> tuple[float, float, int] | None:
    """Spearman's rank correlation of two models' maps of the same pictures.

    Returns:
        mean and standard deviation over pictures, and how many; None for fewer than two. A map without a highest place
        has no ranks and is left out.
    """
    pairs = [(np.ravel(a), np.ravel(b)) for a, b in zip(one, other, strict=True)]
    found = [float(spearmanr(a, b).statistic) for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
    return None if len(found) < 2 else (float(np.mean(found)), float(np.std(found, ddof=1)), len(found))
