import json
from dataclasses import replace

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

import visionzoo as vz
from visionzoo.backbones.vit import VisionTransformer, ViTConfig
from visionzoo.layers.position import resample_positions
from visionzoo.losses.masked import patch_statistics, patchify
from visionzoo.models.bundle import ModelConfig, load_bundle, save_bundle
from visionzoo.models.mae import MAE, MAE_BACKBONES, MAEDecoder
from visionzoo.models.masking import MaskedOutput, random_masking, reconstruct
from visionzoo.types import Preprocess
from visionzoo.weights.adapters import LAYOUTS

NANO = "vit_nano_patch4_32"
LIGHT = {"decoder_dim": 32, "decoder_depth": 2, "decoder_heads": 2}


def nano(**options) -> MAE:
    return vz.create_mae(options.pop("backbone", NANO), **{**LIGHT, **options})


def perturbed(model):
    """Every parameter away from its initial value: tables of zeros test nothing."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g), alpha=0.05)
    return model


def batch(model, size=None, seed=2):
    g = torch.Generator().manual_seed(seed)
    size = size or model.image_size
    patches = (size[0] // model.patch_size) * (size[1] // model.patch_size)
    return torch.randn(2, model.in_chans, *size, generator=g), torch.rand(2, patches, generator=g)


def twin(model: MAE) -> ViTMAEForPreTraining:
    """transformers' network with our weights."""
    encoder, decoder = model.encoder, model.decoder
    config = ViTMAEConfig(
        hidden_size=encoder.embed_dim,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.blocks[0].attn.num_heads,
        intermediate_size=encoder.blocks[0].mlp.fc1.out_features,
        layer_norm_eps=1e-6,
        image_size=encoder.image_size[0],
        patch_size=model.patch_size,
        num_channels=model.in_chans,
        decoder_num_attention_heads=decoder.blocks[0].attn.num_heads,
        decoder_hidden_size=decoder.embed.out_features,
        decoder_num_hidden_layers=len(decoder.blocks),
        decoder_intermediate_size=decoder.blocks[0].mlp.fc1.out_features,
        mask_ratio=model.mask_ratio,
        norm_pix_loss=model.norm_pix_loss,
    )
    other = ViTMAEForPreTraining(config)
    other.load_state_dict(LAYOUTS["transformers5_mae"].from_timm(model.state_dict()))
    return other.train()


def wide(patch_size=16, in_chans=3, norm_pix_loss=True) -> MAE:
    """The paper's widths, two blocks deep."""
    config = ViTConfig(patch_size=patch_size, embed_dim=768, depth=2, num_heads=12)
    size = (4 * patch_size, 4 * patch_size)
    encoder = VisionTransformer(config, Preprocess(image_size=size), in_chans=in_chans)
    encoder.name = "wide"
    decoder = MAEDecoder(768, (4, 4), patch_size**2 * in_chans, prefix_tokens=1, depth=2)
    torch.nn.init.normal_(decoder.mask_token, std=0.02)
    return MAE(encoder, decoder, mask_ratio=0.75, norm_pix_loss=norm_pix_loss)


CASES = {
    "normalised pixels": lambda: nano(),
    "plain pixels": lambda: nano(norm_pix_loss=False),
    "one channel, half masked": lambda: nano(in_chans=1, mask_ratio=0.5),
    "full width, patch 16": lambda: wide(),
    "full width, patch 14, plain": lambda: wide(14, norm_pix_loss=False),
    "full width, patch 8, four channels": lambda: wide(8, 4),
}


@pytest.mark.parametrize("case", CASES)
def test_parity_with_transformers(case):
    torch.manual_seed(0)
    model = perturbed(CASES[case]())
    other = twin(model)
    images, noise = batch(model)
    ours, theirs = model(images, noise), other(images, noise=noise)
    assert abs(ours.loss.item() - theirs.loss.item()) < 1e-5
    torch.testing.assert_close(ours.prediction, theirs.logits, rtol=0, atol=1e-4)
    assert torch.equal(ours.mask, theirs.mask)
    ours.loss.backward()
    theirs.loss.backward()
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    fixed = {k: p for k, p in model.named_parameters() if not p.requires_grad}
    got = LAYOUTS["transformers5_mae"].from_timm({k: p.grad for k, p in trained.items()} | fixed)
    expected = {k: p.grad for k, p in other.named_parameters() if p.grad is not None}
    largest = max(g.abs().max() for g in expected.values())
    for key, grad in expected.items():
        torch.testing.assert_close(got[key], grad, rtol=1e-4, atol=1e-5 * largest, msg=lambda m, k=key: f"{k}: {m}")


def reference(model: MAE, images, noise):
    """The forward pass as the paper's code does it: embed all, drop, encode, put mask tokens back in raster order."""
    tokens = model.encoder.embed(images)
    n = int(tokens.x.shape[1] * (1 - model.mask_ratio))
    order = noise.argsort(1)
    keep = order[:, :n]
    kept = tokens.x.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.x.shape[-1]))
    latent = model.encoder.encode(tokens._replace(x=kept, keep=keep))
    decoder, p = model.decoder, model.encoder.num_prefix_tokens
    known = decoder.embed(torch.cat((latent.prefix, latent.x), 1))
    full = decoder.mask_token.expand(len(images), noise.shape[1], -1).clone()
    for b in range(len(images)):
        for i in range(n):
            full[b, keep[b, i]] = known[b, p + i]
    table = resample_positions(decoder.pos_embed, tokens.grid_size, old_grid=decoder.grid_size, prefix_tokens=p)
    return decoder.pred(decoder.norm(decoder.blocks(torch.cat((known[:, :p], full), 1) + table))[:, p:])


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, None),
        ({"image_size": (16, 40)}, None),
        ({}, (24, 32)),
        ({"backbone": "deit_tiny_distilled_patch16_224", "image_size": (64, 96)}, None),
        ({"backbone": "vit_small_patch16_dinov3_qkvb", "image_size": (64, 96)}, None),
    ],
)
def test_any_shape_and_backbone_is_the_paper_in_plain_steps(options, size):
    torch.manual_seed(0)
    model = perturbed(nano(**options))
    images, noise = batch(model, size)
    torch.testing.assert_close(model(images, noise).prediction, reference(model, images, noise), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "backbone",
    [
        "vit_small_patch16_rope_mixed_ape_224",  # rotary and absolute positions
        "vit_medium_patch16_reg4_gap_256",  # registers, no class token, norm after averaging
        "deit_tiny_distilled_patch16_224",
        "vit_base_patch16_siglip_256",  # attention pooling
    ],
)
def test_every_parameter_that_asks_for_a_gradient_gets_one(backbone):
    model = nano(backbone=backbone, image_size=64)
    model.loss(*batch(model)).backward()
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_masked_pixels_never_reach_the_encoder():
    model = nano()
    images, noise = batch(model)
    out = model(images, noise)
    hole = out.mask.view(2, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(images) > 0
    assert torch.equal(model(images.masked_fill(hole, torch.nan), noise).prediction, out.prediction)
    assert not torch.equal(model(images.masked_fill(~hole, 0.0), noise).prediction, out.prediction)


def test_only_visible_patches_are_embedded_and_encoded():
    model = nano()
    seen = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape))
    model(*batch(model))
    assert seen == [(2, 1 + 16, 64)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_loss_and_gradients_are_those_of_the_whole_prediction(checkpointing):
    model = perturbed(nano())
    model.set_grad_checkpointing(checkpointing)
    images, noise = batch(model)
    whole = model(images, noise).loss
    whole.backward()
    expected = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = model.loss(images, noise)
    loss.backward()
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=1e-6)
    got = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_least_noise_stays_visible():
    noise = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.5, 0.5, 0.1, 0.9]])
    masking = random_masking(noise, 2)
    assert masking.keep.tolist() == [[1, 3], [2, 0]]  # of equals the first
    assert masking.mask.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert torch.equal(masking.order.gather(1, masking.place), torch.arange(4).expand(2, 4))


def test_masks_differ_between_images_and_follow_the_seed():
    model = nano()
    images, _ = batch(model)
    torch.manual_seed(5)
    first, second = model(images).mask, model(images).mask
    torch.manual_seed(5)
    assert torch.equal(model(images).mask, first)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert first.sum(1).tolist() == [48, 48]


def test_loss_is_float32_under_autocast():
    model = nano()
    images, noise = batch(model)
    exact = model.loss(images, noise)
    with torch.autocast("cpu", torch.bfloat16):
        out, loss = model(images, noise), model.loss(images, noise)
    loss.backward()
    assert out.loss.dtype == loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert out.loss.item() == pytest.approx(exact.item(), rel=0.01)


def test_constant_images_train():
    model = nano()
    loss = model.loss(torch.full((2, 3, 32, 32), 1.5))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_reconstruction_pastes_visible_patches(norm_pix):
    model = nano(norm_pix_loss=norm_pix)
    images, noise = batch(model)
    sheet = model.reconstruct(images, noise)
    hole = model(images, noise).mask.view(2, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3) > 0
    assert torch.equal(sheet.original, images)
    assert torch.equal(sheet.masked, images.masked_fill(hole, 0.0))
    assert torch.equal(sheet.pasted, torch.where(hole, sheet.reconstruction, images))
    assert not torch.allclose(sheet.reconstruction, images)
    assert ("taken from the original" in sheet.note) == sheet.borrows_statistics == norm_pix


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_reconstructs_the_image(norm_pix):
    images = torch.randn(2, 3, 8, 12)
    target = patchify(images, 4)
    if norm_pix:
        mean, std = patch_statistics(target)
        target = (target - mean) / std
    sheet = reconstruct(images, MaskedOutput(torch.zeros(()), target, torch.ones(2, 6)), 4, norm_pix=norm_pix)
    torch.testing.assert_close(sheet.reconstruction, images)


@pytest.mark.parametrize("name", MAE_BACKBONES)
def test_the_papers_models_have_transformers_parameters(name):
    with torch.device("meta"):
        model = vz.create_mae(name)
        size = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}[name.split("_")[2]]
        width, depth, heads, patch = size
        other = ViTMAEForPreTraining(
            ViTMAEConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                patch_size=patch,
            )
        )
    converted = LAYOUTS["transformers5_mae"].from_timm(model.state_dict())
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in other.state_dict().items()}
    assert model.preprocess.mean == (0.485, 0.456, 0.406)
    assert model.preprocess.image_size == (224, 224)
    assert model.name == name


def test_positions_start_as_in_the_reference_and_stay():
    model = nano()
    for table in (model.encoder.pos_embed, model.decoder.pos_embed):
        half = table.shape[2] // 2
        # transformers calls what encodes the column the height, and swaps the halves when it fills its tables.
        theirs = build_2d_sinusoidal_position_embedding(8, 8, table.shape[2], cls_token=True)
        torch.testing.assert_close(table[0], torch.cat((theirs[:, half:], theirs[:, :half]), dim=1))
    assert not model.encoder.pos_embed.requires_grad
    assert not model.decoder.pos_embed.requires_grad
    assert nano(positions="learned").encoder.pos_embed.requires_grad
    # Xavier's limit for the patch embedding, seen as a matrix
    limit = (6 / (64 + 48)) ** 0.5
    assert 0.95 * limit < model.encoder.patch_embed.proj.weight.abs().max() <= limit


def test_backbone_without_a_position_table_keeps_its_own_positions():
    model = nano(backbone="vit_small_patch16_dinov3_qkvb", image_size=64)
    assert model.encoder.pos_embed is None
    assert model.loss(*batch(model)).isfinite()


LAYOUT_NAMES = ("mae_full", "transformers_mae", "transformers5_mae", "transformers5_mae_file")


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_whole_model_layouts_go_both_ways(layout, tmp_path):
    model = perturbed(nano())
    path = vz.export_weights(model, tmp_path / "mae.safetensors", layout=layout)
    for fresh in (nano(weights=path), nano()):
        if fresh.encoder.cls_token.ne(model.encoder.cls_token).any():
            report = vz.load_weights(fresh, path)
            assert report.layout == layout
            assert report.loaded == report.total
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in fresh.state_dict().items())


def test_transformers_files_load_and_ours_load_there(tmp_path):
    model = perturbed(nano())
    images, noise = batch(model)
    twin(model).save_pretrained(tmp_path / "theirs")
    loaded = nano(weights=tmp_path / "theirs" / "model.safetensors")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    vz.export_weights(model, tmp_path / "theirs" / "model.safetensors", layout="transformers")
    back = ViTMAEForPreTraining.from_pretrained(tmp_path / "theirs").train()
    torch.testing.assert_close(back(images, noise=noise).logits, model(images, noise).prediction, rtol=0, atol=1e-5)


def test_official_keys_are_those_of_the_release():
    keys = set(LAYOUTS["mae_full"].from_timm(nano().state_dict()))
    expected = {
        "cls_token",
        "pos_embed",
        "mask_token",
        "decoder_pos_embed",
        "norm.weight",
        "decoder_blocks.1.mlp.fc2.bias",
    }
    expected |= {"patch_embed.proj.weight", "blocks.3.attn.qkv.weight", "decoder_embed.bias", "decoder_norm.bias"}
    assert expected | {"decoder_pred.weight"} <= keys
    assert len(keys) == len(nano().state_dict())


def test_plain_load_state_dict_takes_foreign_layouts():
    model, fresh = perturbed(nano()), nano()
    fresh.load_state_dict(twin(model).state_dict())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in fresh.state_dict().items())


def test_positions_are_resampled_to_another_size():
    model, larger = perturbed(nano()), nano(image_size=(32, 48))
    report = vz.load_weights(larger, model.state_dict())
    assert len(report.resampled) == 2
    assert larger.decoder.pos_embed.shape == (1, 1 + 96, 32)


def test_encoder_goes_to_a_classifier_bit_by_bit():
    model = perturbed(nano())
    classifier = vz.create_classifier(NANO, 5)
    with pytest.warns(UserWarning, match="head"):
        report = vz.load_weights(classifier, model.state_dict())
    assert report.loaded / report.total > 0.95
    for key, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, classifier.state_dict()[key])


def test_an_encoder_alone_does_not_fill_a_whole_model_but_fills_its_encoder():
    source, model = perturbed(nano()), nano()
    with pytest.raises(ValueError, match="do not fit MAE of vit_nano_patch4_32"):
        vz.load_weights(model, source.encoder.state_dict())
    vz.load_weights(model.encoder, source.encoder.state_dict())
    assert torch.equal(model.encoder.cls_token, source.encoder.cls_token)


def test_bundle_round_trip(tmp_path):
    model = perturbed(nano(image_size=(16, 24), mask_ratio=0.6, norm_pix_loss=False)).eval()
    config = ModelConfig(task="mae", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model, config, tmp_path)
    other, read = load_bundle(tmp_path)
    assert read.architecture == json.loads(json.dumps(model.architecture)) == other.architecture
    images, noise = batch(model)
    for ours, theirs in zip(model(images, noise), other(images, noise), strict=True):
        assert torch.equal(ours, theirs)


def test_tokens_and_tables_are_not_decayed():
    model = nano()
    kept = {k for k, _ in model.named_parameters() if k in model.no_weight_decay()}
    assert kept == {"encoder.cls_token", "encoder.pos_embed", "decoder.mask_token", "decoder.pos_embed"}


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_mask_ratio_outside_the_open_interval(ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio={ratio} must be above 0 and below 1; the paper uses 0.75"):
        nano(mask_ratio=ratio)


def test_ratio_that_leaves_nothing_is_refused_at_build_time_and_at_call_time():
    with pytest.raises(ValueError, match=r"mask_ratio=0.95 leaves no visible patch of 16 \(4x4\)"):
        nano(image_size=16, mask_ratio=0.95)
    with pytest.raises(ValueError, match=r"leaves no visible patch of 1 \(1x1\)"):
        nano()(torch.zeros(1, 3, 4, 4))


def test_sizes_and_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"30x32 pixels does not divide into this model's patches of 4 pixels"):
        nano(image_size=(30, 32))
    with pytest.raises(ValueError, match="use multiples of 4"):
        nano()(torch.zeros(1, 3, 33, 32))
    with pytest.raises(ValueError, match=r"noise has the shape \(2, 63\); these images need \(2, 64\)"):
        nano()(torch.zeros(2, 3, 32, 32), torch.rand(2, 63))
    with pytest.raises(ValueError, match="got images with 1 channels"):
        nano()(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match="decoder_dim=30"):
        nano(decoder_dim=30)
    with pytest.raises(ValueError, match="positions='rotary' must be one of sincos, learned"):
        nano(positions="rotary")


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("mae_vit_base_patch16", (512, 8, 16)),  # the published ones
        ("mae_vit_large_patch16", (512, 8, 16)),
        ("mae_vit_huge_patch14", (512, 8, 16)),
        ("vit_base_patch16_224", (512, 8, 16)),
        ("vit_large_patch16_dinov3", (512, 8, 16)),
        ("vit_small_patch16_224", (256, 8, 8)),
        ("vit_tiny_patch16_224", (128, 8, 4)),
        (NANO, (32, 3, 1)),
    ],
)
def test_the_decoder_follows_the_size_of_the_encoder(backbone, size):
    with torch.device("meta"):
        model = vz.create_mae(backbone)
    found = model.architecture
    assert (found["decoder_dim"], found["decoder_depth"], found["decoder_heads"]) == size
    assert model.decoder.embed.out_features == size[0]
    assert len(model.decoder.blocks) == size[1]
    decoder, encoder = (sum(p.numel() for p in m.parameters()) for m in (model.decoder, model.encoder))
    assert decoder < 0.35 * encoder


def test_a_decoder_is_as_large_as_told():
    with torch.device("meta"):
        model = vz.create_mae(NANO, decoder_dim=96, decoder_depth=5)
    assert (model.decoder.embed.out_features, len(model.decoder.blocks)) == (96, 5)
    assert model.architecture["decoder_heads"] == 3


@pytest.mark.parametrize("backbone", ["timm/resnet18", "swin_nano_patch2_window4_32"])
def test_a_backbone_that_cannot_drop_tokens_names_those_that_can(backbone, monkeypatch):
    # Asking all of them takes seconds; the list itself is the registry's business.
    monkeypatch.setattr("visionzoo.registry.list_backbones", lambda capability: ["vit_nano_patch4_32"])
    with pytest.raises(
        ValueError, match=rf"MAE needs the capability 'tokens' .*{backbone} does not.*vit_nano_patch4_32"
    ):
        vz.create_mae(backbone)


def test_preprocess_of_a_registered_backbone_is_its_own():
    model = nano(image_size=(16, 24))
    assert model.preprocess == replace(vz.backbone_info(NANO).preprocess, image_size=(16, 24))
