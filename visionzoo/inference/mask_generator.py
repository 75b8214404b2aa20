"""Every object in an image: a grid of clicks, and of their masks those that are good and differ (arXiv 2304.02643, B).

Legend: P points, N masks of one chunk, (h, w) low-resolution masks, (height, width) the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from visionzoo.data.images import ImageInput, open_image
from visionzoo.data.sources.rle import RLE
from visionzoo.inference.device import own_precision
from visionzoo.inference.progress import track
from visionzoo.inference.regions import CROP_OVERLAP, generate_crop_boxes, is_box_near_crop_edge, remove_small_regions
from visionzoo.inference.sam_predictor import SamImage, SamPredictor, prompts_at_once
from visionzoo.inference.sam_transform import resize_coords
from visionzoo.models.sam.model import Sam
from visionzoo.models.sam.prompts import Prompts
from visionzoo.processors import usable_cores

T = TypeVar("T")
OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


def build_point_grid(points_per_side: int) -> np.ndarray:
    """Evenly spaced points, the middles of equal cells, row by row: (points_per_side ** 2, 2), (x, y) in 0..1."""
    places = np.linspace(0.5 / points_per_side, 1 - 0.5 / points_per_side, points_per_side)
    return np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)


@dataclass(frozen=True)
class MaskCandidate:
    """A mask on its way through the filters."""

    runs: RLE
    box: tuple[int, int, int, int]  #: x0, y0, x1, y1 in pixels of the image
    score: float  #: predicted IoU
    stability: float
    point: tuple[float, float]
    crop: tuple[int, int, int, int]


class _Seen(NamedTuple):
    """Scores of the masks of one image, whether or not they are kept."""

    scores: list[float]  #: the highest predicted IoU of each chunk
    stabilities: list[float]


class MaskGenerator:
    """Masks of everything in an image, with the interface of Meta's ``SamAutomaticMaskGenerator``.

    The same masks, for less work: prompts whose predicted quality is too low are never upscaled, boxes and areas are
    read off the runs of a mask, and masks are measured on the CPU while the model works on the next points.

    Threads may share one; ``highest_iou`` and ``highest_stability`` are then those of whichever ended last.
    """

    def __init__(
        self,
        model: Sam | SamPredictor,
        points_per_side: int | None = 32,
        points_per_batch: int | None = None,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = CROP_OVERLAP,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        """
        Args:
            model: made by ``create_sam``, or a predictor: of an exported one ``load_exported`` makes it. Each click has
                three answers, or one where ``model.ambiguous`` is false.
            points_per_side: of the grid of clicks; None where ``point_grids`` says them.
            points_per_batch: clicks decoded at a time; None for as many as fit into a gigabyte. The masks do not depend
                on it.
            pred_iou_thresh: masks of a lower predicted IoU are dropped; 0 and below keeps all.
            stability_score_thresh: masks whose outline moves more when the threshold does are dropped.
            stability_score_offset: how far the threshold is moved for that, in logits.
            box_nms_thresh: of two masks whose boxes overlap more than this IoU the better one stays.
            crop_n_layers: layers of crops that are searched beside the whole image, ``4 ** i`` in layer i.
            crop_nms_thresh: as ``box_nms_thresh``, between crops; smaller crops win.
            crop_overlap_ratio: share of the image's shorter side by which crops overlap in the first layer.
            crop_n_points_downscale_factor: each layer has so many times fewer points per side.
            point_grids: for each layer (P, 2) points in 0..1, in place of ``points_per_side``.
            min_mask_region_area: holes and islands below so many pixels are removed; needs OpenCV.
            output_mode: ``binary_mask``, ``uncompressed_rle`` or ``coco_rle``, which needs pycocotools.

        Raises:
            ValueError: for both or neither of a number of points and grids, too few grids, or an unknown mode.
            ImportError: if pycocotools is needed and not there.
        """
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("give either points_per_side or point_grids, not both and not neither")
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode={output_mode!r} must be one of {', '.join(OUTPUT_MODES)}")
        if crop_n_layers < 0 or crop_n_points_downscale_factor < 1:
            raise ValueError(
                f"crop_n_layers={crop_n_layers} must be at least 0, and "
                f"crop_n_points_downscale_factor={crop_n_points_downscale_factor} at least 1"
            )
        if points_per_batch is not None and points_per_batch < 1:
            raise ValueError(f"points_per_batch={points_per_batch} must be at least 1, or None")
        if points_per_side is not None:
            sides = [points_per_side // crop_n_points_downscale_factor**i for i in range(crop_n_layers + 1)]
            if min(sides) < 1:
                raise ValueError(f"points_per_side={points_per_side} leaves a layer of crops without points: {sides}")
            point_grids = [build_point_grid(side) for side in sides]
        assert point_grids is not None
        if len(point_grids) <= crop_n_layers:
            raise ValueError(f"{len(point_grids)} point_grids for {crop_n_layers + 1} layers; give one for each")
        if output_mode == "coco_rle":
            need_pycocotools(f"output_mode={output_mode!r}")
        self.point_grids = [np.asarray(grid, dtype=np.float64).reshape(-1, 2) for grid in point_grids]
        self.predictor = model if isinstance(model, SamPredictor) else SamPredictor(model)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        #: Of all masks of the last image, before any was dropped; of those whose predicted IoU was high enough.
        self.highest_iou = self.highest_stability = -math.inf

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device | None = None, **options: Any) -> MaskGenerator:
        """A generator with the model in a run folder; see :meth:`SamPredictor.load`, and ``__init__`` for options."""
        return cls(SamPredictor.load(source, device).model, **options)

    def __repr__(self) -> str:
        model, points = self.predictor.model, ", ".join(str(len(grid)) for grid in self.point_grids)
        (h, w), each = model.image_size, "3 masks" if model.ambiguous else "1 mask"
        return f"MaskGenerator({model.name}; {points} points, {each} each; {h}x{w} pixels; {model.device})"

    def generate(self, image: ImageInput, progress: bool | Callable[[int, int], None] = False) -> list[dict[str, Any]]:
        """Masks of everything in an image, best first within each crop.

        Args:
            image: (height, width, 3) uint8 RGB, or anything else that ``open_image`` takes.
            progress: True shows a bar on a terminal; a function is called with the steps that are done and all of
                them, and ends the search by raising.

        Returns:
            for each mask ``segmentation`` ((height, width) bool, or its runs), ``area`` in pixels, ``bbox`` (x, y,
            width, height), ``predicted_iou``, ``point_coords`` ([[x, y]] of the click), ``stability_score``, and
            ``crop_box`` (x, y, width, height) of the crop it was found in.

        Raises:
            ValueError: for an image that cannot be read, or an empty one.
        """
        pixels = np.asarray(open_image(image))
        size = (pixels.shape[0], pixels.shape[1])
        seen = _Seen([], [])
        crops = generate_crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio)
        steps = sum(-(-len(self.point_grids[layer]) // self._step()) for layer, _ in crops)
        chunks = iter(self._search(pixels, crops, seen))
        if callable(progress):
            chunks = _told(chunks, steps, progress)
        elif progress:
            chunks = track(chunks, steps, "clicks")
        by_crop: dict[tuple[int, ...], list[MaskCandidate]] = {tuple(crop): [] for _, crop in crops}
        for crop, found in chunks:
            by_crop[tuple(crop)] += found
        self.highest_iou = max(seen.scores, default=-math.inf)
        self.highest_stability = max((s for s in seen.stabilities if not math.isnan(s)), default=-math.inf)
        masks = [
            m for found in by_crop.values() for m in _box_nms(found, [m.score for m in found], self.box_nms_thresh)
        ]
        if len(crops) > 1:
            areas = [(m.crop[2] - m.crop[0]) * (m.crop[3] - m.crop[1]) for m in masks]
            masks = _box_nms(masks, [1 / a for a in areas], self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            masks = self._clean(masks)
        return [self._record(m) for m in masks]

    def _step(self) -> int:
        return self.points_per_batch or prompts_at_once(self.predictor.model)

    def _search(
        self, pixels: np.ndarray, crops: list[tuple[int, list[int]]], seen: _Seen
    ) -> Iterator[tuple[list[int], list[MaskCandidate]]]:
        """The masks of each chunk of points, in order. Masks are measured in threads while the model goes on."""
        size = (pixels.shape[0], pixels.shape[1])
        with ThreadPoolExecutor(_threads()) as pool:
            waiting: tuple[list[int], Callable[[], list[MaskCandidate]]] | None = None
            for layer, crop in crops:
                x0, y0, x1, y1 = crop
                image = self.predictor.embed_image(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
                points = self.point_grids[layer] * (x1 - x0, y1 - y0)
                for start in range(0, len(points), self._step()):
                    results = self._decode(image, points[start : start + self._step()], crop, size, pool, seen)
                    if waiting is not None:
                        yield waiting[0], waiting[1]()
                    waiting = crop, results
            if waiting is not None:
                yield waiting[0], waiting[1]()

    @torch.no_grad()
    def _decode(
        self,
        image: SamImage,
        points: np.ndarray,
        crop: list[int],
        size: tuple[int, int],
        pool: ThreadPoolExecutor,
        seen: _Seen,
    ) -> Callable[[], list[MaskCandidate]]:
        """Ask for the masks of some points of a crop; what comes back waits for them."""
        predictor, decoder = self.predictor, self.predictor.model.mask_decoder
        coords = torch.from_numpy(resize_coords(points, image.original_size, image.input_size)).float()[:, None]
        prompts = Prompts.of(coords, torch.ones(coords.shape[:2], dtype=torch.int64)).to(predictor.device)
        several = predictor.model.ambiguous
        with own_precision(predictor.model):
            decoded, scores = predictor.model.ask_scores(image.context, prompts, several)
        seen.scores.append(float(scores.max()))
        good = scores > self.pred_iou_thresh if self.pred_iou_thresh > 0 else torch.ones_like(scores, dtype=torch.bool)
        rows = good.any(dim=1).nonzero()[:, 0]
        with own_precision(predictor.model):
            low = decoder.masks(decoded.select(rows), several)[good[rows]].float().cpu().numpy()
        owners, values = good.nonzero()[:, 0].tolist(), scores[good].tolist()

        def measure(i: int) -> MaskCandidate | None:
            x, y = points[owners[i]].tolist()
            return self._measure(low[i], values[i], (x + crop[0], y + crop[1]), crop, size, image.input_size, seen)

        jobs = [pool.submit(measure, i) for i in range(len(owners))]
        return lambda: [found for job in jobs if (found := job.result()) is not None]

    def _measure(
        self,
        low: np.ndarray,
        score: float,
        point: tuple[float, float],
        crop: list[int],
        size: tuple[int, int],
        input_size: tuple[int, int],
        seen: _Seen,
    ) -> MaskCandidate | None:
        """One mask at the size of the image; None if a filter drops it. ``low``: (4 h, 4 w) logits."""
        x0, y0, x1, y1 = crop
        model = self.predictor.model
        logits = upscale_columns(low, model.image_size, input_size, (y1 - y0, x1 - x0))
        threshold, offset = model.mask_threshold, self.stability_score_offset
        outer = int(np.count_nonzero(logits > threshold - offset))
        inner = int(np.count_nonzero(logits > threshold + offset))
        stability = inner / outer if outer else float("nan")
        seen.stabilities.append(stability)
        if self.stability_score_thresh > 0 and not stability >= self.stability_score_thresh:
            return None
        columns = logits > threshold
        runs = RLE.of(columns)
        box = tuple(a + b for a, b in zip(runs.box, (x0, y0, x0, y0), strict=True))
        if is_box_near_crop_edge(np.array([box]), crop, size)[0]:
            return None
        if runs.size != size:
            whole = np.zeros((size[1], size[0]), dtype=bool)
            whole[x0:x1, y0:y1] = columns
            runs = RLE.of(whole)
        return MaskCandidate(runs, box, score, stability, point, (x0, y0, x1, y1))  # type: ignore[arg-type]

    def _clean(self, masks: list[MaskCandidate]) -> list[MaskCandidate]:
        """Remove small holes and islands, then what has become the same; untouched masks win."""
        cleaned, scores = [], []
        for found in masks:
            mask, changed = remove_small_regions(found.runs.mask(), self.min_mask_region_area)
            if changed:
                runs = RLE.of(np.ascontiguousarray(mask.T))
                found = replace(found, runs=runs, box=runs.box)
            else:
                found = replace(found, box=found.runs.box)
            cleaned.append(found)
            scores.append(float(not changed))
        return _box_nms(cleaned, scores, max(self.box_nms_thresh, self.crop_nms_thresh))

    def _record(self, found: MaskCandidate) -> dict[str, Any]:
        forms: dict[str, Callable[[RLE], Any]] = {
            "binary_mask": RLE.mask,
            "uncompressed_rle": RLE.uncompressed,
            "coco_rle": RLE.coco,
        }
        return {
            "segmentation": forms[self.output_mode](found.runs),
            "area": found.runs.area,
            "bbox": _box_xyxy_to_xywh(found.box),
            "predicted_iou": found.score,
            "point_coords": [list(found.point)],
            "stability_score": found.stability,
            "crop_box": _box_xyxy_to_xywh(found.crop),
        }


def upscale_columns(
    low: np.ndarray, model_size: tuple[int, int], input_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """``Sam.postprocess_masks`` for one mask, transposed, as runs want it: (4 h, 4 w) -> (width, height) float32.

    OpenCV's bilinear filter is PyTorch's, to the last bits, and takes a sixth of the time on one core.

    Args:
        low: logits.
        model_size: (H, W) of the padded input.
        input_size: (H', W') of what is not padding.
        size: (height, width).
    """
    import cv2

    columns = np.ascontiguousarray(low.T)
    columns = cv2.resize(columns, model_size, interpolation=cv2.INTER_LINEAR)[: input_size[1], : input_size[0]]
    if input_size != size:
        columns = cv2.resize(columns, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(columns)


def _told(chunks: Iterator[T], steps: int, progress: Callable[[int, int], None]) -> Iterator[T]:
    """``chunks``, with ``progress`` called before the first and after each."""
    progress(0, steps)
    for done, chunk in enumerate(chunks, 1):
        progress(done, steps)
        yield chunk


def _box_nms(masks: list[MaskCandidate], scores: list[float], threshold: float) -> list[MaskCandidate]:
    """Of masks with nearly the same box the one with the highest score, sorted by score."""
    if not masks:
        return []
    from torchvision.ops import batched_nms

    boxes = torch.tensor([m.box for m in masks], dtype=torch.float32)
    keep: Tensor = batched_nms(boxes, torch.tensor(scores), torch.zeros(len(masks)), threshold)
    return [masks[i] for i in keep.tolist()]


def _box_xyxy_to_xywh(box: tuple[int, int, int, int]) -> list[int]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _threads() -> int:
    return min(torch.get_num_threads(), usable_cores())


def need_pycocotools(what: str) -> None:
    """Raises ImportError, naming what needs it, unless pycocotools is there."""
    try:
        import pycocotools  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{what} needs pycocotools: pip install 'visionzoo[sam]'") from error
