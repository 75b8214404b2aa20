import itertools

import numpy as np
import pytest
import torch

from visionzoo.metrics.clicks import BOX_NOISE_PIXELS, central_clicks, noisy_boxes, random_clicks
from visionzoo.metrics.segmentation import clicks_to_iou, connected_components, largest_component, mask_boxes


def masks(n=6, h=9, w=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(2, n, h, w, generator=g) > 0.5


def disc(h, w, y, x, r):
    ys, xs = torch.arange(h)[:, None], torch.arange(w)
    return (ys - y) ** 2 + (xs - x) ** 2 <= r * r


def test_connected_components_touch_at_corners():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 0, 1]], dtype=bool)
    labels, areas = connected_components(mask)
    assert sorted(areas.tolist()) == [1, 2, 4, 9]
    assert (labels == 0).sum() == areas[0] == 9
    assert np.array_equal(largest_component(mask), mask & (np.arange(4) == 3))
    assert not largest_component(np.zeros((3, 3), dtype=bool)).any()


def test_clicks_to_iou():
    ious = torch.tensor([[0.5, 0.86, 0.8], [0.9, 0.1, 0.1], [0.1, 0.2, 0.85], [0.1, 0.2, 0.3]])
    assert clicks_to_iou(ious, 0.85).tolist() == [2, 1, 3, 3]
    with pytest.raises(ValueError, match="at least one click"):
        clicks_to_iou(torch.zeros(3, 0), 0.9)


def test_boxes_against_a_loop():
    a, _ = masks()
    a[0] = False
    a[1] = False
    a[1, 4, 3] = True
    for mask, box in zip(a, mask_boxes(a).tolist(), strict=True):
        points = mask.nonzero().tolist()
        ys, xs = [p[0] for p in points] or [0], [p[1] for p in points] or [0]
        assert box == [min(xs), min(ys), max(xs), max(ys)]


def test_random_clicks_are_drawn_evenly_from_what_is_wrong():
    have, want = masks(n=1, h=3, w=3)
    generator = torch.Generator().manual_seed(1)
    draws = 4000
    clicks = random_clicks(have.expand(draws, -1, -1), want.expand(draws, -1, -1), generator)
    wrong = (have ^ want)[0]
    counts = torch.zeros(3, 3)
    for (x, y), label in zip(clicks.points.long().tolist(), clicks.labels.tolist(), strict=True):
        assert wrong[y, x]
        assert label == want[0, y, x]
        counts[y, x] += 1
    expected = draws / wrong.sum()
    assert (counts[wrong] - expected).abs().max() < 5 * expected**0.5
    assert clicks.found.all()


def test_random_clicks_come_from_their_generator():
    have, want = masks(n=4, h=30, w=30)
    draws = [random_clicks(have, want, torch.Generator().manual_seed(s)).points for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_nothing_to_click_on():
    have, _ = masks(n=2)
    for clicks in (random_clicks(have, have), central_clicks(have, have)):
        assert not clicks.found.any()
        assert clicks.points.abs().sum() == 0
    none = random_clicks(have[:0], have[:0])
    assert none.points.shape == (0, 2)


def slow_center(have, want):
    """Flood fill, then the pixel whose nearest other pixel, or edge, is farthest."""
    h, w = want.shape
    best = []
    for label, wrong in ((1, want & ~have), (0, have & ~want)):
        left = {tuple(p) for p in wrong.nonzero().tolist()}
        while left:
            part, todo = set(), [min(left)]
            while todo:
                y, x = todo.pop()
                if (y, x) in left:
                    left.remove((y, x))
                    part.add((y, x))
                    todo += [(y + dy, x + dx) for dy, dx in itertools.product((-1, 0, 1), repeat=2)]
            best.append((-len(part), 1 - label, min(part), label, part))
    _, _, _, label, part = min(best)
    outside = [(y, x) for y in range(-1, h + 1) for x in range(-1, w + 1) if (y, x) not in part]
    reach = {p: min((p[0] - y) ** 2 + (p[1] - x) ** 2 for y, x in outside) for p in part}
    return reach, label


@pytest.mark.parametrize("seed", range(4))
def test_central_click_against_flood_fill(seed):
    h, w = 24, 31
    noise = torch.rand(2, h, w, generator=torch.Generator().manual_seed(seed)) > 0.97
    have = disc(h, w, 8, 8, 5) ^ noise[0]
    want = disc(h, w, 10, 14 + seed, 9) ^ noise[1]
    clicks = central_clicks(have[None], want[None])
    reach, label = slow_center(have, want)
    x, y = clicks.points[0].long().tolist()
    assert reach[(y, x)] == max(reach.values())
    assert clicks.labels[0] == label
    assert torch.equal(clicks.points, central_clicks(have[None], want[None]).points)


def test_central_click_of_a_disc_is_its_middle_and_edges_are_borders():
    empty = torch.zeros(1, 40, 40, dtype=torch.bool)
    assert central_clicks(empty, disc(40, 40, 22, 13, 8)[None]).points.tolist() == [[13, 22]]
    assert central_clicks(empty, ~empty).points.tolist()[0] in [[19, 19], [19, 20], [20, 19], [20, 20]]
    surplus = central_clicks(disc(40, 40, 22, 13, 8)[None], empty)
    assert surplus.labels.tolist() == [0]


def test_noisy_boxes_stay_near_and_inside():
    boxes = torch.tensor([[10.0, 20.0, 60.0, 40.0]]).repeat(2000, 1)
    noisy = noisy_boxes(boxes, (64, 64), torch.Generator().manual_seed(0))
    assert (noisy[:, 2:] >= noisy[:, :2]).all()
    assert noisy.min() >= 0
    assert noisy.max() <= 63
    deviation = (noisy - boxes)[:, [0, 1, 3]].std(0)  # the right edge is cut by the image
    torch.testing.assert_close(deviation, torch.tensor([5.0, 2.0, 2.0]), rtol=0.1, atol=0)
    large = torch.tensor([[1000.0, 1000.0, 3000.0, 3000.0]]).repeat(500, 1)
    moved = noisy_boxes(large, (5000, 5000), torch.Generator().manual_seed(0)) - large
    assert moved.abs().max() == BOX_NOISE_PIXELS


def test_the_middle_is_the_same_pixel_every_time() -> None:
    """Four pixels are the middle of a square of even width; the first is taken, wherever the arrays lie in memory."""
    targets = torch.zeros(1, 32, 32, dtype=torch.bool)
    targets[0, 17:23, 11:17] = True
    kept = []
    for size in range(200):
        kept.append(torch.zeros(size + 1))
        clicks = central_clicks(torch.zeros_like(targets), targets.clone())
        assert clicks.points.tolist() == [[13.0, 19.0]]
