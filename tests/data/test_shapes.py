"""The drawn set: one picture, three kinds of label, all in agreement."""

from __future__ import annotations

import numpy as np
import pytest

from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.shapes import COLOURS, COMBINATIONS, KINDS, draw


def test_a_drawing_is_a_pure_function_of_seed_and_index() -> None:
    one, same, other = draw(1, 5), draw(1, 5), draw(2, 5)
    assert np.array_equal(np.asarray(one.image), np.asarray(same.image))
    assert not np.array_equal(np.asarray(one.image), np.asarray(other.image))
    assert one.caption == other.caption


@pytest.mark.parametrize("index", range(12))
def test_class_caption_and_masks_agree(index: int) -> None:
    picture = draw(0, index, size=96, objects=(1, 4))
    assert picture.image.size == (96, 96)
    assert picture.objects[0][1] == picture.class_name == COMBINATIONS[index][1]
    assert picture.masks.shape == (len(picture.objects), 96, 96)
    assert picture.masks.sum(axis=0).max() == 1, "objects do not overlap"
    pixels = np.asarray(picture.image).astype(int)
    for mask, (colour, kind) in zip(picture.masks, picture.objects, strict=True):
        assert f"{colour} {kind}" in picture.caption
        if mask.sum() > 60:
            inside = np.median(pixels[mask], axis=0)
            nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - inside).sum())
            assert nearest == colour
    assert picture.masks[0].sum() == picture.masks.sum(axis=(1, 2)).max()
    background = pixels[~picture.masks.any(axis=0)]
    assert np.median(np.ptp(background, axis=1)) <= 2, "the background is grey"


def test_combinations_can_be_held_out() -> None:
    allowed = [c for c in COMBINATIONS if c != ("red", "circle")]
    seen = {o for i in range(80) for o in draw(0, i, size=32, objects=(1, 3), combinations=allowed).objects}
    assert ("red", "circle") not in seen
    assert len(seen) == len(allowed)
    with pytest.raises(ValueError, match="unknown combination"):
        draw(0, 0, combinations=[("red", "hexagon")])
    with pytest.raises(ValueError, match="size=8"):
        draw(0, 0, size=8)


def test_the_source_has_balanced_labels_and_disjoint_splits() -> None:
    splits = open_data("shapes", seed=3)
    assert splits.classes == KINDS
    assert splits.train is not None
    assert splits.val is not None
    for i in (0, 7, 40):
        drawing = draw(3, i)
        assert drawing.class_name == KINDS[splits.train.targets[i]]
        assert np.array_equal(np.asarray(splits.train.read(i)), np.asarray(drawing.image))
    assert np.ptp(np.bincount(splits.train.targets)) <= 1
    assert not {splits.train.sample_id(i) for i in range(2000)} & {splits.val.sample_id(i) for i in range(500)}
