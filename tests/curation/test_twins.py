"""Pictures that are made of one another, and those that are not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from visionzoo.curation.looks import Looks, look_at, looks_of
from visionzoo.curation.odd import odd_features, odd_looks
from visionzoo.curation.slices import weak_slices
from visionzoo.curation.twins import find_twins, near_pairs


def _scene(seed: int) -> Image.Image:
    """A picture of large and small things, 160 x 120 pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
    image = small.resize((160, 120), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, size = rng.integers(0, 150), rng.integers(0, 110), rng.integers(6, 40)
        draw.ellipse((x, y, x + size, y + size), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def _looks(images: list[Image.Image]) -> Looks:
    return looks_of(np.stack([look_at(image).numpy() for image in images]))


def _marked(image: Image.Image) -> Image.Image:
    marked = image.copy()
    ImageDraw.Draw(marked).text((30, 50), "SAMPLE", fill=(255, 255, 255), font_size=16)
    return marked


CHANGES = {
    "same": lambda image: image.resize((80, 60)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned": lambda image: image.rotate(5, Image.Resampling.BICUBIC),
    "marked": _marked,
}


def test_changed_pictures_are_twins_and_others_are_not() -> None:
    scenes = [_scene(i) for i in range(24)]
    changed = [change(scenes[k]) for k, change in enumerate(CHANGES.values())]
    twins = find_twins(_looks([*scenes, *changed]))
    assert {(t.one, t.other) for t in twins} == {(k, 24 + k) for k in range(len(CHANGES))}
    how = {t.one: t.how for t in twins}
    assert how[0] == "same"
    assert how[1] == "mirrored"
    assert how[2] == "turned"


def test_a_crop_is_a_twin_where_features_bring_it_near() -> None:
    scenes = [_scene(i) for i in range(24)]
    looks = _looks([*scenes, scenes[3].crop((24, 12, 152, 108))])  # 80 % of the edges
    features = np.random.default_rng(0).normal(size=(25, 16)).astype(np.float32)
    features[24] = features[3] + 0.1
    twins = find_twins(looks, features)
    assert [(t.one, t.other, t.how) for t in twins] == [(3, 24, "cropped")]


def test_pictures_of_one_colour_are_no_twins() -> None:
    assert find_twins(_looks([Image.new("RGB", (64, 64), (10 * i, 0, 0)) for i in range(6)])) == []


@pytest.mark.parametrize(("count", "others"), [(40, 60), (60, 120)])
def test_of_many_copies_each_is_paired_with_the_first(count: int, others: int) -> None:
    rng = np.random.default_rng(0)
    looks = _looks([_scene(0)] * count + [_scene(i) for i in range(1, 1 + others)])
    order = rng.permutation(count + others)
    first = int(np.flatnonzero(order < count)[0])
    twins = find_twins(looks.take(order))
    assert {max(t.one, t.other) for t in twins} == set(np.flatnonzero(order < count).tolist()) - {first}


def test_near_pairs_are_those_of_all_products() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4100, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found = {tuple(pair) for pair in near_pairs(x, x, 0.985, 20)}
    all_pairs = np.argwhere(np.triu(x @ x.T, 1) >= 0.985)
    assert found == {tuple(pair) for pair in all_pairs}


def test_odd_pictures_have_their_reason() -> None:
    plain = [_scene(i) for i in range(40)]
    odd = {
        "empty": Image.new("RGB", (160, 120), (90, 90, 90)),
        "dark": Image.fromarray((np.asarray(_scene(50)) * 0.2).astype(np.uint8)),
        "blurred": _scene(51).resize((8, 6), Image.Resampling.BOX).resize((160, 120), Image.Resampling.BICUBIC),
        "shape": _scene(52).resize((600, 60)),
        "size": _scene(53).resize((16, 12)),
        "grey": _scene(54).convert("L").convert("RGB"),
    }
    found = odd_looks(_looks([*plain, *odd.values()]))
    reasons: dict[int, set[str]] = {}
    for one in found:
        reasons.setdefault(one.row, set()).add(one.reason)
    for row, reason in enumerate(odd, start=40):
        assert reason in reasons.get(row, set()), (reason, reasons)
    assert not [row for row in reasons if row < 40]


def test_what_is_far_from_its_class_is_found() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    features = rng.normal(size=(120, 12)) * 0.2 + np.eye(12)[labels] * 4
    labels[5] = 1
    features = np.concatenate([features, rng.normal(size=(1, 12)) * 30])
    found = odd_features(features, np.r_[labels, 1], ("cat", "dog"))
    assert (5, "far from its class", "100% of its neighbours are no dog") in [(o.row, o.reason, o.text) for o in found]
    assert 120 in [o.row for o in found if o.reason == "of another kind"]


@pytest.mark.parametrize("weak", [True, False])
def test_a_slice_is_weak_where_that_is_not_chance(weak: bool) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(10), 60)
    right = rng.random(600) < 0.9
    if weak:
        right[labels == 4] = rng.random(60) < 0.6
    names = tuple("abcdefghij")
    found = weak_slices(right, labels, names, rng.normal(size=(600, 8)))
    assert [part.name for part in found if part.weak and part.name.startswith("class")] == (["class e"] if weak else [])
    assert all(part.p <= 1 for part in found)


def test_chance_is_seldom_called_weakness() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 40)
    called = [
        any(part.weak for part in weak_slices(rng.random(400) < 0.8, labels, tuple("abcdefghij"))) for _ in range(100)
    ]
    assert sum(called) <= 10
