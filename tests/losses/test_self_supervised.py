"""Losses of self-supervised pretraining: slow forms, lightly's, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.losses.self_supervised import (
    masked_patch_distillation,
    momentum_contrast,
    nt_xent,
    self_distillation,
)

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}


def features(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Equal to 1e-6, with gradients."""
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-6, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs, retain_graph=True), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_nt_xent_in_slow_form() -> None:
    first, second = features(5, 7), features(5, 7, seed=1)
    views = F.normalize(torch.cat((first, second)), dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(10):
        others = torch.stack([views[i] @ views[k] / 0.3 for k in range(10) if k != i])
        total = total + (others.logsumexp(0) - views[i] @ views[(i + 5) % 10] / 0.3) / 10
    same(nt_xent(first, second, 0.3), total, first, second)


def test_momentum_contrast_in_slow_form() -> None:
    queries, keys = features(4, 6), features(4, 6, seed=1)
    q, k = F.normalize(queries, dim=1), F.normalize(keys.detach(), dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        total = total + torch.stack([q[i] @ k[j] / 0.2 for j in range(4)]).logsumexp(0) - q[i] @ k[i] / 0.2
    same(momentum_contrast(queries, keys, 0.2), total / 4 * 2 * 0.2, queries)
    loss = momentum_contrast(queries, keys, 0.2)
    assert torch.autograd.grad(loss, keys, allow_unused=True)[0] is None, "the keys are not learned"
    queue = F.normalize(features(9, 6, seed=2).detach(), dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        own = q[i] @ k[i] / 0.2
        total = total + torch.stack([own, *(q[i] @ old / 0.2 for old in queue)]).logsumexp(0) - own
    same(momentum_contrast(queries, keys, 0.2, queue=queue), total / 4, queries)


def test_self_distillation_in_slow_form() -> None:
    student = [features(3, 8, seed=s) for s in range(4)]
    teacher = [features(3, 8, seed=10 + s) for s in range(2)]
    centre = features(8, seed=20).detach()
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for t, target in enumerate(teacher):
        for s, view in enumerate(student):
            if s != t:
                p = ((target.detach() - centre) / 0.04).softmax(1)
                total = total - (p * (view / 0.1).log_softmax(1)).sum(1).mean()
                pairs += 1
    same(self_distillation(student, teacher, centre, **TEMPERATURES), total / pairs, *student)
    loss = self_distillation(student, teacher, centre, **TEMPERATURES)
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None, None)


def test_masked_patches_in_slow_form() -> None:
    student, teacher = features(3, 5, 8), features(3, 5, 8, seed=1)
    centre = features(8, seed=2).detach()
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    total = torch.zeros((), dtype=torch.float64)
    for b in range(3):
        hidden = mask[b].nonzero().flatten().tolist()
        for p in hidden:
            target = ((teacher[b, p].detach() - centre) / 0.04).softmax(0)
            total = total - (target * (student[b, p] / 0.1).log_softmax(0)).sum() / len(hidden) / 3
    image = mask.nonzero()[:, 0]
    same(masked_patch_distillation(student[mask], teacher[mask], image, 3, centre, **TEMPERATURES), total, student)
    nothing = masked_patch_distillation(student[:0, 0], teacher[:0, 0], image[:0], 3, centre, **TEMPERATURES)
    assert nothing.item() == 0
    assert torch.equal(torch.autograd.grad(nothing, student)[0], torch.zeros_like(student))


def test_they_are_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss")
    first, second = (features(6, 16, seed=s).detach().float().requires_grad_() for s in range(2))
    theirs = loss.NTXentLoss(temperature=0.5)(first, second)
    same(nt_xent(first, second, 0.5), theirs, first, second)

    student = [features(4, 12, seed=s).detach().float().requires_grad_() for s in range(5)]
    teacher = [features(4, 12, seed=10 + s).detach().float() for s in range(2)]
    dino = loss.DINOLoss(output_dim=12, warmup_teacher_temp=0.04, teacher_temp=0.04, warmup_teacher_temp_epochs=1)
    centre = torch.randn(12)
    dino.center.copy_(centre.view_as(dino.center))
    ours = self_distillation(student, teacher, centre, **TEMPERATURES)
    same(ours, dino(teacher, student, epoch=0), *student)

    patches, target = (features(3, 9, 12, seed=s).detach().float() for s in (30, 31))
    patches.requires_grad_()
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, :3] = mask[1, 2:7] = mask[2, 4:] = True
    ibot = loss.IBOTPatchLoss(output_dim=12, teacher_temp=0.04, student_temp=0.1)
    ibot.center.value.copy_(centre.view_as(ibot.center.value))
    image = mask.nonzero()[:, 0]
    ours = masked_patch_distillation(patches[mask], target[mask], image, 3, centre, **TEMPERATURES)
    same(ours, ibot(target[mask], patches[mask], mask.view(3, 3, 3)), patches)


def test_what_they_say_of_views_that_agree() -> None:
    """Where every view is equally far from all others, there is nothing but chance."""
    same_view = torch.ones(8, 4)
    assert nt_xent(same_view, same_view, 0.1).item() == pytest.approx(math.log(15))
    assert momentum_contrast(same_view, same_view, 0.5).item() == pytest.approx(math.log(8))
    flat = torch.zeros(8, 16)
    uniform = self_distillation([flat, flat], [flat, flat], torch.zeros(16), **TEMPERATURES)
    assert uniform.item() == pytest.approx(math.log(16))


def test_half_precision_features_are_compared_in_full() -> None:
    first, second = (features(6, 16, seed=s).detach() for s in range(2))
    whole = nt_xent(first.bfloat16().float(), second.bfloat16().float(), 0.1)
    assert nt_xent(first.bfloat16(), second.bfloat16(), 0.1).dtype == torch.float32
    torch.testing.assert_close(nt_xent(first.bfloat16(), second.bfloat16(), 0.1), whole)


def test_what_they_refuse() -> None:
    one = torch.ones(1, 4)
    with pytest.raises(ValueError, match="a batch of at least 2"):
        nt_xent(one, one, 0.1)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        nt_xent(torch.ones(2, 4), torch.ones(2, 4), 0)
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(3, 4\) must both be"):
        momentum_contrast(torch.ones(2, 4), torch.ones(3, 4), 0.1)
    with pytest.raises(ValueError, match="1 views of the student"):
        self_distillation([one], [one], torch.zeros(4), **TEMPERATURES)
    with pytest.raises(ValueError, match=r"the images of the patches \(3,\) \(M,\)"):
        masked_patch_distillation(
            torch.ones(2, 4), torch.ones(2, 4), torch.zeros(3, dtype=torch.int64), 1, torch.zeros(4), **TEMPERATURES
        )
