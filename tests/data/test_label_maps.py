"""Label maps as people save them: lossy, smoothed, with a void value, and of photos that EXIF turns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionzoo.data.segment import SegmentData
from visionzoo.data.sources.open import open_data
from visionzoo.data.views import EvalView, TrainView, ViewOptions
from visionzoo.types import Preprocess

SPEC = Preprocess(image_size=(64, 64), resize_mode="longest", pad_anchor="top_left")
Survived = Callable[..., None]


def circle() -> np.ndarray:
    """(64, 80) uint8, one circle of ones."""
    y, x = np.mgrid[:64, :80]
    return ((y - 30) ** 2 + (x - 40) ** 2 < 225).astype(np.uint8)


def border(mask: np.ndarray) -> np.ndarray:
    edge = np.zeros_like(mask)
    edge[1:-1] = mask[2:] != mask[:-2]
    return np.where(edge > 0, 255, mask).astype(np.uint8)


def write(root: Path, mask: Image.Image, ending: str = ".png", photo: Image.Image | None = None, **save: Any) -> Path:
    for i in range(4):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        (photo or Image.new("RGB", mask.size, (90, 90, 90))).save(root / "images" / f"{i}.jpg", quality=95, **save)
        mask.save(root / "masks" / f"{i}{ending}")
    return root


@pytest.mark.parametrize(
    ("mask", "ending", "message"),
    [
        (Image.fromarray(circle() * 255), ".jpg", "JPEG changes the values around every edge.*save label maps as PNG"),
        (
            Image.fromarray(circle() * 255).resize((160, 128)).resize((80, 64), Image.Resampling.BILINEAR),
            ".png",
            r"greys along the edge of one object, as soft \(antialiased\) edges",
        ),
    ],
)
def test_masks_whose_values_were_changed_are_refused(
    survived: Survived, tmp_path: Path, mask: Image.Image, ending: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"none of 4 masks can be used.*{message}"):
        open_data(str(write(tmp_path, mask, ending)), "objects")
    survived("label maps with changed values (JPEG, soft edges): refused with advice")


def test_one_lossy_mask_among_others_is_a_bad_sample(tmp_path: Path) -> None:
    root = write(tmp_path, Image.fromarray(circle()))
    (root / "masks/2.png").unlink()
    Image.fromarray(circle() * 255).save(root / "masks/2.jpg")
    data = SegmentData(str(root), val_fraction=1.0, batch_size=4, num_workers=0)
    data.preprocess = SPEC
    data.setup("validate")
    (batch,) = list(data.val_dataloader())
    assert [(Path(name).name, reason[:24]) for name, reason in batch.bad] == [("2.jpg", "its mask: JPEG changes t")]
    assert batch.index.tolist() == [0, 1, 3]


def test_a_void_value_is_no_object_and_not_scored(survived: Survived, tmp_path: Path) -> None:
    root = write(tmp_path, Image.fromarray(border(circle())))
    with pytest.warns(UserWarning, match=r"value 255 is an object of its own in 4 of 4 masks.*--data.void 255"):
        assert len(open_data(str(root), "objects", val_fraction=0.0).named["train"].objects(0).names) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_data(str(root), "objects", val_fraction=0.0, void=255).named["train"]
    image, objects = source.pair(0)
    assert objects.areas.tolist() == [int((border(circle()) == 1).sum())]
    upright = np.zeros((64, 64), bool)
    upright[:51] = True
    for view in (EvalView(SPEC), TrainView(SPEC, ViewOptions())):
        seen = view(image, objects, 0)
        assert len(seen.masks) == 1
        assert not (seen.masks[0] & ~seen.valid).any()
        assert 0 < (upright & ~seen.valid.numpy()).sum() < 120
    plain, flipped = (TrainView(SPEC, ViewOptions(hflip=p))(image, objects, 0) for p in (0.0, 1.0))
    assert torch.equal(plain.valid[:51].flip(1), flipped.valid[:51]), "void follows its image"
    survived("label maps with a void value: no object, not scored")


def test_a_void_value_needs_label_maps(tmp_path: Path) -> None:
    for path in ("shapes:8", str(write(tmp_path, Image.fromarray(circle())))):
        with pytest.raises(ValueError, match="void="):
            open_data(path, "objects", void=255 if path.startswith("shapes") else 0)


def test_implausible_maps_are_warned_of(survived: Survived, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 200, (64, 80)).astype(np.uint8)
    with pytest.warns(UserWarning, match=r"199 objects in a mask .*100% of them nowhere 3 pixels wide"):
        open_data(str(write(tmp_path / "a", Image.fromarray(noise))), "objects")
    squares = np.kron(np.arange(80).reshape(8, 10), np.ones((8, 8))).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # many objects of some size are what nuclei look like; a circle has one
        open_data(str(write(tmp_path / "b", Image.fromarray(squares))), "objects")
        open_data(str(write(tmp_path / "c", Image.fromarray(circle() * 255))), "objects")
    survived("label maps with implausibly many or thin objects: a warning")


@pytest.mark.parametrize("orientation", [6, 8, 5, 7])
def test_masks_follow_a_photo_that_exif_turns(survived: Survived, tmp_path: Path, orientation: int) -> None:
    stored = np.zeros((64, 80), np.uint8)
    stored[5:25, 10:60] = 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.fromarray(np.repeat(stored[..., None] * 255, 3, axis=2))
    root = write(tmp_path / "stored", Image.fromarray(stored), photo=photo, exif=exif.tobytes())
    with pytest.warns(UserWarning, match="4 of 4 masks have the size of their photo before it is turned by EXIF"):
        source = open_data(str(root), "objects", val_fraction=0.0).named["train"]
    image, objects = source.pair(0)
    assert objects.size == (image.height, image.width) == (80, 64)
    mask = objects.mask(0)
    assert ((np.asarray(image)[..., 0] > 127) == mask).mean() > 0.99
    root = write(tmp_path / "turned", Image.fromarray(mask), photo=photo, exif=exif.tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, drawn = open_data(str(root), "objects", val_fraction=0.0).named["train"].pair(0)
    assert np.array_equal(drawn.mask(0), mask), "a mask drawn on the turned picture stays"
    survived("masks of photos that EXIF turns: matched by size")
