"""Layouts of papers' own releases, whose code is not installable: each is written down as a rename of timm's keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import CLASSES, HEADS, SWIN, VIT, WIDTH, images, perturb, timm_model
from torch import Tensor, nn

import visionzoo as vz
from visionzoo.weights import export_weights, load_weights, read_state_dict
from visionzoo.weights.adapters import LAYOUTS
from visionzoo.weights.adapters.swin import shift_mask
from visionzoo.weights.adapters.vit_common import beit_position_index, relative_index
from visionzoo.weights.exporting import facts_of

StateDict = dict[str, Tensor]


def rename(state: StateDict, *pairs: tuple[str, str]) -> StateDict:
    """Keys with regular expressions replaced, in turn."""
    result = {}
    for key, value in state.items():
        for old, new in pairs:
            key = re.sub(old, new, key)
        result[key] = value
    return result


def jax(state: StateDict) -> StateDict:
    """checkpoints of google-research/vision_transformer: vit_jax/models_vit.py under flax's automatic names."""
    out: StateDict = {"cls": state["cls_token"], "Transformer/posembed_input/pos_embedding": state["pos_embed"]}
    out["embedding/kernel"] = torch.einsum("oihw->hwio", state["patch_embed.proj.weight"])
    out["embedding/bias"] = state["patch_embed.proj.bias"]
    for i in range(2):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = theirs + "MultiHeadDotProductAttention_1/"
        for n, name in enumerate(("query", "key", "value")):
            weight = state[ours + "attn.qkv.weight"].view(3, HEADS, WIDTH // HEADS, WIDTH)[n]
            out[f"{attention}{name}/kernel"] = torch.einsum("hdi->ihd", weight)
            out[f"{attention}{name}/bias"] = state[ours + "attn.qkv.bias"].view(3, HEADS, -1)[n]
        proj = state[ours + "attn.proj.weight"].view(WIDTH, HEADS, -1)
        out[attention + "out/kernel"], out[attention + "out/bias"] = (
            torch.einsum("ohd->hdo", proj),
            state[ours + "attn.proj.bias"],
        )
        for a, b in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            out[f"{theirs}{a}/scale"], out[f"{theirs}{a}/bias"] = state[f"{ours}{b}.weight"], state[f"{ours}{b}.bias"]
        for a, b in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            out[f"{theirs}MlpBlock_3/{a}/kernel"] = state[f"{ours}mlp.{b}.weight"].T
            out[f"{theirs}MlpBlock_3/{a}/bias"] = state[f"{ours}mlp.{b}.bias"]
    out["Transformer/encoder_norm/scale"], out["Transformer/encoder_norm/bias"] = (
        state["norm.weight"],
        state["norm.bias"],
    )
    out["head/kernel"], out["head/bias"] = state["head.weight"].T, state["head.bias"]
    return out


def with_registers(state: StateDict) -> StateDict:
    """DINOv2 adds a position to the class token, which timm has folded; here that position is one half of it."""
    cls = state["cls_token"] / 2
    out = {k: v for k, v in state.items() if k not in ("reg_token", "cls_token", "pos_embed")}
    return out | {
        "register_tokens": state["reg_token"],
        "cls_token": cls,
        "pos_embed": torch.cat((cls, state["pos_embed"]), dim=1),
        "mask_token": torch.randn(1, WIDTH),
    }


def dinov3(state: StateDict) -> StateDict:
    out = rename(state, ("reg_token", "storage_tokens"), ("gamma_([12])", r"ls\1.gamma"))
    for i in range(2):
        stem = f"blocks.{i}.attn."
        query, value = out.pop(stem + "q_bias"), out.pop(stem + "v_bias")
        zero, one = torch.zeros(WIDTH), torch.ones(WIDTH)
        out[stem + "qkv.bias"], out[stem + "qkv.bias_mask"] = (
            torch.cat((query, zero, value)),
            torch.cat((one, zero, one)),
        )
    return out | {"mask_token": torch.zeros(1, WIDTH), "rope_embed.periods": torch.ones(3)}


def beit(state: StateDict) -> StateDict:
    index = {f"blocks.{i}.attn.relative_position_index": torch.zeros(17, 17, dtype=torch.int64) for i in range(2)}
    return state | index


def swin(state: StateDict) -> StateDict:
    out = rename(state, (r"layers\.1\.downsample", "layers.0.downsample"), (r"^head\.fc", "head"))
    buffers = ("relative_position_index", "relative_coords_table")
    extra = {f"layers.{s}.blocks.{b}.attn.{n}": torch.zeros(4) for s in (0, 1) for b in (0, 1) for n in buffers}
    return out | extra | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}


VIT_TINY, DINOV2_SMALL = "vit_tiny_patch16_224", "vit_small_patch14_dinov2"
GIANT = {"mlp_ratio": 64 / 24}
CASES: dict[str, tuple[str, str, dict[str, float], Callable[[StateDict], StateDict]]] = {
    "jax": ("vit_jax", VIT_TINY, {}, jax),
    "deit_distilled": ("timm", "deit_tiny_distilled_patch16_224", {}, dict),
    "deit3": ("deit", "deit3_small_patch16_224", {}, lambda s: rename(s, (r"ls([12])\.gamma", r"gamma_\1"))),
    "mae": ("mae", VIT_TINY, {}, lambda s: s | {"mask_token": torch.ones(1), "decoder_embed.weight": torch.ones(1)}),
    "mae_encoder_only": ("timm", VIT_TINY, {}, dict),
    "moco_v3": (
        "moco_v3",
        VIT_TINY,
        {"num_classes": 0},
        lambda s: (
            {f"base_encoder.{k}": v for k, v in s.items()}
            | {f"momentum_encoder.{k}": v + 1 for k, v in s.items()}
            | dict.fromkeys(("base_encoder.head.0.weight", "predictor.0.weight"), torch.ones(1))
        ),
    ),
    "dino": ("dino", VIT_TINY, {"num_classes": 0}, lambda s: s | {"head.mlp.0.weight": torch.ones(1)}),
    "dinov2": ("dinov2", DINOV2_SMALL, {}, lambda s: s | {"mask_token": torch.ones(1, WIDTH)}),
    "dinov2_chunked": (
        "dinov2",
        DINOV2_SMALL,
        {},
        lambda s: rename(s, (r"blocks\.(\d)\.", r"blocks.\1.\1.")) | {"mask_token": torch.ones(1, WIDTH)},
    ),
    "dinov2_registers": ("dinov2", "vit_small_patch14_reg4_dinov2", {}, with_registers),
    "dinov2_giant": (
        "dinov2",
        "vit_giant_patch14_dinov2",
        GIANT,
        lambda s: rename(s, ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")) | {"mask_token": torch.ones(1, WIDTH)},
    ),
    "dinov3": ("dinov3", "vit_small_patch16_dinov3_qkvb", {}, dinov3),
    "dinov3_gated": (
        "dinov3",
        "vit_small_plus_patch16_dinov3_qkvb",
        {},
        lambda s: dinov3(rename(s, ("fc1_g", "w1"), ("fc1_x", "w2"), ("mlp.fc2", "mlp.w3"))),
    ),
    "beit": ("beit", "beit_base_patch16_224", {}, beit),
    "swin": ("swin", "swin_tiny_patch4_window7_224", {}, swin),
    "swinv2": ("swin", "swinv2_tiny_window8_256", {}, swin),
}


def make(case: str) -> tuple[nn.Module, nn.Module, StateDict]:
    """A model with weights, a fresh one of its kind, and the weights in the official layout."""
    _, name, options, official = CASES[case]
    family = "swin" if "swin" in name else "vit"
    size = SWIN if family == "swin" else VIT
    models = [timm_model(name, family, **{"num_classes": CLASSES, **size, **options}) for _ in range(2)]
    perturb(models[0])
    return models[0], models[1], official(dict(models[0].state_dict()))


@pytest.mark.parametrize("case", list(CASES))
def test_official_release_loads(case: str) -> None:
    source, fresh, state = make(case)
    report = load_weights(fresh, state)
    assert report.layout == CASES[case][0]
    assert report.share == 1
    assert torch.equal(fresh(images()), source(images()))


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][0] != "timm"])
def test_official_layout_is_written_as_it_was_read(case: str) -> None:
    source, _, state = make(case)
    layout = LAYOUTS[CASES[case][0]]
    back = layout.from_timm(source.state_dict(), facts_of(source))
    # Pretraining tokens are gone, tables that code computes come back computed, a folded class token stays whole.
    remade = ("mask_token", "decoder", "head.mlp", "periods", "attn_mask", "relative_", "cls_token", "pos_embed")
    remade += ("momentum_encoder", "base_encoder.head", "predictor")
    comparable = {k: v for k, v in state.items() if not any(name in k for name in remade)}
    if case == "dinov2_chunked":
        comparable = rename(comparable, (r"blocks\.\d\.(\d)\.", r"blocks.\1."))
    assert {k for k in back if not any(name in k for name in remade)} == set(comparable)
    for key, tensor in comparable.items():
        assert torch.equal(back[key], tensor), key
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in layout.to_timm(back).items())


@pytest.mark.parametrize("part", ["module.base_encoder.", "module.encoder_q."])
def test_checkpoints_of_moco_and_dino_as_they_are_saved(part: str) -> None:
    """DDP puts ``module.`` before every key; ResNets have torchvision's names, with the projector as ``fc``."""
    source, fresh = (vz.create_backbone("timm/resnet18") for _ in range(2))
    perturb(source)
    inside = {f"{part}{k}": v for k, v in source.state_dict().items()}
    others = {f"{part}fc.0.weight": torch.ones(2, 2), "module.predictor.0.weight": torch.ones(2, 2)}
    report = load_weights(fresh, {"epoch": 3, "state_dict": inside | others})
    assert report.share == 1
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in fresh.state_dict().items())
    vit, fresh_vit, state = make("dino")
    teacher = {f"module.backbone.{k}" if not k.startswith("head") else f"module.{k}": v for k, v in state.items()}
    student = {k: torch.zeros_like(v) for k, v in teacher.items()}
    assert load_weights(fresh_vit, {"student": student, "teacher": teacher, "epoch": 3}).share == 1
    assert all(torch.equal(v, vit.state_dict()[k]) for k, v in fresh_vit.state_dict().items())


def test_dinov3_without_biases_loads_where_training_left_them_at_zero() -> None:
    source = perturb(timm_model("vit_small_patch16_dinov3", "vit", num_classes=0, **VIT))
    state = LAYOUTS["dinov3"].from_timm(source.state_dict())
    fresh = timm_model("vit_small_patch16_dinov3", "vit", num_classes=0, **VIT)
    report = load_weights(fresh, state)
    assert torch.equal(fresh(images()), source(images()))
    assert "biases of exactly zero" in str(report)
    state["blocks.0.attn.qkv.bias"][0] = 1.0
    with pytest.raises(ValueError, match=r"unexpected.*blocks\.0\.attn\.q_bias"):
        load_weights(fresh, state)


@pytest.mark.parametrize("layout", ["beit", "transformers_beit", "transformers5_beit"])
def test_shared_position_table_of_beit_pretraining_reaches_every_block(layout: str) -> None:
    source = perturb(timm_model("beit_base_patch16_224", "vit", num_classes=0, **VIT))
    table = source.state_dict()["blocks.0.attn.relative_position_bias_table"]
    source.blocks[1].attn.relative_position_bias_table.data.copy_(table)
    state = LAYOUTS[layout].from_timm(source.state_dict())
    state = {k: v for k, v in state.items() if "relative_position" not in k}
    shared = {
        "beit": "rel_pos_bias.relative_position_bias_table",
        "transformers_beit": "encoder.relative_position_bias.relative_position_bias_table",
        "transformers5_beit": "shared_position_bias.relative_position_bias_table",
    }[layout]
    fresh = timm_model("beit_base_patch16_224", "vit", num_classes=0, **VIT)
    report = load_weights(fresh, {**state, shared: table, "lm_head.weight": torch.ones(3, 3)})
    assert report.layout == layout
    assert torch.equal(fresh(images()), source(images()))


def test_jax_file_is_read_and_written(tmp_path: Path) -> None:
    source, fresh, state = make("jax")
    np.savez(tmp_path / "B_16.npz", **{k: v.numpy() for k, v in state.items()})
    assert load_weights(fresh, tmp_path / "B_16.npz").layout == "vit_jax"
    assert torch.equal(fresh(images()), source(images()))
    export_weights(fresh, tmp_path / "out.npz", layout="vit_jax")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as written:
        assert set(written.files) == set(state)
        assert all(np.array_equal(written[k], v.numpy()) for k, v in state.items())
    assert set(read_state_dict(tmp_path / "out.npz")[0]) == set(state)


def test_jax_head_behind_a_representation_layer_is_not_used() -> None:
    _, fresh, state = make("jax")
    state |= {"pre_logits/kernel": torch.ones(WIDTH, WIDTH), "pre_logits/bias": torch.ones(WIDTH)}
    with pytest.warns(UserWarning, match=r"head\.weight"):
        report = load_weights(fresh, state)
    assert set(report.reset) == {"head.weight", "head.bias"}


def test_index_and_mask_buffers_are_those_of_the_peers() -> None:
    import timm

    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, embed_dim=12, window_size=4, num_heads=(1,) * 4
    )
    block = model.layers[0].blocks[1]
    assert torch.equal(relative_index(4), block.attn.relative_position_index)
    assert torch.equal(shift_mask((16, 16), 4), block.attn_mask)
    wide = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=(32, 64), embed_dim=12, window_size=4, num_heads=(1,) * 4
    )
    assert torch.equal(shift_mask((8, 16), 4), wide.layers[0].blocks[1].attn_mask)
    beit_model = timm.create_model("beit_base_patch16_224", **VIT)
    attn = beit_model.blocks[0].attn
    assert torch.equal(beit_position_index(attn.relative_position_bias_table), attn.relative_position_index)


def test_written_swin_has_the_buffers_of_the_official_model(tmp_path: Path) -> None:
    model = timm_model("swin_tiny_patch4_window7_224", "swin", **SWIN | {"img_size": 64, "num_classes": CLASSES})
    written, _ = read_state_dict(export_weights(model, tmp_path / "swin.safetensors", layout="swin"))
    assert [k for k in written if "attn_mask" in k] == ["layers.0.blocks.1.attn_mask", "layers.1.blocks.1.attn_mask"]
    assert torch.equal(written["layers.0.blocks.1.attn_mask"], model.layers[0].blocks[1].attn_mask)
    assert written["layers.1.blocks.0.attn.relative_position_index"].shape == (16, 16)
