"""Masks over a picture: what can be read back from the pixels."""

import numpy as np
import pytest
from PIL import Image

from visionzoo.viz.overlay import BACKGROUND, BOX, FOREGROUND, draw_prompts, mask_colour, mask_overlay, paint_masks

GREY = np.full((40, 60, 3), 100, np.uint8)


def square(y, x, side):
    mask = np.zeros((40, 60), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_inside_is_blended_the_outline_is_pure_and_outside_is_untouched():
    mask = square(5, 10, 20)
    painted = paint_masks(GREY, [mask])
    colour = np.array(mask_colour(0))
    assert np.array_equal(painted[5, 10], colour)
    assert np.abs(painted[15, 20].astype(int) - (100 + colour) / 2).max() <= 1
    assert (painted[~mask] == 100).all()
    assert (GREY == 100).all()


def test_small_masks_are_seen_on_large_ones():
    small, large = square(10, 15, 4), square(5, 10, 20)
    for masks in ([small, large], [large, small]):
        painted = paint_masks(GREY, masks)
        assert tuple(painted[10, 15]) == mask_colour([m is small for m in masks].index(True))


def test_colours_differ_and_empty_masks_are_nothing():
    assert len({mask_colour(i) for i in range(200)}) == 200
    assert np.array_equal(paint_masks(GREY, [np.zeros((40, 60), bool)]), GREY)
    with pytest.raises(ValueError, match=r"mask 0 has the size \(60, 40\)"):
        paint_masks(GREY, [np.zeros((60, 40), bool)])


def test_prompts_are_drawn_where_they_are():
    drawn = draw_prompts(GREY, [(10, 20), (50, 5)], [1, 0], [(20, 8, 44, 36)])
    assert tuple(drawn[20, 10]) == FOREGROUND
    assert tuple(drawn[5, 50]) == BACKGROUND
    assert tuple(drawn[8, 30]) == BOX
    assert tuple(drawn[30, 30]) == (100, 100, 100)


def test_file(tmp_path):
    out = mask_overlay(GREY, [square(5, 10, 20)], tmp_path / "new" / "o.png", points=[(12, 9)], labels=[1])
    picture = np.asarray(Image.open(out))
    assert picture.shape == (40, 60, 3)
    assert tuple(picture[9, 12]) == FOREGROUND
