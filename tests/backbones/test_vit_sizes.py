"""ViTs off their own size: odd, prime, narrow, larger; fewer or more channels; a subset of the patches."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from backbone_checks import assert_close, perturb
from torch import Tensor, nn
from torch.nn import functional as F
from vit_twins import DEPTH, pictures, shallow, timm_options, twins

import visionzoo as vz
from visionzoo.backbones.vit import VisionTransformer
from visionzoo.layers.position import resample_positions
from visionzoo.types import Tokens

#: Odd, prime, not square, smaller and larger than the 64 pixels that the models here are built for.
SIZES = [(17, 16), (31, 53), (64, 64), (61, 127), (96, 80), (130, 47)]
DYNAMIC = [
    "vit_small_patch16_224",
    "deit_small_distilled_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_clip_224",
    "vit_medium_patch16_reg4_gap_256",
    "vit_small_patch16_rope_ape_224",
    "vit_medium_patch16_rope_reg1_gap_256",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_patch16_dinov3",
]
ALL = [*DYNAMIC, "vit_base_patch16_siglip_224", "beit_base_patch16_224", "samvit_base_patch16"]
KEEPS = [
    "vit_small_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_small_patch16_dinov3",
    "beit_base_patch16_224",
]


@pytest.mark.parametrize("name", DYNAMIC)
def test_any_size_as_timms_dynamic_models(name: str) -> None:
    side = 64 // _patch(name) * _patch(name)
    ours, theirs = twins(name, side, dynamic_img_size=True, dynamic_img_pad=True)
    for height, width in SIZES:
        x = pictures(height, width)
        with torch.no_grad():
            reference = theirs.forward_features(x)
            assert_close(ours.forward_features(x), reference)
            assert_close(ours(x).pooled, theirs.forward_head(reference, pre_logits=True))


def _patch(name: str) -> int:
    return 14 if "patch14" in name else 16


def test_siglip_crops_what_fills_no_patch() -> None:
    """As the convolution that it was trained with; timm's dynamic models want whole patches."""
    ours, theirs = twins("vit_base_patch16_siglip_224", 64, dynamic_img_size=True)
    for height, width in SIZES:
        x = pictures(height, width)
        h, w = height // 16, width // 16
        with torch.no_grad():
            assert_close(ours(x).pooled, theirs(x[:, :, : 16 * h, : 16 * w]))
            assert ours(x).grid.shape[2:] == (h, w)


def _whole_patches(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16))


@pytest.mark.parametrize("size", SIZES)
def test_beit_at_any_size_as_timm_resized(size: tuple[int, int]) -> None:
    """timm's BEiT cannot pad, and takes another size only after its tables were resampled for good."""
    ours, _ = twins("beit_base_patch16_224", 64)
    theirs = timm.create_model("beit_base_patch16_224", num_classes=0, img_size=64, depth=DEPTH)
    theirs.load_state_dict(ours.state_dict())
    x = pictures(*size)
    padded = _whole_patches(x)
    theirs.eval().set_input_size(tuple(padded.shape[2:]))
    with torch.no_grad():
        assert_close(ours.forward_features(x), theirs.forward_features(padded))


@pytest.mark.parametrize("size", [(17, 16), (61, 127), (256, 250), (240, 352)])
def test_sam_encoder_at_any_size_as_timm(size: tuple[int, int]) -> None:
    """timm's cuts off what fills no patch, so it is given whole ones."""
    ours, theirs = twins("samvit_base_patch16", (256, 320))
    x = pictures(*size, batch=1)
    with torch.no_grad():
        assert_close(ours.forward_features(x), theirs.forward_features(_whole_patches(x)))


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "samvit_base_patch16", "vit_small_patch16_224"])
@pytest.mark.parametrize("size", [(96, 64), (128, 160)])
def test_resampling_on_load_equals_resampling_on_the_fly(name: str, size: tuple[int, int]) -> None:
    ours, _ = twins(name, 64)
    other = shallow(name, image_size=size)
    state = dict(ours.state_dict())
    adapted, notes = other.adapt_state_dict(state)
    other.load_state_dict(adapted)
    x = pictures(*size)
    with torch.no_grad():
        assert_close(other.eval().forward_features(x), ours.forward_features(x))
    assert notes
    assert all("resampled" in note for note in notes)
    unchanged, none = ours.adapt_state_dict(state)
    assert not none
    assert all(unchanged[k] is v for k, v in state.items())


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_patch16_224", "timm/test_vit", "mae"])
@pytest.mark.parametrize("size", [(128, 128), (64, 160), (256, 64)])
def test_weights_of_oblong_images_keep_their_places(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    """64 x 256 pixels are 4 x 16 patches, which are as many as 8 x 8, and 16 x 4."""
    ours, other = (_model(name, size) for size in ((64, 256), size))
    perturb(ours)
    safetensors.torch.save_file(ours.state_dict(), tmp_path / "model.safetensors")
    record = {"schema_version": 1, "task": "classify", "preprocess": ours.preprocess.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(record))
    report = vz.load_weights(other, tmp_path)
    assert report.resampled
    trunk, own = (model.encoder if name == "mae" else model for model in (other, ours))
    if name.startswith("timm/"):  # which takes one size only
        table = resample_positions(ours.pos_embed, trunk.patch_embed.grid_size, old_grid=(4, 16), prefix_tokens=1)
        assert_close(other.pos_embed, table)
        return
    x = pictures(*trunk.image_size)
    with torch.no_grad():
        assert_close(trunk.eval().forward_features(x), own.eval().forward_features(x))
    if name == "mae":
        table = resample_positions(ours.decoder.pos_embed, other.decoder.grid_size, old_grid=(4, 16), prefix_tokens=1)
        assert_close(other.decoder.pos_embed, table)


def _model(name: str, size: tuple[int, int]) -> Any:
    if name == "mae":
        return vz.create_mae("vit_nano_patch4_32", image_size=(size[0] // 4, size[1] // 4))
    return vz.create_backbone(name, image_size=size) if "/" in name else shallow(name, image_size=size)


def test_beit_tables_resample_on_load_as_timms() -> None:
    ours, _ = twins("beit_base_patch16_224", 64)
    wide = shallow("beit_base_patch16_224", image_size=(96, 160))
    theirs = timm.create_model("beit_base_patch16_224", num_classes=0, img_size=(96, 160), depth=DEPTH)
    loaded = timm.models.beit.checkpoint_filter_fn(dict(ours.state_dict()), theirs)
    stored = {**ours.state_dict(), "blocks.0.attn.relative_position_index": torch.zeros(17, 17, dtype=torch.int64)}
    adapted, notes = wide.adapt_state_dict(stored)
    assert notes == ["2 bias tables resampled from 4x4 to 6x10 tokens"]
    assert adapted.keys() == loaded.keys()
    for key, value in loaded.items():
        assert_close(adapted[key], value)


@pytest.mark.parametrize("name", ALL)
def test_below_one_patch_is_a_clear_error(name: str) -> None:
    ours, _ = twins(name, 56 if "patch14" in name else 64)
    p = _patch(name)
    for height, width in ((p - 1, 64), (64, p - 1)):
        with pytest.raises(ValueError, match=f"{height}x{width} pixels, smaller than a patch of {p}"):
            ours(pictures(height, width))
    with pytest.raises(ValueError, match=f"smaller than the patch of {p} pixels"):
        shallow(name, image_size=(p - 1, 64))


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("name", ["vit_small_patch16_224", "beit_base_patch16_224", "samvit_base_patch16"])
def test_other_channels(name: str, channels: int) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, img_size=32, in_chans=channels, **timm_options(name))
    perturb(theirs)
    ours = shallow(name, image_size=(32, 32), in_chans=channels)
    ours.load_state_dict(theirs.state_dict())
    x = pictures(32, channels=channels)
    with torch.no_grad():
        assert_close(ours.eval()(x).pooled, theirs.eval()(x))
    with pytest.raises(ValueError, match=f"3 channels, this model takes {channels}"):
        ours(pictures(32))


@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_one_gives_what_it_gives_in_company(name: str) -> None:
    ours, _ = twins(name, 56 if "patch14" in name else 64)
    x = pictures(64, batch=3)
    with torch.no_grad():
        together = ours(x)
        for i in range(3):
            for one, many in zip(ours(x[i : i + 1]), together, strict=True):
                assert_close(one, many[i : i + 1])


# A subset of the patches.


@cache
def _keep() -> Tensor:
    """Five visible patches of 4 x 5, in no order, others in each image."""
    generator = torch.Generator().manual_seed(3)
    return torch.stack([torch.randperm(20, generator=generator)[:5] for _ in range(2)])


def _gathered(tokens: Tokens, keep: Tensor) -> Tokens:
    index = keep.unsqueeze(-1).expand(-1, -1, tokens.x.shape[-1])
    return Tokens(tokens.x.gather(1, index), tokens.prefix, tokens.grid_size, keep)


@pytest.mark.parametrize("name", KEEPS)
def test_visible_patches_are_embedded_as_if_all_were(name: str) -> None:
    ours, _ = twins(name, 64)
    x, keep = pictures(64, 80), _keep()
    with torch.no_grad():
        fast, slow = ours.embed(x, keep), _gathered(ours.embed(x), keep)
        assert fast.grid_size == (4, 5)
        assert_close(fast.x, slow.x)
        assert_close(fast.prefix, slow.prefix)
        a, b = ours.encode(fast), ours.encode(slow)
        assert_close(a.x, b.x)
        assert a.keep is keep


@pytest.mark.parametrize("name", KEEPS)
def test_all_patches_visible_in_another_order_is_the_whole_image(name: str) -> None:
    """Positions follow their patches: a permutation of all tokens permutes the output, and changes nothing else."""
    ours, _ = twins(name, 64)
    x = pictures(64, 80)
    order = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(s)) for s in range(2)])
    with torch.no_grad():
        whole, shuffled = ours.encode(ours.embed(x)), ours.encode(ours.embed(x, order))
    assert_close(shuffled.x, _gathered(whole, order).x)
    assert_close(shuffled.prefix, whole.prefix)


@pytest.mark.parametrize("name", KEEPS)
def test_hidden_patches_have_no_influence(name: str) -> None:
    ours, _ = twins(name, 64)
    x, keep = pictures(64, 80), torch.arange(5).repeat(2, 1)
    other = x.clone()
    other[:, :, 16:] += 1  # patches 0 to 4 are the first row
    with torch.no_grad():
        a, b = ours.encode(ours.embed(x, keep)), ours.encode(ours.embed(other, keep))
    assert_close(a.x, b.x, 0)


def test_windows_cannot_drop_tokens() -> None:
    ours, _ = twins("samvit_base_patch16", 64)
    with pytest.raises(ValueError, match="does not declare the capability 'tokens'"):
        ours.embed(pictures(64), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="does not declare the capability 'tokens'"):
        ours.encode(ours.embed(pictures(64)))


@pytest.mark.parametrize("name", ALL)
def test_mask_token_stands_in_for_the_embedding_only(name: str) -> None:
    """Masking equals replacing the patch embedding before positions are added, and leaves nothing of the pixels."""
    side = 56 if "patch14" in name else 64
    ours, _ = twins(name, side)
    x, token = pictures(side), torch.randn(1, 1, ours.embed_dim, generator=torch.Generator().manual_seed(5))
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(6)) < 0.5
    with torch.no_grad():
        out = ours.forward_features(x, mask=mask, mask_token=token)
        assert_close(out, _slow_masked(ours, x, mask, token))
        pixels = mask.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2).unsqueeze(1)
        assert_close(ours.forward_features(torch.where(pixels, 9.0, x), mask=mask, mask_token=token), out, 0)
        assert (ours.forward_features(x) - out).abs().max() > 1e-3


def _slow_masked(model: VisionTransformer, x: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    class Replaced(nn.Module):
        grid_size = model.patch_embed.grid_size

        def forward(self, images: Tensor, keep: Tensor | None) -> Tensor:
            y = model.patch_embed(images, keep).clone()
            for b, row, col in mask.nonzero().tolist():
                y[b, row * mask.shape[2] + col] = token[0, 0]
            return y

    copy = object.__new__(type(model))
    copy.__dict__.update(model.__dict__)
    copy._modules = {**model._modules, "patch_embed": Replaced()}
    return copy.forward_features(x)
