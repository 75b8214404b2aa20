"""Masked pretraining without labels, before a network is trained by the equal recipe: MAE or SimMIM.

Legend: C channels, (H, W) pixels.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from comparison.models import Entry
from visionzoo.backbones import backbone_info, create_backbone
from visionzoo.macs import count_macs
from visionzoo.models.mae import create_mae
from visionzoo.models.masking import first_stage
from visionzoo.models.simmim import create_simmim
from visionzoo.runs import RunFolder

if TYPE_CHECKING:
    from visionzoo.data.classify import ClassifyData
    from visionzoo.models.mae import MAE
    from visionzoo.models.simmim import SimMIM
    from visionzoo.tasks.mae import MaeTask

#: The capability that a backbone needs for each method, in the order in which ``auto`` asks.
NEEDS = {"mae": "tokens", "simmim": "masked_image"}
#: Area of the random region, as a share of the image: arXiv 2111.06377, appendix A.1; 2111.09886, section 4.1.
CROP_SCALE = {"mae": (0.2, 1.0), "simmim": (0.67, 1.0)}
#: SimMIM hides squares of 32 pixels in images of 192 (2111.09886, section 4.1).
UNIT_SHARE = 32 / 192


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What one pretraining is made of; plain types, since it travels to a process of its own."""

    model: str
    method: Literal["mae", "simmim"]
    steps: int
    batch_size: int
    image_size: int
    base_lr: float  #: for 256 images a step
    seed: int
    path: str
    val_path: str | None
    num_workers: int
    precision: str
    device: str


def methods(entries: Sequence[Entry], image_size: int, asked: str) -> tuple[dict[str, str], dict[str, str]]:
    """How each network is pretrained, by name; and why others are not.

    Args:
        entries: the networks.
        image_size: edge of the square input in pixels.
        asked: auto, mae or simmim.

    Raises:
        ValueError: if none of them can be.
    """
    found: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for entry in entries:
        try:
            found[entry.name] = method_of(entry.name, image_size, asked)
        except ValueError as error:
            left_out[entry.name] = str(error)
    if not found:
        reasons = "; ".join(f"{name.removeprefix('timm/')}: {why}" for name, why in left_out.items())
        raise ValueError(f"pretrain.method={asked} suits none of the models ({reasons}); leave pretrain.steps out")
    return found, left_out


def method_of(name: str, image_size: int, asked: str) -> str:
    """The method that a network is pretrained by; it is built without memory to see that it works.

    Raises:
        ValueError: if there is none, with the reason.
    """
    have = backbone_info(name, image_size).capabilities
    for method in NEEDS if asked == "auto" else (asked,):
        if NEEDS[method] in have:
            without_memory(name, method, image_size)
            return method
    if asked == "auto":
        raise ValueError("it can neither drop tokens (MAE) nor take a mask token (SimMIM)")
    raise ValueError({"mae": "it cannot drop tokens", "simmim": "it cannot take a mask token"}[asked])


def without_memory(name: str, method: str, image_size: int) -> MAE | SimMIM:
    """The model on the meta device. Raises ValueError for an image that does not divide."""
    with torch.device("meta"):
        if method == "mae":
            return create_mae(name, image_size=image_size)
        return create_simmim(name, image_size=image_size, mask_patch_size=mask_unit(name, image_size))


def mask_unit(name: str, image_size: int) -> int:
    """Edge in pixels of what SimMIM hides at once: of those that divide the image, the nearest to the paper's share.

    Raises:
        ValueError: if none does.
    """
    with torch.device("meta"):
        encoder = create_backbone(name, image_size=image_size)
    patch, _ = first_stage(encoder)
    fitting = [m for m in range(patch, image_size, patch) if image_size % math.lcm(m, encoder.stride) == 0]
    if not fitting:
        raise ValueError(f"{image_size} pixels are no multiple of its stride of {encoder.stride}")
    return min(fitting, key=lambda m: abs(m - UNIT_SHARE * image_size))


def build(run: Pretraining) -> tuple[MaeTask, ClassifyData]:
    """The product's task, and the training images of the trainings that follow; their labels are not read."""
    from pytorch_lightning import seed_everything

    from comparison.task import equal_preprocess
    from comparison.training import open_data
    from visionzoo.tasks.mae import MaeTask

    data = open_data(
        run.path,
        run.val_path,
        batch_size=run.batch_size,
        num_workers=run.num_workers,
        seed=run.seed,
        crop_scale=CROP_SCALE[run.method],
        policy="none",
    )
    seed_everything(run.seed, verbose=False)
    unit = mask_unit(run.model, run.image_size) if run.method == "simmim" else None
    task = MaeTask(
        backbone=run.model,
        method=run.method,
        image_size=run.image_size,
        mask_patch_size=unit,
        base_lr=run.base_lr,
    )
    task.model.preprocess = equal_preprocess(run.image_size)
    task.use_model(task.model, task.in_chans)
    return task, data


def pretrain(run: Pretraining, folder: Path, weights: Path) -> dict[str, Any]:
    """Pretrain, or go on with what ``folder`` holds.

    Args:
        run: what is done.
        folder: of the run.
        weights: the folder that the learned weights go to, whole or not at all.

    Returns:
        what :func:`comparison.training.fit` does, and the multiply-adds of an image, forward.

    Raises:
        RunInterruptedError: after a signal; the run is saved.
    """
    from comparison.training import fit

    task, data = build(run)
    found = fit(
        task, data, folder, steps=run.steps, seed=run.seed, clip=None, precision=run.precision, device=run.device
    )
    made, aside = RunFolder(folder), weights.with_name(f"{weights.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for file in (made.model, made.model_config):
        shutil.copy2(file, aside / file.name)
    shutil.rmtree(weights, ignore_errors=True)
    aside.rename(weights)
    return {**found, "gmacs": forward_gmacs(run.model, run.method, run.image_size)}


def forward_gmacs(name: str, method: str, image_size: int) -> float:
    """1e9 multiply-adds of the loss of one image, decoder included; a backward pass takes twice as many."""
    model = without_memory(name, method, image_size)
    image = torch.zeros(1, 3, image_size, image_size, device="meta")
    with torch.no_grad():
        return count_macs(lambda: model.loss(image)) / 1e9
