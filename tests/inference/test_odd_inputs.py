"""What people hand to the predictors: tensors, addresses, models in other precisions, images a pixel high."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam_twins import NANO, shake
from test_zero_shot import make_clip

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.data.images import UnreadableImage, open_image
from visionzoo.models.classifier import Classifier
from visionzoo.models.sam import Sam

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)
CLICK = {"point_coords": np.array([[9, 9]]), "point_labels": np.array([1])}
NARROW = [torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(scope="module")
def sam() -> Sam:
    model = vz.create_sam(NANO, image_size=32, decoder_dim=32)
    shake(model, 0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("tensor", "array"),
    [
        (TENSOR, PIXELS),
        (TENSOR / 255, PIXELS),
        ((TENSOR.double() / 255).requires_grad_(), PIXELS),
        (TENSOR[:1], PIXELS[..., 0]),
        (TENSOR[0], PIXELS[..., 0]),
        (TENSOR > 99, (PIXELS > 99) * np.uint8(255)),
        (torch.cat([TENSOR, TENSOR[:1]]), PIXELS),
    ],
)
def test_tensors_are_images(tensor: torch.Tensor, array: np.ndarray) -> None:
    assert np.array_equal(np.asarray(open_image(tensor)), np.asarray(open_image(array)))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TENSOR.permute(1, 2, 0), r"tensor of shape \(24, 31, 3\); need .*permute\(2, 0, 1\)"),
        (TENSOR[None], r"shape \(1, 3, 24, 31\)"),
        (TENSOR / 127.5 - 1, r"float array in -1\.0.*; need 0\.\.1, .*not normalised"),
        (TENSOR.float(), r"need 0\.\.1"),
        (TENSOR.long(), "type int64"),
        (torch.zeros(3, 0, 4), "need"),
        (torch.full((3, 4, 4), float("nan")), r"need 0\.\.1"),
    ],
)
def test_tensors_that_are_no_image(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(UnreadableImage, match=message):
        open_image(tensor)


def test_batches_of_tensors(model: Classifier, sam: Sam) -> None:
    batch = torch.stack([TENSOR, TENSOR.flip(2)])
    arrays = [PIXELS, PIXELS[:, ::-1]]
    for classifier in (
        vz.ImageClassifier.from_model(model, ["a", "b", "c"]),
        vz.ZeroShotClassifier(make_clip(), ["a first thing", "a second thing"], "a {}."),
    ):
        assert torch.equal(classifier.probabilities(batch), classifier.probabilities(arrays))
        assert classifier.predict(TENSOR) == classifier.predict(PIXELS)
        assert classifier.predict([TENSOR]) == classifier.predict(PIXELS)
    predictor = vz.SamPredictor(sam)
    for of_tensor, of_array in zip(predictor.embed_images(batch), predictor.embed_images(arrays), strict=True):
        assert torch.equal(of_tensor.context.embedding, of_array.context.embedding)
    turned = predictor.embed_image(TENSOR.flip(0), "BGR")
    assert torch.equal(turned.context.embedding, predictor.embed_image(PIXELS).context.embedding)
    options = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    one, two = (vz.MaskGenerator(sam, **options).generate(image) for image in (TENSOR, PIXELS))
    assert [m["bbox"] for m in one] == [m["bbox"] for m in two]


def test_a_search_takes_tensors(photos: Path, tmp_path: Path) -> None:
    search = vz.ImageSearch(make_clip(), cache_dir=tmp_path / "cache").index(photos)
    assert search.find_like(TENSOR) == search.find_like(PIXELS)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("multi_label", [False, True])
def test_classifiers_in_other_precisions(model: Classifier, dtype: torch.dtype, multi_label: bool) -> None:
    tolerance = 0.02 if dtype == torch.bfloat16 else 0.005 if dtype == torch.float16 else 1e-5
    clip = make_clip()
    makers: list[tuple[Any, Callable[[Any], Any]]] = [
        (model, lambda m: vz.ImageClassifier.from_model(m, ["a", "b", "c"], multi_label=multi_label)),
        (clip, lambda m: vz.ZeroShotClassifier(m, ["a cat here", "a dog there"], "a {}.", multi_label=multi_label)),
    ]
    for network, make in makers:
        wanted = make(network)
        found = make(copy.deepcopy(network).to(dtype))
        for name in ("probabilities", "embed"):
            a, b = getattr(found, name)([PIXELS]), getattr(wanted, name)([PIXELS])
            assert a.dtype == torch.float32
            assert (a - b).abs().max() <= tolerance * max(1, b.abs().max()), name
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (wanted.probabilities([PIXELS]) - make(network).probabilities([PIXELS])).abs().max() < 0.02
            assert found.predict(PIXELS)


def answers(predictor: vz.SamPredictor) -> list[tuple[np.ndarray, ...]]:
    predictor.set_image(PIXELS)
    first = predictor.predict(**CLICK)
    rest = [predictor.predict(box=np.array([3, 3, 20, 20]), mask_input=first[2][:1]), predictor.predict()]
    return [first, *rest, predictor.predict(**CLICK, return_logits=True, multimask_output=False)]


@pytest.mark.parametrize("dtype", [*NARROW, "autocast"])
def test_sam_in_other_precisions(sam: Sam, dtype: Any) -> None:
    wanted = answers(vz.SamPredictor(sam))
    if dtype == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = answers(vz.SamPredictor(sam))
    else:
        found = answers(vz.SamPredictor(copy.deepcopy(sam).to(dtype)))
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    for (masks, scores, low), (_, same_scores, same_low) in zip(found, wanted, strict=True):
        assert scores.dtype == low.dtype == (np.float64 if dtype == torch.float64 else np.float32)
        assert masks.dtype in (np.bool_, np.float32)
        assert np.abs(scores - same_scores).max() <= tolerance * max(1, np.abs(same_scores).max())
        assert np.abs(low - same_low).max() <= tolerance * max(1, np.abs(same_low).max())


@pytest.mark.parametrize("dtype", NARROW)
def test_masks_of_everything_in_other_precisions(sam: Sam, dtype: torch.dtype) -> None:
    options = {"points_per_side": 3, "pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1.0}
    found = vz.MaskGenerator(copy.deepcopy(sam).to(dtype), **options).generate(PIXELS)
    assert len(found) > 0
    assert all(isinstance(m["predicted_iou"], float) for m in found)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_crops_of_images_a_pixel_high(sam: Sam, size: tuple[int, int], layers: int) -> None:
    generator = vz.MaskGenerator(
        sam,
        points_per_side=4,
        pred_iou_thresh=0,
        stability_score_thresh=0,
        crop_n_layers=layers,
        min_mask_region_area=2,
    )
    for mask in generator.generate(np.zeros((*size, 3), np.uint8)):
        assert mask["segmentation"].shape == size
        x, y, w, h = mask["crop_box"]
        assert min(w, h) >= 1
        assert x + w <= size[1]
        assert y + h <= size[0]


def test_labels_that_the_tokenizer_cannot_tell_apart() -> None:
    clip, long = make_clip(), "word " * 90
    labels = ["caf\u00e9 on a corner", "cafe\u0301 on a corner", "a dog in the snow", f"{long} a", f"{long} b"]
    alike = r"cannot tell apart: 'caf\\xe9 on a corner' and 'cafe\\u0301 on a corner'; 'word"
    with pytest.warns(UserWarning, match=alike):
        classifier = vz.ZeroShotClassifier(clip, labels, "a {}.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.remove([labels[1], labels[4]])
        classifier.add("a bird in the snow")
    with pytest.warns(UserWarning, match="cannot tell apart"):
        classifier.add(labels[1])


ADDRESS = "https://example.com/a.jpg"


@pytest.mark.usefixtures("block_network")
@pytest.mark.parametrize(
    "ask",
    [
        lambda c, s: c.predict(ADDRESS),
        lambda c, s: c.predict(Path(ADDRESS)),
        lambda c, s: c.predict(["s3://bucket/a.jpg"]),
        lambda c, s: open_image(ADDRESS),
        lambda c, s: s.set_image(ADDRESS),
        lambda c, s: vz.ImageClassifier.load(ADDRESS),
        lambda c, s: vz.SamPredictor.load(ADDRESS),
        lambda c, s: vz.ZeroShotClassifier.load(ADDRESS, ["a", "b"]),
        lambda c, s: vz.create_backbone(ADDRESS),
        lambda c, s: vz.create_classifier("vit_nano_patch4_32", 3, weights=ADDRESS),
    ],
)
def test_addresses_are_not_fetched(model: Classifier, sam: Sam, ask: Callable[..., Any]) -> None:
    classifier, predictor = vz.ImageClassifier.from_model(model, ["a", "b", "c"]), vz.SamPredictor(sam)
    with pytest.raises(ValueError, match=r"is an address|an address, and addresses are not fetched"):
        ask(classifier, predictor)


@pytest.mark.usefixtures("block_network")
@pytest.mark.parametrize(
    "command",
    [
        ["predict", "RUN", ADDRESS],
        ["predict", ADDRESS, "a.png"],
        ["zeroshot", ADDRESS, "--labels", "a,b", "--model", ADDRESS],
        ["search", ADDRESS, "a car", "--model", ADDRESS],
        ["embed", ADDRESS, "--model", "RUN", "--out", "a.parquet"],
        ["attention", ADDRESS, "--model", "RUN"],
        ["attention", "a.png", "--model", ADDRESS],
        ["masks", ADDRESS, "--point", "1,1", "--model", ADDRESS],
        ["reconstruct", "a.png", "--model", ADDRESS],
        ["probe", "RUN", "--data.path", ADDRESS],
        ["data", "check", ADDRESS],
        ["bench", ADDRESS],
        ["train", "classify", "fit", "--data.path", ADDRESS, "--model.backbone", "vit_nano_patch4_32"],
        ["train", "classify", "fit", "--resume", ADDRESS],
    ],
)
def test_commands_fetch_no_address(
    command: list[str],
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    open_image(PIXELS).save("a.png")
    assert main([str(run_folder) if word == "RUN" else word for word in command]) == 2
    assert "address" in capsys.readouterr().err
