"""Swin at sizes that patches and windows do not divide, and the weights of other windows."""

from __future__ import annotations

import math

import pytest
import torch
from backbone_checks import assert_close, build, perturb
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor
from torch.nn import functional as F
from transformers import SwinConfig as HFConfig
from transformers import SwinModel, Swinv2Config, Swinv2Model

import visionzoo as vz
from visionzoo.backbones import swin
from visionzoo.layers import window as window_module
from visionzoo.layers.window import from_windows, to_windows, window_layout
from visionzoo.layers.window_attention import (
    CosineWindowAttention,
    WindowAttention,
    relative_index,
    resample_bias_table,
)

NANO = ("swin_nano_patch2_window4_32", "swinv2_nano_patch2_window4_32")
both = pytest.mark.parametrize("name", NANO)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# Layouts against their slow form.

GRIDS = [(8, 8), (8, 12), (9, 8), (7, 13), (4, 4), (4, 9), (3, 3), (3, 9), (1, 1), (11, 2)]


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("grid", GRIDS)
def test_windows_are_pad_roll_partition(grid: tuple[int, int], shift: int) -> None:
    (h, w), s = grid, 4
    x = images(2, h, w, 3)
    layout = window_layout(grid, s, shift, x)
    padded = F.pad(x, (0, 0, 0, -w % s, 0, -h % s))
    moves = [shift if n > s else 0 for n in grid]
    rolled = padded.roll([-m for m in moves], (1, 2))
    slow = [
        rolled[b, i : i + s, j : j + s].reshape(s * s, 3)
        for b in range(2)
        for i in range(0, rolled.shape[1], s)
        for j in range(0, rolled.shape[2], s)
    ]
    windows = to_windows(x, layout)
    assert torch.equal(windows, torch.stack(slow))
    assert windows.shape[0] == 2 * layout.num_windows
    assert torch.equal(from_windows(windows, layout), x)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("grid", GRIDS)
def test_mask_keeps_pairs_apart(grid: tuple[int, int], shift: int) -> None:
    """Two tokens are apart if the border of the rolled image runs between them, or if the key is masked padding."""
    s = 4
    layout = window_layout(grid, s, shift, torch.empty(0))
    hp, wp = layout.padded
    order = torch.arange(hp * wp) if layout.order is None else layout.order
    mask = torch.zeros(layout.num_windows, s * s, s * s) if layout.mask is None else layout.mask
    for places, values in zip(order.view(-1, s * s).tolist(), mask, strict=True):
        for i, a in enumerate(places):
            for j, b in enumerate(places):
                near = all(abs(p - q) < s for p, q in zip(divmod(a, wp), divmod(b, wp), strict=True))
                beyond = any(n < s and p >= n for p, n in zip(divmod(b, wp), grid, strict=True))
                assert values[i, j] == (-torch.inf if beyond else 0.0 if near else window_module.BORDER)


def test_windows_have_the_gradient_of_a_gather() -> None:
    x = images(2, 7, 9, 3).double().requires_grad_()
    layout = window_layout((7, 9), 4, 2, x)
    assert torch.autograd.gradcheck(lambda t: to_windows(t, layout), x)
    assert torch.autograd.gradgradcheck(lambda t: from_windows(to_windows(t, layout) ** 2, layout), x)


def test_layouts_are_kept_within_a_bound_and_serve_training_after_inference() -> None:
    window_module._cached.cache_clear()
    model = vz.create_backbone(NANO[0])
    with torch.inference_mode():
        model(images(1, 3, 20, 20))
    kept = window_module._cached.cache_info().currsize
    model(images(1, 3, 20, 20)).pooled.sum().backward()
    assert window_module._cached.cache_info().currsize == kept
    for side in range(1, 80):
        window_layout((side, side), 4, 2, torch.empty(0))
    assert window_module._cached.cache_info().currsize <= window_module.CACHED_LAYOUTS


# The references.


def _hf_twin(name: str, image_size: int) -> torch.nn.Module:
    """transformers' model with the weights of ours.

    Its v1 changes its own windows at small sizes, so each test has its own; its v2 takes them from ``image_size``.
    """
    model = build(name)
    options = {"image_size": image_size, "patch_size": 2, "embed_dim": 32, "depths": [2] * 3, "num_heads": [2, 4, 8]}
    options |= {"window_size": 4, "drop_path_rate": 0.0}
    twin = SwinModel(HFConfig(**options)) if "v2" not in name else Swinv2Model(Swinv2Config(**options))
    loaded = {}
    for key, value in model.state_dict().items():
        loaded |= _hf_keys(key, value, "v2" in name)
    twin.load_state_dict(loaded)
    return twin.eval()


def _hf_keys(key: str, value: Tensor, v2: bool) -> dict[str, Tensor]:
    if key.startswith("patch_embed"):
        return {
            "embeddings."
            + key.replace("patch_embed.proj", "patch_embeddings.projection").replace("patch_embed.", ""): value
        }
    if key.startswith("norm"):
        return {"layer" + key: value}
    key = "encoder." + key
    if "downsample" in key:  # timm's stages begin with the merging, transformers' end with it
        head, index, rest = key.split(".", 2)[0], int(key.split(".")[2]), key.split(".", 3)[3]
        return {f"{head}.layers.{index - 1}.{rest}": value}
    key = key.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
    inner = "attention.self." if v2 else "attention."
    names = ("query", "key", "value") if v2 else ("q_proj", "k_proj", "v_proj")
    if "attn.qkv" in key:
        return {key.replace("attn.qkv", inner + n): part for n, part in zip(names, value.chunk(3), strict=True)}
    for ours, theirs in (
        ("attn.q_bias", inner + "query.bias"),
        ("attn.v_bias", inner + "value.bias"),
        ("attn.logit_scale", inner + "logit_scale"),
        ("attn.cpb_mlp", inner + "continuous_position_bias_mlp"),
        ("attn.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
        ("attn.proj", "attention.output.dense" if v2 else "attention.o_proj"),
        ("mlp.fc1", "intermediate.dense" if v2 else "mlp.fc1"),
        ("mlp.fc2", "output.dense" if v2 else "mlp.fc2"),
    ):
        key = key.replace(ours, theirs)
    return {key: value}


@both
@pytest.mark.parametrize("size", [(32, 32), (48, 64), (35, 53), (34, 67)])
def test_odd_sizes_equal_transformers(name: str, size: tuple[int, int]) -> None:
    """Down to grids of 5 tokens, above the window in every stage (at 32 pixels: exactly the window in the last)."""
    twin, x = _hf_twin(name, 32 if size == (32, 32) else 128), images(2, 3, *size)
    with torch.no_grad():
        ours = build(name).forward_features(x)
        assert_close(ours.flatten(1, 2), twin(x).last_hidden_state)


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (4, 1)])
@pytest.mark.parametrize("kind", [WindowAttention, CosineWindowAttention])
def test_below_the_window_tokens_see_only_each_other(kind: type[WindowAttention], grid: tuple[int, int]) -> None:
    """The slow form: attention over the real tokens alone, with the bias of their distances."""
    attn = perturb(kind(8, 2, 4)).eval()
    h, w = grid
    x = images(2, h, w, 8)
    places = [r * 4 + c for r in range(h) for c in range(w)]
    with torch.no_grad():
        q, k, v = attn.heads(x.flatten(1, 2))
        logits = attn.scale * q @ k.transpose(-2, -1) + attn.bias()[:, places][:, :, places]
        slow = attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2)).view(x.shape)
        for shift in (0, 2):
            layout = window_layout(grid, 4, shift, x)
            assert_close(from_windows(attn(to_windows(x, layout), layout.mask), layout), slow)


# The size grid.


@both
@pytest.mark.parametrize("size", [(32, 32), (2, 2), (7, 5), (13, 31), (37, 41), (48, 64), (97, 3)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    model, x = build(name), images(2, 3, *size)
    grid = [math.ceil(n / 8) for n in size]
    with torch.no_grad():
        features, levels = model(x), model.pyramid(x)
        alone = model(x[1:])
    assert features.grid.shape == (2, 128, *grid)
    assert [m.shape[1] for m in levels] == [32, 64, 128]
    assert all(m.isfinite().all() for m in (*features, *levels))
    assert features.grid[0].ne(features.grid[1]).any()
    assert_close(features.pooled[1:], alone.pooled)


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_any_number_of_channels(channels: int) -> None:
    model = vz.create_backbone(NANO[0], in_chans=channels, image_size=(24, 40))
    assert model.state_dict()[model.stem_key].shape[1] == channels
    assert model.image_size == model.preprocess.image_size == model.info.image_size == (24, 40)
    assert model(images(1, channels, 24, 40)).grid.shape == (1, 128, 3, 5)
    with pytest.raises(ValueError, match=f"2 channels, this model takes {channels}"):
        model(images(1, 2, 24, 40))


@both
@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_padding_path_changes_nothing_where_sizes_divide(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = build(name), images(2, 3, *size)
    with torch.no_grad():
        on = model.forward_features(x)
        monkeypatch.setattr(model, "pad_windows", False)
        monkeypatch.setattr(F, "pad", None)  # so that a call would fail
        assert torch.equal(model.forward_features(x), on)


def test_without_padding_a_misfit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(NANO[0])
    monkeypatch.setattr(model, "pad_windows", False)
    for size in ((33, 32), (32, 48), (16, 32)):
        with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels does not divide .* multiples of 32 pixels"):
            model(images(1, 3, *size))


# Weights of another window.


@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 7), (4, 7), (7, 8)])
def test_bias_tables_are_resampled_as_in_timm(old: int, new: int) -> None:
    table = images((2 * old - 1) ** 2, 3)
    ours = resample_bias_table(table, new)
    assert ours.shape == ((2 * new - 1) ** 2, 3)
    assert_close(ours, resize_rel_pos_bias_table(table, (new, new), ours.shape), tol=1e-4)
    # Near the centre an entry keeps its distance.
    if old > 3 and new > 3 and old >= new:
        middle_old, middle_new = table.view(2 * old - 1, 2 * old - 1, 3), ours.view(2 * new - 1, 2 * new - 1, 3)
        assert_close(middle_new[new - 2 : new + 1, new - 2 : new + 1], middle_old[old - 2 : old + 1, old - 2 : old + 1])


def test_a_checkpoint_of_another_window_loads() -> None:
    stored = {k: v.clone() for k, v in build("swin_nano_patch2_window4_32").state_dict().items()}
    key = "layers.0.blocks.1.attn.relative_position_bias_table"
    stored[key] = images(13**2, 2)
    # What older releases of timm and Microsoft's files hold besides.
    stored["layers.0.blocks.1.attn.relative_position_index"] = relative_index(4, torch.empty(0)).view(16, 16)
    stored["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    before = {k: v.clone() for k, v in stored.items()}
    model = vz.create_backbone("swin_nano_patch2_window4_32")
    adapted, notes = model.adapt_state_dict(stored)
    assert notes == [f"{key} resampled from 169 to 49 relative positions"]
    model.load_state_dict(adapted)
    assert torch.equal(model.state_dict()[key], resample_bias_table(stored[key], 4))
    assert all(torch.equal(stored[k], before[k]) for k in before)
    # Other heads are another model: left as it is, so that strict loading names it.
    stored[key] = images(13**2, 5)
    assert model.adapt_state_dict(stored)[0][key].shape == (169, 5)


def test_v2_has_no_table_to_resample() -> None:
    small, large = (swin.SwinConfig(version=2, window=w, **_V2) for w in (4, 8))
    stored = swin.SwinTransformer(small, build(NANO[1]).preprocess).state_dict()
    model = swin.SwinTransformer(large, build(NANO[1]).preprocess)
    adapted, notes = model.adapt_state_dict(stored)
    assert notes == []
    model.load_state_dict(adapted)


_V2 = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "patch_size": 2}


def test_a_table_of_no_window_is_refused() -> None:
    for entries in (50, 36, 1):
        with pytest.raises(ValueError, match=f"a bias table of {entries} entries fits no square window"):
            resample_bias_table(torch.zeros(entries, 2), 4)
