"""Mixup and CutMix against loops."""

from __future__ import annotations

import pytest
import torch

from visionzoo.tasks.mixing import Mixer, cutmix, cutmix_box, mixup, soft_targets


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 3, 6, 8), soft_targets(torch.tensor([0, 1, 2, 1]), 3), torch.tensor([2, 0, 3, 1])


def test_mixup_is_the_loop(batch) -> None:
    images, targets, order = batch
    mixed, soft = mixup(images, targets, 0.3, order)
    for b in range(4):
        torch.testing.assert_close(mixed[b], 0.3 * images[b] + 0.7 * images[order[b]])
        torch.testing.assert_close(soft[b], 0.3 * targets[b] + 0.7 * targets[order[b]])


def test_cutmix_is_the_loop(batch) -> None:
    images, targets, order = batch
    top, left, bottom, right = 1, 2, 4, 7
    before = images.clone()
    mixed, soft = cutmix(images, targets, (top, left, bottom, right), order)
    assert torch.equal(images, before)
    share = 15 / 48
    for b in range(4):
        for y in range(6):
            for x in range(8):
                inside = top <= y < bottom and left <= x < right
                source = images[order[b]] if inside else images[b]
                assert torch.equal(mixed[b, :, y, x], source[:, y, x])
        torch.testing.assert_close(soft[b], (1 - share) * targets[b] + share * targets[order[b]])


def test_cutmix_box_has_the_asked_area_and_stays_inside() -> None:
    assert cutmix_box((8, 8), 0.75, (0.5, 0.5)) == (2, 2, 6, 6)
    assert cutmix_box((8, 8), 0.75, (0.0, 0.99)) == (0, 6, 2, 8)
    assert cutmix_box((8, 8), 1.0, (0.5, 0.5))[0] == cutmix_box((8, 8), 1.0, (0.5, 0.5))[2]  # empty
    assert cutmix_box((6, 8), 0.0, (0.5, 0.5)) == (0, 0, 6, 8)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_the_same_seed_mixes_the_same(batch, alphas: tuple[float, float]) -> None:
    images, targets, _ = batch
    mixer = Mixer(*alphas)
    results = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        results.append(mixer(images, targets))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])
    torch.testing.assert_close(results[0][1].sum(1), torch.ones(4))


def test_off_and_out_of_range() -> None:
    assert not Mixer(0.0, 0.0).active
    with pytest.raises(ValueError, match="mixup=-1 must be at least 0"):
        Mixer(-1, 0)
