"""Segment an image on request: a click, a box, or everything; a picture, and COCO's JSON for programs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from visionzoo.data.images import ImageInput, open_image
from visionzoo.data.sources.rle import RLE
from visionzoo.inference.device import resolve_device
from visionzoo.inference.mask_generator import MaskGenerator, need_pycocotools
from visionzoo.inference.named import weights_of
from visionzoo.inference.sam_predictor import SamPredictor, check_box, check_points
from visionzoo.models.bundle import read_config
from visionzoo.models.sam import Sam, create_sam
from visionzoo.models.sam.text_prompts import TEMPLATE, TextPrompts
from visionzoo.runs import RunFolder
from visionzoo.viz.overlay import mask_overlay
from visionzoo.weights.local import local_source
from visionzoo.weights.preprocessing import read_json


class Segmented(NamedTuple):
    """What came of one image."""

    masks: list[dict[str, Any]]  #: Meta's keys, ``segmentation`` (height, width) bool
    size: tuple[int, int]  #: (height, width)
    highest_iou: float = math.nan  #: predicted, of any mask, those that were dropped included
    highest_stability: float = math.nan  #: of any mask with a predicted IoU that was high enough; -inf for none


def load_sam(
    model: str | Path,
    *,
    weights: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
) -> Sam:
    """A run folder's model, or a new one.

    Args:
        model: a run folder, ``embedded``, ``vit_b``, ``vit_l``, ``vit_h``, or the name of a backbone.
        weights: for a name: what ``create_sam`` takes, or ``random``; it must be given.
        image_size: for a name.
        device: None for a GPU where there is one, otherwise the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown model, a name without ``weights``, unfitting weights, or ``weights`` or
            ``image_size`` given for a run.
    """
    model = local_source(model, "segment")
    if not os.path.isdir(model):
        given = weights_of(str(model), weights)
        return create_sam(str(model), weights=given, image_size=image_size).eval().to(resolve_device(device))
    if weights is not None or image_size is not None:
        raise ValueError(f"{model} has weights and an image size of its own; leave the options out")
    return SamPredictor.load(model, device).model


def segment_prompt(
    model: Sam | SamPredictor,
    image: ImageInput,
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
    box: Sequence[float] | None = None,
) -> Segmented:
    """The mask of one object, best of three for a lone click.

    Args:
        model: in eval mode, or what asks it.
        image: what ``open_image`` takes.
        points: (x, y) in pixels.
        labels: 1 or 0 for each.
        box: x0, y0, x1, y1.

    Raises:
        ValueError: for an unreadable image, no prompt, or one outside the image.
    """
    pixels = np.asarray(open_image(image))
    size = (pixels.shape[0], pixels.shape[1])
    if not len(points) and box is None:
        raise ValueError("say what to segment: a point, a box, or everything")
    # Before the image is encoded, which takes a while.
    if len(points):
        check_points(points, labels, size)
    if box is not None:
        check_box(box, size)
    predictor = model if isinstance(model, SamPredictor) else SamPredictor(model)
    predictor.set_image(pixels)
    masks, scores, _ = predictor.predict(
        np.array(points) if len(points) else None,
        np.array(labels) if len(points) else None,
        None if box is None else np.array(box),
        multimask_output=predictor.model.ambiguous and len(points) == 1 and box is None,
    )
    best = int(scores.argmax())
    record = _record(masks[best], float(scores[best]))
    return Segmented([{**record, "point_coords": [list(map(float, p)) for p in points]}], size)


def load_text_prompts(run: str | Path, text_model: str | None = None) -> TextPrompts:
    """What turns names into prompts for the model of a run.

    Args:
        run: folder of a run that was trained with ``--model.text_model``.
        text_model: the CLIP, where it is no longer where the run found it.

    Raises:
        ValueError: for a model that takes no names.
        FileNotFoundError: if the CLIP is not there.
    """
    config = read_config(run) if os.path.isdir(run) else None
    if config is None or config.architecture.get("text_dim") is None:
        raise ValueError(f"{run} takes no names as prompts; train one with train.py segment --model.text_model CLIP")
    origin = config.text_prompts or {}
    source = text_model or origin.get("model")
    if source is None:
        raise ValueError(f"{run} does not say which CLIP it was trained with; name it with --text-model")
    beside = Path(run).parent / Path(source).name  # runs that were moved together
    if text_model is None and not os.path.exists(source) and beside.is_dir():
        source = str(beside)
    if text_model is None and source.startswith("hf-hub:"):
        raise ValueError(
            f"{run} was trained with the CLIP {source}, and a run's word opens no network: say --text-model {source}"
        )
    there = os.path.exists if text_model else os.path.isdir
    if not source.startswith("hf-hub:") and not there(source):
        raise FileNotFoundError(f"the CLIP that {run} was trained with is not at {source}; name it with --text-model")
    return TextPrompts.load(source, origin.get("template", TEMPLATE))


def segment_text(model: Sam, image: ImageInput, names: Sequence[str], prompts: TextPrompts) -> Segmented:
    """A mask for each name: all that is so called, the best of three.

    Raises:
        ValueError: for an unreadable image, no name, or text of another width than the model takes.
    """
    if not names or not all(name.strip() for name in names):
        raise ValueError("say what to segment: a name such as 'a cat' is missing or empty")
    pixels = np.asarray(open_image(image))
    predictor = SamPredictor(model)
    predictor.set_image(pixels)
    records = []
    for name, text in zip(names, prompts.embed(names), strict=True):
        masks, scores, _ = predictor.predict(text=text)
        best = int(scores.argmax())
        records.append({**_record(masks[best], float(scores[best])), "name": name})
    return Segmented(records, (pixels.shape[0], pixels.shape[1]))


def _record(mask: np.ndarray, iou: float) -> dict[str, Any]:
    runs = RLE.of(np.ascontiguousarray(mask.T))
    x0, y0, x1, y1 = runs.box
    return {"segmentation": mask, "area": runs.area, "bbox": [x0, y0, x1 - x0, y1 - y0], "predicted_iou": iou}


def segment_all(model: Sam | SamPredictor, image: ImageInput, *, progress: bool = False, **options: Any) -> Segmented:
    """Masks of everything; ``options`` are those of :class:`MaskGenerator`."""
    pixels = np.asarray(open_image(image))
    generator = MaskGenerator(model, **options)
    masks = generator.generate(pixels, progress=progress)
    size = (pixels.shape[0], pixels.shape[1])
    return Segmented(masks, size, generator.highest_iou, generator.highest_stability)


def draw_segmented(
    image: ImageInput,
    result: Segmented,
    out: str | Path,
    *,
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
    box: Sequence[float] | None = None,
) -> Path:
    """Write the picture with its masks and prompts."""
    masks = [m["segmentation"] for m in result.masks]
    boxes = () if box is None else (box,)
    pixels, names = np.asarray(open_image(image)), [m.get("name", "") for m in result.masks]
    return mask_overlay(pixels, masks, out, points=points, labels=labels, boxes=boxes, names=names)


def coco_record(result: Segmented, name: str) -> dict[str, Any]:
    """COCO's instance JSON with one image and a category for each name, masks as run lengths.

    Raises:
        ImportError: without pycocotools.
    """
    need_pycocotools("COCO's JSON")
    height, width = result.size
    names = list(dict.fromkeys(mask.get("name", "object") for mask in result.masks)) or ["object"]
    annotations = []
    for i, mask in enumerate(result.masks, 1):
        more = {k: v for k, v in mask.items() if k not in ("segmentation", "name")}
        # JSON has no NaN: the stability of an empty mask.
        more = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in more.items()}
        runs = RLE.of(np.ascontiguousarray(mask["segmentation"].T))
        x0, y0, x1, y1 = runs.box  # Meta's boxes end at the last pixel, COCO's behind it
        more["bbox"] = [x0, y0, x1 - x0 + 1, y1 - y0 + 1] if runs.area else [0, 0, 0, 0]
        category = 1 + names.index(mask.get("name", "object"))
        annotations.append(
            {"id": i, "image_id": 1, "category_id": category, "iscrowd": 0, "segmentation": runs.coco(), **more}
        )
    return {
        "images": [{"id": 1, "file_name": name, "width": width, "height": height}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": annotations,
    }


def names_in_words(run: str) -> str:
    """How well a run told the names of one picture apart, which says what its answers to names are worth."""
    scores = read_json(RunFolder(run).results).get("scores", {}) if RunFolder(run).results.is_file() else {}
    gain, error = scores.get("text_gain"), scores.get("text_gain_error")
    if gain is None or error is None:
        return "names as prompts are experimental: whether this model tells names apart was not measured"
    against = f"its held-out objects have {gain:+.3f} ± {error:.3f} mean IoU against another name of the same picture"
    if gain > 2 * error:
        return f"names as prompts are experimental: {against}"
    return f"names as prompts do not work yet with this model, which hardly listens to them: {against}"
