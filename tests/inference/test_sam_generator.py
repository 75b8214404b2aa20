"""The mask generator against Meta's, and its parts against loops."""

import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from sam_twins import meta_sam, nano_sam, our_sam, picture
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils import amg

import visionzoo as vz
from visionzoo.data.sources.rle import RLE
from visionzoo.inference.mask_generator import build_point_grid, upscale_columns
from visionzoo.inference.regions import generate_crop_boxes, is_box_near_crop_edge, remove_small_regions

ALL = {"pred_iou_thresh": -math.inf, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
SOME = {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.02, "stability_score_offset": 0.1, "box_nms_thresh": 0.9}
SOME |= {"crop_nms_thresh": 0.9}
CASES = {
    "all": ALL,
    "filters": SOME,
    "crops": SOME | {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "clean": SOME | {"min_mask_region_area": 40, "box_nms_thresh": 0.9},
    "two grids": SOME
    | {"points_per_side": None, "point_grids": [build_point_grid(3), build_point_grid(2)], "crop_n_layers": 1}
    | {"min_mask_region_area": 12},
}


@pytest.fixture
def sparse(monkeypatch):
    """Untrained masks cover everything; at a higher threshold they are islands."""
    for model in (meta_sam(), our_sam()):
        monkeypatch.setattr(model, "mask_threshold", 0.9, raising=False)


def same(ours, theirs):
    assert len(ours) == len(theirs) > 1
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in ("bbox", "crop_box"):
            assert np.abs(np.array(a[key]) - b[key]).max() <= 1
        assert a["point_coords"] == b["point_coords"]
        assert a["predicted_iou"] == pytest.approx(b["predicted_iou"], abs=1e-4)
        assert a["stability_score"] == pytest.approx(b["stability_score"], abs=1e-3, nan_ok=True)
        one, two = a["segmentation"], b["segmentation"]
        assert (one & two).sum() >= 0.999 * (one | two).sum()
        assert one.shape == two.shape
        assert a["area"] == one.sum()


@pytest.mark.long
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("size", [(150, 256), (300, 400)])
def test_masks_are_metas(case, size, sparse):
    options = {"points_per_side": 4, **CASES[case]}
    image = picture(*size)
    theirs = SamAutomaticMaskGenerator(meta_sam(), **options).generate(image)
    same(vz.MaskGenerator(our_sam(), **options).generate(image), theirs)


@pytest.mark.long
def test_crops_are_metas(monkeypatch):
    """Few pixels, so that some masks lie within a crop."""
    options = {**SOME, "crop_n_layers": 1, "points_per_side": 4, "stability_score_thresh": 0.0}
    for model in (meta_sam(), our_sam()):
        monkeypatch.setattr(model, "mask_threshold", 0.7, raising=False)
    theirs = SamAutomaticMaskGenerator(meta_sam(), **options).generate(picture(300, 400))
    assert len({tuple(m["crop_box"]) for m in theirs if m["area"]}) > 2
    same(vz.MaskGenerator(our_sam(), **options).generate(picture(300, 400)), theirs)
    same(SamAutomaticMaskGenerator(our_sam(), **options).generate(picture(300, 400)), theirs)


def test_chunks_do_not_matter():
    image, model = picture(50, 70), nano_sam()
    whole = vz.MaskGenerator(model, 5, **ALL).generate(image)
    chunked = vz.MaskGenerator(model, 5, 4, **ALL).generate(image)
    assert len(whole) == len(chunked) == 75
    order = [sorted(masks, key=lambda m: (m["point_coords"], m["area"])) for masks in (whole, chunked)]
    assert sum(int((a["segmentation"] != b["segmentation"]).sum()) for a, b in zip(*order, strict=True)) < 75


def test_output_modes_are_one_mask(sparse):
    image = picture(90, 61)
    found = {
        m: vz.MaskGenerator(our_sam(), 4, **SOME, output_mode=m).generate(image)
        for m in ("binary_mask", "uncompressed_rle", "coco_rle")
    }
    theirs = SamAutomaticMaskGenerator(meta_sam(), 4, **SOME, output_mode="coco_rle").generate(image)
    for binary, runs, packed, other in zip(*found.values(), theirs, strict=True):
        assert np.array_equal(amg.rle_to_mask(runs["segmentation"]), binary["segmentation"])
        assert np.array_equal(coco.decode(packed["segmentation"]).astype(bool), binary["segmentation"])
        assert packed["segmentation"].keys() == other["segmentation"].keys()
        assert isinstance(packed["segmentation"]["counts"], str)


def test_nothing_found_and_no_stale_image():
    generator = vz.MaskGenerator(nano_sam(), 3, pred_iou_thresh=9.0)
    assert generator.generate(picture(40, 50)) == []
    assert not generator.predictor.is_image_set
    with pytest.raises(ValueError, match="array of shape"):
        generator.generate(np.zeros((0, 4, 3), np.uint8))
    assert not generator.predictor.is_image_set


def test_poor_prompts_are_never_upscaled(monkeypatch):
    model = nano_sam()
    generator, sizes = vz.MaskGenerator(model, 4, **ALL), []
    scores = sorted((m["predicted_iou"] for m in generator.generate(picture(40, 50))), reverse=True)
    paint = model.mask_decoder.masks
    monkeypatch.setattr(model.mask_decoder, "masks", lambda d, m: (sizes.append(len(d.keys)), paint(d, m))[1])
    few = vz.MaskGenerator(model, 4, **{**ALL, "pred_iou_thresh": scores[3]}).generate(picture(40, 50))
    assert len(few) == 3
    assert 1 <= sum(sizes) <= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": None}, "points_per_side or point_grids"),
        ({"point_grids": [build_point_grid(2)]}, "points_per_side or point_grids"),
        (
            {"points_per_side": None, "point_grids": [build_point_grid(2)], "crop_n_layers": 1},
            "1 point_grids for 2 layers",
        ),
        ({"output_mode": "png"}, "output_mode='png'"),
        ({"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "without points"),
        ({"points_per_batch": 0}, "points_per_batch=0"),
        ({"crop_n_layers": -1}, "crop_n_layers=-1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        vz.MaskGenerator(nano_sam(), **options)


# The parts.

MASKS = [
    np.zeros((5, 7), bool),
    np.ones((5, 7), bool),
    *(np.random.default_rng(i).random((5, 7)) > 0.6 for i in range(6)),
]
MASKS.append(np.eye(7, dtype=bool)[:5])


@pytest.mark.parametrize("mask", MASKS)
def test_runs(mask):
    runs = RLE.of(np.ascontiguousarray(mask.T))
    assert np.array_equal(runs.mask(), mask)
    assert runs.area == mask.sum()
    assert list(runs.box) == amg.batched_mask_to_box(torch.from_numpy(mask)[None])[0].tolist()
    assert runs.uncompressed() == amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
    assert runs.coco() == amg.coco_encode_rle(runs.uncompressed())


@pytest.mark.parametrize(("size", "layers"), [((100, 150), 0), ((101, 57), 1), ((640, 480), 3)])
def test_crop_boxes_are_metas(size, layers):
    boxes, owners = amg.generate_crop_boxes(size, layers, 512 / 1500)
    assert generate_crop_boxes(size, layers) == list(zip(owners, boxes, strict=True))


def test_boxes_at_the_edge_of_a_crop():
    crop, size = [100, 100, 300, 250], (250, 400)
    boxes = np.random.default_rng(0).integers(0, 200, (500, 4))
    theirs = amg.is_box_near_crop_edge(torch.from_numpy(boxes), crop, [0, 0, size[1], size[0]])
    moved = boxes + 100
    assert is_box_near_crop_edge(moved, crop, size).tolist() == theirs.tolist()
    assert 0 < theirs.sum() < 500


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("area", [2, 5, 1000])
def test_small_regions_are_metas(seed, area):
    mask = np.random.default_rng(seed).random((30, 40)) > (0.2, 0.5, 0.6, 0.9, 0.999)[seed]
    theirs, holes = amg.remove_small_regions(mask, area, mode="holes")
    theirs, islands = amg.remove_small_regions(theirs, area, mode="islands")
    ours, changed = remove_small_regions(mask, area)
    assert np.array_equal(ours, theirs)
    assert changed == (holes or islands)


def test_point_grids_are_metas():
    for n in (1, 2, 7, 32):
        assert np.array_equal(build_point_grid(n), amg.build_point_grid(n))


@pytest.mark.parametrize(
    ("inside", "size"), [((256, 256), (256, 256)), ((256, 171), (301, 200)), ((100, 256), (40, 103))]
)
def test_upscaling_is_the_models(inside, size):
    low = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = our_sam().postprocess_masks(low, inside, size)[0, 0]
    found = upscale_columns(low[0, 0].numpy(), (256, 256), inside, size)
    assert np.abs(found.T - expected.numpy()).max() < 2e-5


def test_a_model_whose_clicks_mean_one_thing_is_asked_for_one_mask(monkeypatch):
    model = our_sam()
    options = {"points_per_side": 2, **ALL}
    three = vz.MaskGenerator(model, **options).generate(picture(150, 256))
    monkeypatch.setattr(model, "ambiguous", False)
    one = vz.MaskGenerator(model, **options).generate(picture(150, 256))
    assert (len(three), len(one)) == (12, 4)
    predictor = vz.SamPredictor(model)
    predictor.set_image(picture(150, 256))
    for found in one:
        masks, scores, _ = predictor.predict(np.array(found["point_coords"]), np.ones(1), multimask_output=False)
        assert np.array_equal(found["segmentation"], masks[0])
        assert found["predicted_iou"] == pytest.approx(float(scores[0]), abs=1e-5)
