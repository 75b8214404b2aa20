"""iBOT's loss in DINO: in dense form, as lightly's, on every kind of backbone that takes a mask token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import visionzoo as vz
from visionzoo.backbones.vit import VisionTransformer
from visionzoo.models.bundle import ModelConfig, load_bundle, save_bundle
from visionzoo.models.ssl import Dino, create_ssl

SWIN = "swin_nano_patch2_window4_32"
SMALL: dict[str, Any] = {"hidden": 16, "out": 12, "image_size": 16, "patch_loss_weight": 0.5}


def ibot(backbone: str = "vit_nano_patch4_32", **options: Any) -> Dino:
    torch.manual_seed(0)
    model = create_ssl(backbone, "dino", **{**SMALL, **options})
    assert isinstance(model, Dino)
    return perturbed(model)


def averaging() -> Dino:
    """On a ViT that averages its patches and normalises the mean."""
    torch.manual_seed(0)
    plain = vz.create_backbone("vit_nano_patch4_32", image_size=16)
    config = replace(plain.config, pool="avg")
    encoder = VisionTransformer(config, plain.preprocess)
    encoder.name = "averaging"
    return perturbed(Dino(encoder, hidden=16, out=12, temperature=0.1, patch_loss_weight=0.5))


def perturbed(model: Dino) -> Dino:
    """In float64, each value of which is something, and whose teacher is another than the student."""
    model.double()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model


def batch(model: Dino, count: int = 3) -> tuple[list[Tensor], Tensor]:
    """Views, and their mask (2, B, h, w); the second view of the first image hides nothing."""
    views = [torch.randn(count, 3, size, size, dtype=torch.float64) for size in (16, 16, 8)]
    mask = torch.rand(2, count, *model.mask_grid((16, 16))) < 0.4
    mask[1, 0] = False
    mask[0, 0, 0, 0] = True
    return views, mask


def normed(encoder: Any, x: Tensor) -> Tensor:
    return encoder.fc_norm(x) if hasattr(encoder, "fc_norm") else x


def dense(model: Dino, views: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two losses and the mean of patches as bytedance/ibot's ``iBOTLoss`` has them: every patch, view by view."""
    teacher, encoder = model.teacher, model.encoder
    assert teacher is not None
    head, own = ("patch_projector", model.patch_projector) if "patch_projector" in teacher else ("projector", None)
    own = own or model.projector
    repeat = encoder.stride // (encoder.patch_embed.patch_size)
    said, targets, patches, patch_targets = [], [], [], []
    for view, cells in zip(views[:2], mask, strict=True):
        fine = cells.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        x = encoder.forward_features(view, mask=fine, mask_token=model.mask_token)
        grid = encoder.split(normed(encoder, x), view.shape[-2:])[0]
        said.append(model.projector(encoder.pooled_features(x)))
        patches.append(own(grid.flatten(2).mT))
        with torch.no_grad():
            x = teacher["encoder"].forward_features(view)
            grid = encoder.split(normed(teacher["encoder"], x), view.shape[-2:])
            targets.append(teacher["projector"](teacher["encoder"].pooled_features(x)))
            patch_targets.append(teacher[head](grid[0].flatten(2).mT))
    said += [model.projector(encoder(view).pooled) for view in views[2:]]
    of_views, pairs, of_patches = 0.0, 0, 0.0
    for q, target in enumerate(targets):
        sharp = ((target - model.centre) / model.teacher_temperature).softmax(-1)
        for v, student in enumerate(said):
            if v == q:
                p = ((patch_targets[q] - model.patch_centre) / model.teacher_temperature).softmax(-1)
                loss = -(p * (patches[v] / model.temperature).log_softmax(-1)).sum(-1)
                hidden = mask[q].flatten(1).double()
                of_patches += ((loss * hidden).sum(-1) / hidden.sum(-1).clamp(min=1)).mean() / 2
            else:
                of_views += -(sharp * (student / model.temperature).log_softmax(-1)).sum(-1).mean()
                pairs += 1
    return of_views / pairs, of_patches, torch.cat(patch_targets).mean((0, 1))


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("vit_nano_patch4_32", {}),
        ("vit_nano_patch4_32", {"patch_out": 7}),
        (SWIN, {}),
        ("averaging", {}),
    ],
)
def test_it_is_the_references(backbone: str, options: dict[str, Any]) -> None:
    model = averaging() if backbone == "averaging" else ibot(backbone, **options)
    views, mask = batch(model)
    hidden = mask.flatten().nonzero()[:, 0]
    found = model.loss(views, None, hidden)
    of_views, of_patches, mean = dense(model, views, mask)
    torch.testing.assert_close(found.parts["view_loss"], of_views, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.parts["patch_loss"], of_patches, rtol=1e-9, atol=1e-9)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    ours = torch.autograd.grad(found.loss, list(trained.values()))
    theirs = torch.autograd.grad(of_views + 0.5 * of_patches, list(trained.values()))
    for name, a, b in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert name != "mask_token" or a.any()
    assert found.seen is not None
    torch.testing.assert_close(found.seen[len(model.centre) :].double(), mean, rtol=1e-5, atol=1e-6)
    before = model.patch_centre.clone()
    model.remember(found.seen)
    torch.testing.assert_close(model.patch_centre, 0.9 * before + 0.1 * mean, rtol=1e-5, atol=1e-6)


def test_it_is_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss")
    model = ibot().float()
    views, mask = batch(model)
    views = [view.float() for view in views]
    student, teacher = model._student_says_masked, model._teacher_says_of_patches
    hidden, large = mask.flatten().nonzero()[:, 0], torch.cat(views[:2])
    theirs = loss.IBOTPatchLoss(output_dim=12, teacher_temp=0.04, student_temp=0.1)
    theirs.center.value.copy_(model.patch_centre.view_as(theirs.center.value))
    expected = theirs(teacher(large, hidden)[1], student(large, hidden, 4, 4)[1], mask.flatten(0, 1))
    torch.testing.assert_close(model.loss(views, None, hidden).parts["patch_loss"], expected, rtol=1e-6, atol=1e-6)


def test_a_batch_that_hides_nothing_is_dinos() -> None:
    model = ibot()
    views, _ = batch(model)
    found = model.loss(views, None, torch.zeros(0, dtype=torch.int64))
    model.patch_loss_weight = 0
    torch.testing.assert_close(found.loss, model.loss(views).loss)
    found.loss.backward()
    assert torch.equal(model.mask_token.grad, torch.zeros_like(model.mask_token))


def test_what_is_written_is_read(tmp_path: Any) -> None:
    model = ibot(patch_out=7).float()
    config = ModelConfig(task="ssl", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model.exported(), config, tmp_path)
    again, _ = load_bundle(tmp_path)
    for name, tensor in again.state_dict().items():
        ours = name if name.startswith(("teacher.", "mask", "centre", "patch_centre")) else f"teacher.{name}"
        assert torch.equal(tensor, model.state_dict()[ours]), name


def test_what_it_refuses() -> None:
    model = ibot()
    views, _ = batch(model)
    with pytest.raises(ValueError, match=r"patch_loss_weight=0.5 needs to know which patches are hidden: .*hidden"):
        model.loss(views)
    with pytest.raises(ValueError, match="must be of one size"):
        model.loss([views[0], views[2]], None, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="18x18 pixels do not divide into patches of 4 pixels"):
        model.mask_grid((18, 18))
    for options, text in (
        ({"backbone": "timm/resnet18", "image_size": 32}, r"\(patch_loss_weight\) needs the capability 'masked_image'"),
        ({"method": "moco"}, "patch_loss_weight=0.5 belongs to dino"),
        ({"patch_loss_weight": -1.0}, "patch_loss_weight=-1.0 must be at least 0"),
        ({"patch_out": 0}, "patch_out=0 must be at least 1"),
        ({"patch_out": 8, "patch_loss_weight": 0.0}, "patch_out=8 is the head of patches; give patch_loss_weight too"),
    ):
        with pytest.raises(ValueError, match=text):
            create_ssl(**{"backbone": "vit_nano_patch4_32", "method": "dino", **SMALL, **options})
