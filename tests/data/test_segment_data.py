"""Images with masks: every kind of annotation, masks that follow their image, and what is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor, nn

from visionzoo.data.images import UnreadableImage, open_values
from visionzoo.data.segment import SegmentData
from visionzoo.data.sources.rle import read_segmentation
from visionzoo.data.transforms import EvalTransform
from visionzoo.data.views import TrainView, ViewOptions, eval_grid
from visionzoo.types import LEFT_OUT, Preprocess, SegmentBatch

SPEC = Preprocess(image_size=(32, 32), resize_mode="longest", pad_anchor="top_left")
SPEC_128 = Preprocess(image_size=(128, 128), resize_mode="longest", pad_anchor="top_left")
VARIED = {"crop": "scale_jitter", "hflip": 0.5, "color_jitter": 0.1}


def open_data(path: str | Path, spec: Preprocess = SPEC, **options: Any) -> SegmentData:
    data = SegmentData(str(path), **{"batch_size": 4, "num_workers": 0, **options})
    data.preprocess = spec
    data.setup("fit")
    return data


def epoch(data: SegmentData, number: int = 0) -> list[SegmentBatch]:
    data.start = (number, 0)
    return list(data.train_dataloader())


def validation(data: SegmentData) -> list[SegmentBatch]:
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    return list(loader)


def same(ours: list[SegmentBatch], theirs: list[SegmentBatch]) -> bool:
    return len(ours) == len(theirs) and all(
        all(torch.equal(x, y) if isinstance(x, Tensor) else tuple(x) == tuple(y) for x, y in zip(a, b, strict=True))
        for a, b in zip(ours, theirs, strict=True)
    )


def squares(count: int, size: tuple[int, int] = (40, 30), edge: int = 8) -> np.ndarray:
    """(H, W) uint8 with ``count`` squares of values 1, 2, ... beside one another; ``size`` is (width, height)."""
    values = np.zeros((size[1], size[0]), dtype=np.uint8)
    for k in range(count):
        left, top = 2 + (k % 4) * (edge + 1), 2 + (k // 4) * (edge + 1)
        values[top : top + edge, left : left + edge] = k + 1
    return values


def paint(values: np.ndarray) -> Image.Image:
    """A picture in which each object has its own grey: 20 times its value."""
    return Image.fromarray(np.repeat((values * 20)[:, :, None], 3, axis=2).astype(np.uint8))


def write_pair(folder: Path, name: str, values: np.ndarray, picture: Image.Image | None = None) -> None:
    for kind, image in (("images", picture or paint(values)), ("masks", Image.fromarray(values))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image.save(folder / kind / f"{name}.png")


@pytest.fixture
def label_maps(tmp_path: Path) -> Path:
    root = tmp_path / "maps"
    for i in range(8):
        write_pair(root / "train", str(i), squares(1 + i))
    for i in range(3):
        write_pair(root / "val", str(i), squares(2 * i))
    return root


# Run lengths and polygons


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (40, 61)])
def test_run_lengths_agree_with_pycocotools(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = rng.random(shape) < share
        packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        text = {"size": packed["size"], "counts": packed["counts"].decode()}
        for form in (packed, text):
            assert np.array_equal(read_segmentation(form, *shape).mask(), mask)
        flat = mask.T.reshape(-1).astype(int)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
        counts = np.diff([0, *edges, flat.size]).tolist()
        plain = {"size": list(shape), "counts": counts}
        assert np.array_equal(read_segmentation(plain, *shape).mask(), mask)


def test_polygons_agree_with_pycocotools() -> None:
    polygons = [[2.0, 2.0, 20.5, 3.0, 11.0, 17.0], [15, 15, 28, 15, 28, 19, 15, 19]]
    theirs = coco.decode(coco.merge(coco.frPyObjects(polygons, 20, 30))).astype(bool)
    ours = read_segmentation([*polygons, [1, 1, 5, 5]], 20, 30).mask()
    assert np.array_equal(ours, theirs), "two corners cover nothing"
    assert not read_segmentation([[1, 1, 5, 5]], 20, 30).mask().any()
    assert read_segmentation([[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]], 4, 6).mask().all()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [5, 4], "counts": [20]}, "a mask has size"),
        ({"size": [4, 5], "counts": [5, 5]}, "they fill 10 of 20 pixels"),
        ({"size": [4, 5], "counts": [-5, 25]}, "whole numbers from 0 on"),
        ({"size": [4, 5], "counts": "0 "}, "a character"),
        ({"size": [4, 5], "counts": "T"}, "cut off inside a number"),
        ({"size": [4, 5], "counts": ""}, "they fill 0"),
        ({"counts": [20]}, "neither polygons nor run lengths"),
        ("text", "neither polygons nor run lengths"),
        ([1, 2, 3, 4, 5], "a polygon must be a flat list"),
        ([[1, 2, 3, 4, 5]], "a polygon must be a flat list"),
        ([[1, 2, 3, 4, 5, float("nan")]], "a polygon must be a flat list"),
        ([["a", "b", "c", "d", "e", "f"]], "a polygon must be a flat list"),
    ],
)
def test_damaged_segmentations_are_unreadable(segmentation: Any, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        read_segmentation(segmentation, 4, 5)


def test_random_text_never_gets_through() -> None:
    """Such counts corrupt pycocotools' memory."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        counts = bytes(rng.integers(33, 127, rng.integers(0, 12)).tolist())
        try:
            runs = read_segmentation({"size": [10, 12], "counts": counts}, 10, 12)
        except UnreadableImage:
            continue
        assert runs.mask().shape == (10, 12)


# Views


@pytest.mark.parametrize("mode", ["longest", "squash", "shortest"])
@pytest.mark.parametrize("anchor", ["center", "top_left"])
@pytest.mark.parametrize("size", [(40, 30), (17, 64), (32, 32), (5, 9)])
def test_masks_follow_the_models_own_geometry(mode: str, anchor: str, size: tuple[int, int]) -> None:
    spec = Preprocess(
        image_size=(24, 32), resize_mode=mode, pad_anchor=anchor, interpolation="nearest", crop_pct=0.9, pad_value=255
    )
    values = np.random.default_rng(0).integers(0, 2, (size[1], size[0])).astype(np.uint8)
    transform = EvalTransform(spec)
    grid = eval_grid(transform, size[1], size[0])
    image = transform(Image.fromarray(np.repeat((values * 100)[:, :, None], 3, axis=2)))[0].numpy()
    assert np.array_equal(image == 100, grid.take(values.astype(bool)))
    assert np.array_equal(image != 255, grid.valid())


@pytest.mark.parametrize("crop", ["scale_jitter", "random_resized", "resize"])
@pytest.mark.parametrize("anchor", ["center", "top_left"])
def test_masks_follow_their_image_through_augmentation(label_maps: Path, crop: str, anchor: str) -> None:
    spec = Preprocess(
        image_size=(32, 48), resize_mode="longest", pad_anchor=anchor, interpolation="nearest", pad_value=255
    )
    data = open_data(label_maps, spec, crop=crop, hflip=0.5, vflip=0.5)
    padded = mirrored = 0
    for number in range(3):
        for batch in epoch(data, number):
            assert int(batch.image_index.max()) == 3
            assert batch.bad == ()
            for mask, b in zip(batch.masks, batch.image_index, strict=True):
                greys = batch.images[b, 0][mask].unique().tolist()
                assert len(greys) == 1, "an object has one grey"
                assert greys[0] > 0
                assert torch.equal(batch.images[b, 0] == greys[0], mask), "and all of that grey is the object"
            assert torch.equal(batch.images[:, 0] == 255, ~batch.valid)
            padded += int((~batch.valid).any(dim=(1, 2)).sum())
            mirrored += int((batch.masks.flatten(1).float().argmax(1) > 400).sum())
            if anchor == "top_left":
                assert batch.valid[:, 0, 0].all(), "mirroring leaves the padding where the model expects it"
    assert (padded > 0) == (crop != "random_resized")
    assert mirrored


def test_colour_changes_pixels_and_not_masks(label_maps: Path) -> None:
    plain, coloured = (epoch(open_data(label_maps, color_jitter=c)) for c in (0.0, 0.4))
    assert torch.equal(plain[0].masks, coloured[0].masks)
    assert not torch.equal(plain[0].images, coloured[0].images)
    assert (coloured[0].images.movedim(1, -1)[~coloured[0].valid] == 0).all(), "padding keeps its colour"
    assert open_data(label_maps).fixed_images
    assert not open_data(label_maps, hflip=0.5).fixed_images


def test_views_are_a_pure_function_of_seed_epoch_and_sample(label_maps: Path) -> None:
    first = epoch(open_data(label_maps, **VARIED))
    assert same(first, epoch(open_data(label_maps, **VARIED)))
    assert not same(first, epoch(open_data(label_maps, **VARIED), 1))
    assert not same(first, epoch(open_data(label_maps, seed=1, **VARIED)))
    assert same(first, epoch(open_data(label_maps, num_workers=2, **VARIED)))
    assert same(validation(open_data(label_maps)), validation(open_data(label_maps, num_workers=2)))


def test_masks_per_image(label_maps: Path) -> None:
    data = open_data(label_maps, masks_per_image=3)
    seen: dict[int, set[int]] = {}
    for number in range(4):
        for batch in epoch(data, number):
            for b, i in enumerate(batch.index.tolist()):
                masks = batch.masks[batch.image_index == b]
                assert len(masks) == min(3, i + 1)
                seen.setdefault(i, set()).update(int(batch.images[b, 0][m].float().median()) for m in masks)
    assert len(seen[7]) > 4, "which of them is drawn each time"
    limited = validation(open_data(label_maps, eval_masks_per_image=1))
    assert [int((limited[0].image_index == b).sum()) for b in range(3)] == [0, 1, 1]


# What is left out


def test_an_evaluation_batch(label_maps: Path) -> None:
    (batch,) = validation(open_data(label_maps, object_name="square"))
    assert batch.images.shape == (3, 3, 32, 32)
    assert batch.masks.shape == (6, 32, 32)
    assert batch.masks.dtype == batch.valid.dtype == torch.bool
    assert batch.image_index.tolist() == [0 + 1] * 2 + [2] * 4, "an image without objects has none in evaluation"
    assert batch.names == ("square",) * 6
    assert batch.sizes.tolist() == [[30, 40]] * 3
    assert batch.valid[0].any(dim=1).sum() == 24
    assert batch.bad == ()


def test_small_objects_are_left_out_and_counted(tmp_path: Path) -> None:
    values = squares(3, size=(64, 64))
    values[61, 60:63] = 9  # three pixels
    values[50:53, 50:53] = 8  # nine, but one at half the size
    write_pair(tmp_path, "a", values)
    for limit in (1.0, 0.0):
        data = open_data(tmp_path, val_fraction=limit)
        (batch,) = validation(data) if limit else epoch(data)
        assert len(batch.masks) == 3
        small = batch.left_out[0, LEFT_OUT.index("small")]
        assert small == (2 if limit else 1), "training counts what the data lack, evaluation what is not scored"
    assert len(validation(open_data(tmp_path, val_fraction=1.0, min_area=1))[0].masks) == 5


def test_objects_too_small_for_the_input_say_which_size_would_do(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", squares(1, size=(512, 512)))
    source = open_data(tmp_path, val_fraction=0.0).train_source
    image, objects = source.read(0), source.objects(0)
    with pytest.raises(
        UnreadableImage, match=r"too small: fewer than 4 pixels at 32 x 32; --model.image_size"
    ) as caught:
        TrainView(SPEC, ViewOptions())(image, objects, 0)
    better = int(re.findall(r"image_size (\d+)", str(caught.value))[0])
    assert better == 160
    assert TrainView(replace(SPEC, image_size=(better, better)), ViewOptions())(image, objects, 0).names


def test_training_skips_images_without_objects(tmp_path: Path) -> None:
    for i in range(6):
        write_pair(tmp_path, str(i), squares(0 if i == 2 else 3))
    data = open_data(tmp_path, val_fraction=0.0, batch_size=3)
    batches = epoch(data)
    assert same(batches, epoch(open_data(tmp_path, val_fraction=0.0, batch_size=3)))
    assert all(2 not in b.index.tolist() and len(b.images) == 3 for b in batches)
    assert {entry for b in batches for entry in b.bad} == {
        (f"{tmp_path}/images/2.png", "no objects of at least 4 pixels")
    }


def test_a_mask_of_another_size_is_a_bad_sample(label_maps: Path) -> None:
    Image.fromarray(squares(2, size=(20, 30))).save(label_maps / "val/masks/1.png")
    (label_maps / "val/masks/2.png").write_bytes(b"")
    (batch,) = validation(open_data(label_maps))
    assert batch.index.tolist() == [0]
    assert batch.bad == (
        (f"{label_maps}/val/images/1.png", "its mask is 20x30 pixels, the image 40x30"),
        (f"{label_maps}/val/images/2.png", "its mask: empty: zero bytes"),
    )


def test_a_batch_of_unreadable_images_is_empty(label_maps: Path) -> None:
    for i in range(3):
        (label_maps / f"val/images/{i}.png").write_bytes(b"")
    (batch,) = validation(open_data(label_maps))
    assert batch.images.shape == (0, 3, 32, 32)
    assert batch.masks.shape == batch.valid.shape == (0, 32, 32)
    assert batch.sizes.shape == (0, 2)
    assert batch.left_out.shape == (0, 3)
    assert batch.image_index.shape == batch.index.shape == (0,)
    assert len(batch.bad) == 3


def test_label_maps_of_every_depth(tmp_path: Path) -> None:
    values = squares(3)
    wide = Image.fromarray(values.astype(np.uint16) * 1000)
    palette = Image.fromarray(values)
    palette.putpalette([7] * 768)
    for name, image in (("16", wide), ("p", palette), ("l", Image.fromarray(values))):
        image.save(tmp_path / f"{name}.png")
        assert len(np.unique(open_values(str(tmp_path / f"{name}.png")))) == 4
    paint(values).save(tmp_path / "grey.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "whole.tif")
    for name in ("grey.png", "whole.tif"):
        assert len(np.unique(open_values(str(tmp_path / name)))) == 4
    Image.merge("RGB", [Image.fromarray(v) for v in (values, values, values[::-1])]).save(tmp_path / "rgb.png")
    Image.fromarray(values + np.float32(0.5)).save(tmp_path / "half.tif")
    for name, message in (("rgb.png", "mode RGB with colours"), ("half.tif", "mode F with fractions")):
        with pytest.raises(UnreadableImage, match=message):
            open_values(str(tmp_path / name))


def test_images_and_masks_that_do_not_pair_up(label_maps: Path, tmp_path: Path) -> None:
    (label_maps / "val/masks/1.png").unlink()
    with pytest.warns(UserWarning, match="1 faults in the files"):
        data = open_data(label_maps)
    assert data.problems == ((f"{label_maps}/val/images/1.png", "no mask of the same name"),)
    for kind in ("images", "masks"):
        (tmp_path / "none" / kind).mkdir(parents=True)
    paint(squares(1)).save(tmp_path / "none/images/a.png")
    paint(squares(1)).save(tmp_path / "none/masks/b.png")
    with pytest.raises(ValueError, match=r"no image of .* \(1\) has a mask of the same name"):
        open_data(tmp_path / "none")


# COCO and SA-1B


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


def coco_record(images: int = 3) -> dict[str, Any]:
    """Image 0 has a polygon, a text and a crowd, image 1 an empty mask and a list, image 2 nothing."""
    mask = squares(2) == 2
    annotations = [
        {"image_id": 0, "category_id": 7, "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]], "iscrowd": 0},
        {"image_id": 0, "category_id": 3, "segmentation": run_lengths(mask)},
        {"image_id": 0, "category_id": 3, "segmentation": {"size": [30, 40], "counts": [0, 1200]}, "iscrowd": 1},
        {"image_id": 1, "category_id": 7, "segmentation": {"size": [30, 40], "counts": [1200]}},
        {"image_id": 1, "category_id": 99, "segmentation": {"size": [30, 40], "counts": [100, 300, 800]}},
    ]
    sizes = {"height": 30, "width": 40}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", **sizes} for i in range(images)],
        "annotations": [{"id": k, **a} for k, a in enumerate(annotations)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def write_coco(root: Path, layout: str) -> Path:
    """``layout`` is ``flat`` (instances_train.json beside train/) or ``official`` (annotations/, train2017/)."""
    for split in ("train", "val"):
        name = split if layout == "flat" else f"{split}2017"
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(3):
            paint(squares(2)).save(folder / f"{i}.png")
        where = root if layout == "flat" else root / "annotations"
        where.mkdir(exist_ok=True)
        (where / f"instances_{name}.json").write_text(json.dumps(coco_record()))
    return root


@pytest.mark.parametrize("layout", ["flat", "official"])
def test_coco(tmp_path: Path, layout: str) -> None:
    data = open_data(write_coco(tmp_path / "coco", layout))
    assert data.categories == ("cat", "dog")
    assert data.train_source is not None
    assert len(data.train_source) == 2, "an image without annotations is not trained on"
    assert data.images_without_objects == 1
    (batch,) = validation(data)
    assert batch.names == ("cat", "dog", "")
    assert batch.image_index.tolist() == [0, 0, 1]
    assert batch.left_out.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    grid = eval_grid(EvalTransform(SPEC), 30, 40)
    assert np.array_equal(batch.masks[1].numpy(), grid.take(squares(2) == 2))
    assert np.array_equal(batch.masks[0].numpy(), grid.take(squares(2) == 1))
    (trained,) = epoch(data)
    assert sorted(trained.names) == ["", "cat", "dog"]


def test_a_coco_file_by_its_name_with_images_elsewhere(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", "flat")
    record = coco_record()
    record["annotations"].append({"image_id": 55, "segmentation": []})
    record["annotations"][0]["segmentation"] = {"size": [40, 30], "counts": [1200]}
    (tmp_path / "mine.json").write_text(json.dumps(record))
    with pytest.raises(FileNotFoundError, match=r"0.png is in none of .*image_root"):
        open_data(tmp_path / "mine.json")
    with pytest.warns(UserWarning, match="1 annotations are of images that it does not list"):
        data = open_data(tmp_path / "mine.json", image_root=str(root / "val"), val_fraction=1.0)
    (batch,) = validation(data)
    assert batch.index.tolist() == [1, 2]
    assert batch.bad == ((f"{root}/val/0.png", "a mask has size [40, 30] (H, W), its image is [30, 40]"),)


def test_files_that_are_not_cocos_are_named(tmp_path: Path) -> None:
    path = tmp_path / "instances_train.json"
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"images": []}', "no lists of images and annotations"),
        ('{"images": [{"id": 1}], "annotations": []}', "image 1 is not as COCO has it: it has no 'height'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_data(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="no masks in"):
        open_data(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_data(tmp_path / "missing")


def test_other_annotations_are_other_data(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", "flat")
    before = open_data(root).fingerprint()
    assert open_data(root).fingerprint() == before
    (root / "instances_train.json").write_text(json.dumps(coco_record()).replace("10, 10, 2, 10", "10, 11, 2, 10"))
    assert open_data(root).fingerprint() != before


def test_segment_anythings_pairs(tmp_path: Path) -> None:
    for i in range(4):
        paint(squares(2)).save(tmp_path / f"sa_{i}.png")
        masks = [{"segmentation": run_lengths(squares(2) == k), "bbox": [0, 0, 1, 1], "id": k} for k in (1, 2)]
        record = {"image": {"height": 30, "width": 40, "file_name": f"sa_{i}.png"}, "annotations": masks}
        (tmp_path / f"sa_{i}.json").write_text(json.dumps(record))
    (tmp_path / "sa_3.json").write_text('{"image": {}}')
    (batch,) = validation(open_data(tmp_path, val_fraction=1.0))
    assert batch.index.tolist() == [0, 1, 2]
    assert batch.masks.shape == (6, 32, 32)
    assert batch.names == ("",) * 6
    assert batch.bad == ((f"{tmp_path}/sa_3.png", "its annotations: KeyError: 'height'"),)


# The built-in set, resuming, options


def test_shapes_have_named_masks() -> None:
    data = open_data("shapes:20", shapes_size=32)
    assert len(data.categories) == 48
    (batch, *_) = epoch(data)
    assert set(batch.names) <= set(data.categories)
    assert len(batch.names) == len(batch.masks) >= 4
    assert data.val_source is not None
    assert len(data.val_source) == 500


class Recorder(pl.LightningModule):
    """A model that writes down what it is given."""

    preprocess = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.steps: list[tuple[Any, ...]] = []

    def training_step(self, batch: SegmentBatch, batch_idx: int) -> Tensor:
        sums = int(batch.images.long().sum()), int(batch.masks.long().sum())
        self.steps.append((self.current_epoch, tuple(batch.index.tolist()), tuple(batch.names), *sums))
        return self.layer(batch.images.float().mean((2, 3))).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)


class SaveAt(pl.Callback):
    """A checkpoint after so many steps."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def trainer(**options: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", use_distributed_sampler=False, max_epochs=2, **quiet, **options)


def test_a_resumed_run_sees_exactly_what_was_left(label_maps: Path, tmp_path: Path) -> None:
    whole, resumed = Recorder(), Recorder()
    middle = tmp_path / "middle.ckpt"
    trainer(callbacks=[SaveAt(5, middle)]).fit(whole, open_data(label_maps, batch_size=2, masks_per_image=2, **VARIED))
    assert len(whole.steps) == 8
    data = open_data(label_maps, batch_size=2, masks_per_image=2, num_workers=2, **VARIED)
    trainer().fit(resumed, data, ckpt_path=middle, weights_only=True)
    assert resumed.steps == whole.steps[5:]


@pytest.mark.parametrize(
    ("option", "value"),
    [("crop", "zoom"), ("masks_per_image", 0), ("eval_masks_per_image", 0), ("min_area", 0), ("hflip", 2),
     ("jitter_scale", (0.0, 1.0)), ("crop_scale", (0.0, 1.0)), ("val_fraction", 2.0), ("train_limit", 99)],
)  # fmt: skip
def test_options_are_checked_at_birth(label_maps: Path, option: str, value: Any) -> None:
    path = label_maps / "train" if option == "val_fraction" else label_maps
    with pytest.raises(ValueError, match=option):
        open_data(path, **{option: value})


def test_every_option_is_documented() -> None:
    import inspect

    text = SegmentData.__init__.__doc__ or ""
    for name in set(inspect.signature(SegmentData).parameters) - {"kwargs"}:
        assert f"\n            {name}: " in text, name


@pytest.mark.long
def test_workers_import_nothing_heavy(run_offline: Callable[..., str]) -> None:
    heavy = ("pytorch_lightning", "timm", "matplotlib", "sklearn", "transformers", "pyarrow", "torchvision")
    code = f"import sys, visionzoo.data.segment_samples; print([m for m in {heavy} if m in sys.modules])"
    assert run_offline(code).strip() == "[]"


@pytest.mark.parametrize(("name", "sizes"), [("nuclei", (160, 40)), ("coco_things", (98, 40))])
def test_real_masks(real_data: Path, name: str, sizes: tuple[int, int]) -> None:
    data = open_data(real_data / name, SPEC_128, **VARIED)
    assert data.train_source is not None
    assert data.val_source is not None
    assert (len(data.train_source), len(data.val_source)) == sizes
    trained = next(iter(data.train_dataloader()))
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    seen = next(iter(loader))
    for batch in (trained, seen):
        assert len(batch.images) == 4
        assert batch.bad == ()
        assert batch.masks.flatten(1).sum(1).min() >= 4
        assert not (batch.masks & ~batch.valid[batch.image_index]).any()


def test_real_run_lengths_agree_with_pycocotools(real_data: Path) -> None:
    record = json.loads((real_data / "coco_things" / "instances_val.json").read_text())
    for annotation in record["annotations"][:40]:
        packed = annotation["segmentation"]
        height, width = packed["size"]
        ours = read_segmentation(packed, height, width).mask()
        assert ours.sum() == annotation["area"]
        assert np.array_equal(ours, coco.decode({**packed, "counts": packed["counts"].encode()}).astype(bool))
