"""Evaluation pixels are timm's; a training view is a pure function of image, options and key."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from visionzoo.data.augment import AugmentOptions
from visionzoo.data.transforms import EvalTransform, TrainTransform
from visionzoo.types import Preprocess

TIMM_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}
#: What timm pads with: the mean of :class:`Preprocess`, in 0..255.
MEAN_COLOUR = (124, 116, 104)
SIZES = [(500, 375), (101, 33), (31, 97), (64, 64), (20, 20), (257, 256)]  # (width, height)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("resize_mode", TIMM_MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("image_size", [(64, 64), (33, 48)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.95])
def test_evaluation_equals_timm(
    resize_mode: str, interpolation: str, image_size: tuple[int, int], crop_pct: float
) -> None:
    from timm.data import create_transform

    spec = Preprocess(
        image_size=image_size,
        interpolation=interpolation,
        resize_mode=resize_mode,
        crop_pct=crop_pct,
        pad_value=MEAN_COLOUR,
    )
    reference = create_transform(
        input_size=(3, *image_size),
        is_training=False,
        interpolation=interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=crop_pct,
        crop_mode=TIMM_MODES[resize_mode],
        normalize=False,
    )
    for size in SIZES:
        image = noise(size)
        ours = EvalTransform(spec)(image)
        assert ours.dtype == torch.uint8
        assert torch.equal(ours, reference(image)), size


def test_padding_can_start_at_the_top_left() -> None:
    spec = Preprocess(image_size=(32, 32), resize_mode="longest", pad_anchor="top_left", pad_value=7)
    view = EvalTransform(spec)(Image.new("RGB", (64, 16), "white"))
    assert (view[:, :8] == 255).all()
    assert (view[:, 8:] == 7).all()


@pytest.mark.parametrize("resize_mode", TIMM_MODES)
def test_an_endless_image_costs_no_endless_memory(resize_mode: str) -> None:
    spec = Preprocess(image_size=(224, 224), resize_mode=resize_mode)
    strip = Image.new("RGB", (60_000, 1), (9, 8, 7))
    assert EvalTransform(spec)(strip).shape == (3, 224, 224)
    assert TrainTransform(spec)(strip, 0).shape == (3, 224, 224)


@pytest.mark.parametrize("resize_mode", TIMM_MODES)
def test_cropping_first_gives_the_same_pixels(resize_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionzoo.data import transforms

    spec = Preprocess(image_size=(48, 32), crop_pct=0.9, resize_mode=resize_mode)
    image = noise((301, 200))
    usual = EvalTransform(spec)(image).int()
    monkeypatch.setattr(transforms, "_LARGEST_RESIZED", 0)
    assert (EvalTransform(spec)(image).int() - usual).abs().max() <= 1


def test_grey_models_get_one_channel() -> None:
    spec = Preprocess(image_size=(16, 16), mean=(0.5,), std=(0.5,))
    image = noise((16, 16))
    luma = torch.from_numpy(np.array(image.convert("L")))[None]
    assert torch.equal(EvalTransform(spec)(image), luma)
    assert TrainTransform(spec)(image, 1).shape == (1, 16, 16)
    with pytest.raises(ValueError, match="has 2 values"):
        EvalTransform(Preprocess(image_size=(16, 16), mean=(0.5, 0.5), std=(0.5, 0.5)))


OPTIONS = {
    "default": AugmentOptions(),
    "strong": AugmentOptions(magnitude=10, num_ops=6, color_jitter=0.4, erasing=0.5, vflip=0.5),
    "cifar": AugmentOptions(crop="pad", crop_pad=4, policy="three_augment"),
    "mild": AugmentOptions(crop="resize", policy="none", color_jitter=0.2),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_view_depends_on_the_key_alone(name: str) -> None:
    spec = Preprocess(image_size=(32, 24))
    image = noise((50, 40))
    transform = TrainTransform(spec, OPTIONS[name])
    views = [transform(image, key) for key in range(12)]
    assert all(v.shape == (3, 32, 24) and v.dtype == torch.uint8 for v in views)
    assert len({v.numpy().tobytes() for v in views}) > 5
    # Another object, in another order, after other images, with all global generators elsewhere.
    copy = pickle.loads(pickle.dumps(transform))
    np.random.seed(7)
    random.seed(7)
    torch.manual_seed(7)
    copy(noise((9, 9)), 3)
    for key in reversed(range(12)):
        assert torch.equal(copy(image, key), views[key]), key


def test_the_random_crop_equals_torchvisions_resized_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import pil_to_tensor, resized_crop

    spec = Preprocess(image_size=(32, 32))
    transform = TrainTransform(spec, AugmentOptions(policy="none", hflip=0))
    boxes = []
    draw = transform._crop.get_params_dependent_on_data
    monkeypatch.setattr(transform._crop, "get_params_dependent_on_data", lambda *a: boxes.append(draw(*a)) or boxes[-1])
    image = noise((90, 70))
    for key in range(8):
        ours = transform(image, key)
        left, top, right, bottom = (int(v) for v in boxes[-1]["crop_coords"])
        theirs = resized_crop(image, top, left, bottom - top, right - left, [32, 32], InterpolationMode.BICUBIC)
        assert torch.equal(ours, pil_to_tensor(theirs))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) / (90 * 70) for b in (box["crop_coords"] for box in boxes)]
    assert 0.25 < min(areas) < max(areas) <= 1


def test_options_do_what_they_say() -> None:
    spec = Preprocess(image_size=(16, 16))
    image = noise((16, 16))
    plain = EvalTransform(spec)(image)

    def view(key: int = 0, **options: object) -> torch.Tensor:
        quiet = {"crop": "resize", "hflip": 0, "policy": "none"}
        return TrainTransform(spec, AugmentOptions(**{**quiet, **options}))(image, key)  # type: ignore[arg-type]

    assert torch.equal(view(), plain)
    assert torch.equal(view(hflip=1), plain.flip(2))
    assert torch.equal(view(vflip=1), plain.flip(1))
    assert torch.equal(view(crop="pad", crop_pad=0), plain)
    shifted = view(crop="pad", crop_pad=4, key=1)
    assert any(
        torch.equal(shifted[:, max(dy, 0) : 16 + min(dy, 0), max(dx, 0) : 16 + min(dx, 0)],
                    plain[:, max(-dy, 0) : 16 + min(-dy, 0), max(-dx, 0) : 16 + min(-dx, 0)])
        for dy in range(-4, 5) for dx in range(-4, 5)
    )  # fmt: skip
    erased = [(view(key, erasing=1) != plain).any(0).float().mean().item() for key in range(10)]
    assert 0.01 < max(erased) < 0.4
    assert not torch.equal(view(color_jitter=0.5), plain)
    weak, strong = (
        np.mean(
            [(view(k, policy="randaugment", magnitude=m).int() - plain.int()).abs().float().mean() for k in range(40)]
        )
        for m in (1, 10)
    )
    assert 0 < weak < strong


@pytest.mark.parametrize(
    ("option", "value"),
    [("hflip", 1.5), ("erasing", -0.1), ("magnitude", 11), ("num_ops", -1), ("crop", "random"), ("policy", "best"),
     ("crop_scale", (0.5, 0.2)), ("crop_scale", (0.0, 1.0)), ("crop_ratio", (2.0, 1.0)), ("crop_pad", -1)],
)  # fmt: skip
def test_options_are_checked_at_birth(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        AugmentOptions(**{option: value})  # type: ignore[arg-type]
