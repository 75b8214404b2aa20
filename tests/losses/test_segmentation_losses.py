import math

import pytest
import torch

from visionzoo.losses.segmentation import dice_loss, focal_loss, mask_iou, prompt_loss


def case(n=3, m=3, h=5, w=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, m, h, w, generator=g) * 2
    targets = (torch.rand(n, 1, h, w, generator=g) > 0.6).float()
    valid = torch.rand(n, 1, h, w, generator=g) > 0.2
    return logits, torch.rand(n, m, generator=g), targets, valid


def pixels(logits, targets, valid, i, j):
    """(probability, target) of each pixel of a mask that counts."""
    _, _, h, w = logits.shape
    for y in range(h):
        for x in range(w):
            if valid is None or valid[i, 0, y, x]:
                yield 1 / (1 + math.exp(-logits[i, j, y, x].item())), targets[i, 0, y, x].item()


def slow_focal(logits, targets, valid, i, j):
    values = [
        -0.25 * (1 - p) ** 2 * math.log(p) if t else -0.75 * p**2 * math.log(1 - p)
        for p, t in pixels(logits, targets, valid, i, j)
    ]
    return sum(values) / len(values)


def slow_dice(logits, targets, valid, i, j):
    rows = list(pixels(logits, targets, valid, i, j))
    return 1 - (2 * sum(p * t for p, t in rows) + 1) / (sum(p for p, _ in rows) + sum(t for _, t in rows) + 1)


def slow_iou(logits, targets, valid, i, j):
    rows = [(p > 0.5, t > 0.5) for p, t in pixels(logits, targets, valid, i, j)]
    union = sum(a or b for a, b in rows)
    return sum(a and b for a, b in rows) / union if union else 1.0


def iou(logits, targets, *, valid):
    return mask_iou(logits > 0, targets > 0.5, valid=valid)


def test_iou_of_empty_masks_and_of_zeros_and_ones():
    nothing = torch.zeros(1, 4, 4)
    assert mask_iou(nothing, nothing).tolist() == [1]
    assert mask_iou(nothing, torch.ones(1, 4, 4)).tolist() == [0]
    assert mask_iou(torch.eye(4)[None], torch.ones(1, 4, 4)).tolist() == [0.25]
    assert mask_iou(torch.eye(4)[None], torch.ones(1, 4, 4), valid=torch.eye(4)[None] > 0).tolist() == [1]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("fast", "slow"), [(focal_loss, slow_focal), (dice_loss, slow_dice), (iou, slow_iou)])
def test_each_term_against_a_loop(fast, slow, padded):
    logits, _, targets, valid = case()
    valid = valid if padded else None
    expected = [[slow(logits, targets, valid, i, j) for j in range(3)] for i in range(3)]
    torch.testing.assert_close(fast(logits, targets, valid=valid), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("all_scores", [True, False])
def test_the_best_mask_of_each_prompt_is_trained(all_scores):
    logits, scores, targets, valid = case()
    total = 0.0
    for i in range(3):
        losses = [
            20 * slow_focal(logits, targets, valid, i, j) + slow_dice(logits, targets, valid, i, j) for j in range(3)
        ]
        best = losses.index(min(losses))
        errors = [(scores[i, j].item() - slow_iou(logits, targets, valid, i, j)) ** 2 for j in range(3)]
        total += losses[best] + (sum(errors) / 3 if all_scores else errors[best])
    logits.requires_grad_(), scores.requires_grad_()
    loss = prompt_loss(logits, scores, targets, valid=valid, all_scores=all_scores)
    assert loss.total.item() == pytest.approx(total / 3, rel=1e-5)
    loss.total.backward()
    trained = logits.grad.flatten(2).abs().sum(2) > 0
    assert torch.equal(trained, torch.nn.functional.one_hot(loss.best, 3).bool())
    assert torch.equal(scores.grad != 0, torch.ones(3, 3).bool() if all_scores else trained)
    # padding has no gradient
    assert (logits.grad[~valid.expand_as(logits)] == 0).all()


def test_weights_are_the_papers_and_can_be_changed():
    logits, scores, targets, _ = case()
    loss = prompt_loss(logits, scores, targets)
    assert loss.total.item() == pytest.approx((20 * loss.focal + loss.dice + loss.iou).item())
    assert prompt_loss(logits, scores, targets, weights=(0, 0, 3)).total.item() == pytest.approx(3 * loss.iou.item())


def test_in_float32_and_finite_at_extremes():
    logits, scores, targets, _ = case()
    exact = prompt_loss(logits, scores, targets).total
    with torch.autocast("cpu", torch.bfloat16):
        low = prompt_loss(logits.bfloat16(), scores.bfloat16(), targets)
    assert low.total.dtype == torch.float32
    assert low.total.item() == pytest.approx(exact.item(), rel=0.01)
    far = (1e4 * torch.randn(2, 3, 4, 4)).requires_grad_()
    loss = prompt_loss(far, torch.zeros(2, 3), torch.zeros(2, 4, 4))
    loss.total.backward()
    assert loss.total.isfinite()
    assert far.grad.isfinite().all()


def test_what_is_thinner_than_a_cell_is_not_answered_by_nothing():
    """A line of two pixels fills no cell of four by half; the empty mask is wrong for it, and the line is right."""
    pixels = torch.zeros(1, 1, 32, 32)
    pixels[..., 9:11, 4:28] = 1
    targets = torch.nn.functional.interpolate(pixels, (8, 8), mode="area")
    assert float(targets.max()) == 0.5
    line, nothing = torch.where(targets > 0, 9.0, -9.0), torch.full_like(targets, -9.0)
    sure, unsure = torch.ones(1, 1), torch.zeros(1, 1)
    error = lambda logits, score: float(prompt_loss(logits, score, targets).iou)  # noqa: E731
    assert error(line, sure) == error(nothing, unsure) == 0
    assert error(line, unsure) == error(nothing, sure) == 1


def test_empty_mask_and_empty_batch():
    nothing = prompt_loss(torch.full((1, 1, 4, 4), -20.0), torch.ones(1, 1), torch.zeros(1, 1, 4, 4))
    assert nothing.total.item() == pytest.approx(0.0, abs=1e-5)  # right about nothing: IoU 1
    logits = torch.zeros(0, 3, 4, 4, requires_grad=True)
    loss = prompt_loss(logits, torch.zeros(0, 3), torch.zeros(0, 1, 4, 4))
    loss.total.backward()
    assert loss.total.item() == 0
    assert logits.grad is not None


def test_shapes_that_do_not_fit():
    logits, scores, targets, _ = case()
    with pytest.raises(ValueError, match=r"must be \(N, M, h, w\), \(N, M\) and \(N, 1, h, w\)"):
        prompt_loss(logits, scores, targets[..., :2])
