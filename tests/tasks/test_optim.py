"""Parameter groups and schedule, value by value."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from visionzoo.models.classifier import create_classifier
from visionzoo.models.mae import create_mae
from visionzoo.models.sam import create_sam
from visionzoo.models.simmim import create_simmim
from visionzoo.tasks.optim import (
    Schedule,
    check_optimizer,
    group_table,
    make_adamw,
    make_optimizer,
    param_groups,
    warmup_cosine,
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return create_classifier("vit_nano_patch4_32", 10)  # 4 blocks


def test_every_parameter_is_in_exactly_one_group(model: nn.Module) -> None:
    for decay in (1.0, 0.7):
        groups = param_groups(model, lr=1.0, weight_decay=0.1, layer_decay=decay)
        grouped = sorted(n for g in groups for n in g["param_names"])
        assert grouped == sorted(n for n, _ in model.named_parameters())


def test_no_decay_on_vectors_positions_and_tokens(model: nn.Module) -> None:
    groups = param_groups(model, lr=1.0, weight_decay=0.1)
    decayed = {n for g in groups if g["weight_decay"] == 0.1 for n in g["param_names"]}
    blocks = {f"blocks.{i}.{part}.weight" for i in range(4) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert decayed == {"patch_embed.proj.weight", "head.weight", *blocks}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.1}


@pytest.mark.parametrize(
    "name",
    ["swin_tiny_patch4_window7_224", "timm/vit_tiny_patch16_224", "timm/resnet18"],
)
def test_no_token_or_position_table_is_decayed_anywhere(name: str) -> None:
    with torch.device("meta"):
        other = create_classifier(name, 3)
    for group in param_groups(other, lr=1.0, weight_decay=0.1, layer_decay=0.9):
        if group["weight_decay"]:
            assert not [n for n in group["param_names"] if "pos_embed" in n or "token" in n or "bias" in n]


def test_layer_decay_counts_from_the_head(model: nn.Module) -> None:
    groups = param_groups(model, lr=2.0, weight_decay=0.1, layer_decay=0.5)
    lr = {name: g["lr"] for g in groups for name in g["param_names"]}
    # the head, four blocks (the last norm goes with the last of them), the stem: as timm counts them
    assert lr["head.weight"] == 2.0
    assert lr["norm.weight"] == lr["blocks.3.norm1.weight"]
    for i in range(4):
        assert lr[f"blocks.{i}.attn.qkv.weight"] == lr[f"blocks.{i}.norm1.bias"] == 2.0 * 0.5 ** (4 - i)
    assert lr["patch_embed.proj.weight"] == lr["pos_embed"] == lr["cls_token"] == 2.0 * 0.5**5


@pytest.mark.parametrize(
    "build",
    [
        lambda: create_mae("vit_nano_patch4_32", decoder_dim=32, decoder_depth=1, decoder_heads=2),
        lambda: create_simmim(backbone="swin_nano_patch2_window4_32", image_size=64, mask_patch_size=16),
        lambda: create_sam("vit_nano_patch4_32", image_size=64, embedding_stride=8, decoder_dim=64),
        lambda: create_sam("timm/resnet10t", image_size=64),
    ],
)
def test_layer_decay_reaches_the_encoder_of_every_model(build: Callable[[], nn.Module]) -> None:
    model = build()
    groups = param_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    lr = {name: g["lr"] for g in groups for name in g["param_names"]}
    assert set(lr) == {n for n, p in model.named_parameters() if p.requires_grad}
    encoder = getattr(model, "backbone", None) or model.encoder
    prefix = next(n for n, m in model.named_modules() if m is encoder) + "."
    alone = param_groups(encoder, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    within = {prefix + name: g["lr"] for g in alone for name in g["param_names"]}
    assert len(set(within.values())) > 3
    # the decoder is one layer more than the backbone has alone
    assert {name: lr[name] for name in within} == {name: value / 2 for name, value in within.items()}
    assert {value for name, value in lr.items() if name not in within} == {1.0}


def test_layer_decay_is_refused_where_layers_have_no_order() -> None:
    with pytest.raises(ValueError, match=r"layer_decay=0.5: Sequential has no one order of layers"):
        param_groups(nn.Sequential(nn.Linear(2, 2)), lr=1.0, weight_decay=0.1, layer_decay=0.5)


def test_frozen_parameters_are_left_out_and_nothing_left_is_an_error(model: nn.Module) -> None:
    frozen = create_classifier("vit_nano_patch4_32", 10).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        param_groups(frozen, lr=1.0, weight_decay=0.1)
    frozen.head.requires_grad_(True)
    groups = param_groups(frozen, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    assert sorted(n for g in groups for n in g["param_names"]) == ["head.bias", "head.weight"]


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_layer_decay_out_of_range(model: nn.Module, decay: float) -> None:
    with pytest.raises(ValueError, match=r"layer_decay=.* must be in \(0, 1\]"):
        param_groups(model, lr=1.0, weight_decay=0.1, layer_decay=decay)


def test_table_has_a_line_per_group(model: nn.Module) -> None:
    groups = param_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    lines = group_table(groups).splitlines()
    assert len(lines) == len(groups) + 1
    assert any("0.001" in line and "0.05" in line and "head.weight" in line for line in lines)


def test_schedule_values() -> None:
    def at(step: int) -> float:
        return warmup_cosine(step, warmup_steps=4, total_steps=12, floor=0.1)

    assert [at(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert at(4) == 1.0
    assert at(8) == pytest.approx(0.1 + 0.9 * 0.5)
    assert at(6) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert at(12) == at(100) == pytest.approx(0.1)
    assert warmup_cosine(0, warmup_steps=0, total_steps=10) == 1.0


def test_groups_keep_their_ratio_along_the_schedule(model: nn.Module) -> None:
    groups = param_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    optimizer = make_adamw(groups, lr=1.0, betas=(0.9, 0.95))
    schedule = Schedule(optimizer, lambda step: warmup_cosine(step, warmup_steps=2, total_steps=5))
    for step in range(5):
        factor = warmup_cosine(step, warmup_steps=2, total_steps=5)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([g["lr_scale"] * factor for g in groups])
        optimizer.step()
        schedule.step()
    assert {g["betas"] for g in optimizer.param_groups} == {(0.9, 0.95)}


@pytest.mark.parametrize("name", ["sgd", "lamb", "lion", "muon", "adan", "adafactorbv", "LAMB"])
def test_an_optimizer_of_timm_takes_the_step_that_timms_own_takes(name: str) -> None:
    from timm.optim import create_optimizer_v2

    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    theirs = copy.deepcopy(ours)
    optimizers = (
        make_optimizer(
            check_optimizer(name), param_groups(ours, lr=0.01, weight_decay=0.1), lr=0.01, betas=(0.9, 0.999)
        ),
        create_optimizer_v2(theirs, opt=name.lower(), lr=0.01, weight_decay=0.1, momentum=0.9),
    )
    before = ours[0].weight.detach().clone()
    for _ in range(3):
        x = torch.randn(16, 4)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert not torch.equal(ours[0].weight, before)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "said"),
    [("adamq", "did you mean"), ("adahessian", "second derivatives"), ("nothing like it", "such as adamw, lamb")],
)
def test_optimizers_that_there_are_not(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_optimizer(name)
