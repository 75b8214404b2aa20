import pytest
import torch
from transformers import SwinConfig, SwinForMaskedImageModeling

import visionzoo as vz
from visionzoo.losses.masked import patchify, simmim_loss
from visionzoo.models.bundle import ModelConfig, load_bundle, save_bundle
from visionzoo.weights.adapters import LAYOUTS
from visionzoo.weights.exporting import facts_of

SWIN, VIT = "swin_nano_patch2_window4_32", "vit_nano_patch4_32"


def nano(backbone=SWIN, **options):
    return vz.create_simmim(backbone, **{"mask_patch_size": 8, **options})


def perturbed(model):
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g), alpha=0.05)
    return model


def batch(model, size=None):
    g = torch.Generator().manual_seed(2)
    size = size or model.image_size
    units = (size[0] // model.patch_size) * (size[1] // model.patch_size)
    return torch.randn(2, model.in_chans, *size, generator=g), torch.rand(2, units, generator=g)


def hole(out, model, size):
    """(B, 1, H, W) bool, True where pixels are masked."""
    m = model.patch_size
    cells = out.mask.view(-1, 1, size[0] // m, size[1] // m)
    return cells.repeat_interleave(m, 2).repeat_interleave(m, 3) > 0


def test_parity_with_transformers():
    torch.manual_seed(0)
    model = perturbed(nano()).eval()
    config = SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=32,
        depths=[2, 2, 2],
        num_heads=[2, 4, 8],
        window_size=4,
        encoder_stride=8,
        drop_path_rate=0.0,
        layer_norm_eps=1e-5,
    )
    other = SwinForMaskedImageModeling(config).eval()
    encoder = LAYOUTS["transformers5_swin"].from_timm(model.encoder.state_dict(), facts_of(model.encoder))
    state = {k if k.startswith("swin.") else f"swin.{k}": v for k, v in encoder.items()}
    state |= {"swin.embeddings.mask_token": model.mask_token}
    state |= {f"decoder.0.{k}": v for k, v in model.decoder.state_dict().items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert unexpected == []
    assert [k for k in missing if "relative_position_index" not in k] == []
    images, noise = batch(model)
    ours = model(images, noise)
    cells = ours.mask.view(2, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1).bool()
    theirs = other(images, bool_masked_pos=cells)
    torch.testing.assert_close(ours.prediction, patchify(theirs.reconstruction, 8), rtol=0, atol=1e-4)
    assert abs(ours.loss.item() - theirs.loss.item()) < 1e-5
    ours.loss.backward()
    theirs.loss.backward()
    torch.testing.assert_close(model.mask_token.grad, other.swin.embeddings.mask_token.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("backbone", [SWIN, VIT, "swinv2_nano_patch2_window4_32"])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_masked_pixels_never_reach_the_encoder(backbone, size):
    model = perturbed(nano(backbone)).eval()
    images, noise = batch(model, size)
    out = model(images, noise)
    masked = hole(out, model, size)
    other = model(torch.where(masked, 7.0, images), noise)
    assert torch.equal(other.prediction, out.prediction)
    assert other.loss != out.loss
    assert not torch.equal(model(torch.where(masked, images, 7.0), noise).prediction, out.prediction)
    assert out.prediction.shape == (2, size[0] * size[1] // 64, 8 * 8 * 3)


def test_units_of_the_least_noise_stay_visible():
    model = nano()
    images, noise = batch(model)
    out = model(images, noise)
    assert out.mask.sum(1).tolist() == [10, 10]  # ceil(16 * 0.6), as the reference rounds
    assert torch.equal(out.mask[0], (noise[0].argsort().argsort() >= 6).float())
    torch.manual_seed(3)
    drawn = model(images).mask
    assert not torch.equal(drawn[0], drawn[1])


def test_loss_is_that_of_the_prediction_on_masked_pixels():
    model = nano()
    images, noise = batch(model)
    out = model(images, noise)
    sheet = model.reconstruct(images, noise)
    assert out.loss.item() == pytest.approx(simmim_loss(sheet.reconstruction, images, out.mask.view(2, 4, 4)).item())
    assert torch.equal(sheet.pasted, torch.where(hole(out, model, (32, 32)), sheet.reconstruction, images))
    assert sheet.note == ""


@pytest.mark.parametrize("backbone", [SWIN, VIT, "vit_medium_patch16_reg4_gap_256", "vit_base_patch16_siglip_256"])
def test_every_parameter_that_asks_for_a_gradient_gets_one(backbone):
    options = {} if "nano" in backbone else {"image_size": 64, "mask_patch_size": 16}
    model = nano(backbone, **options)
    model(*batch(model)).loss.backward()
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_bundle_and_hand_over(tmp_path):
    model = perturbed(nano(image_size=(32, 48), in_chans=1, mask_ratio=0.5)).eval()
    config = ModelConfig(task="simmim", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model, config, tmp_path)
    other, _ = load_bundle(tmp_path)
    images, noise = batch(model)
    assert torch.equal(model(images, noise).prediction, other(images, noise).prediction)
    classifier = vz.create_classifier(SWIN, 5, in_chans=1)
    with pytest.warns(UserWarning, match="head"):
        vz.load_weights(classifier, model.state_dict())
    for key, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, classifier.state_dict()[key])


def test_loss_is_float32_under_autocast_and_checkpointing_changes_nothing():
    model = nano()
    images, noise = batch(model)
    exact = model(images, noise).loss
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images, noise).loss
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.02)
    model.set_grad_checkpointing(True)
    torch.testing.assert_close(model(images, noise).loss, exact)


def test_undecayed_parameters_exist():
    model = nano()
    assert "mask_token" in model.no_weight_decay()
    assert model.no_weight_decay() <= {k for k, _ in model.named_parameters()}


def test_bad_options():
    with pytest.raises(ValueError, match=r"mask_ratio=1.0 must be above 0 and below 1; the paper uses 0.6"):
        nano(mask_ratio=1.0)
    with pytest.raises(ValueError, match=r"mask_ratio=0.95 leaves no visible unit of 16 \(4x4\)"):
        nano(mask_ratio=0.95)
    with pytest.raises(ValueError, match=r"mask_patch_size=7 must be a multiple of the patches .* are 2 pixels"):
        nano(mask_patch_size=7)
    with pytest.raises(ValueError, match=r"36x32 pixels does not divide into mask units of 8 .* use multiples of 8"):
        nano(image_size=(36, 32))
    with pytest.raises(ValueError, match="use multiples of 8"):
        nano()(torch.zeros(1, 3, 32, 33))
    with pytest.raises(ValueError, match=r"these images need \(1, 16\)"):
        nano()(torch.zeros(1, 3, 32, 32), torch.rand(1, 15))


def test_a_cnn_names_backbones_that_can(monkeypatch):
    monkeypatch.setattr("visionzoo.registry.list_backbones", lambda capability: [SWIN])
    with pytest.raises(ValueError, match=rf"SimMIM needs the capability 'masked_image' .*resnet18 does not.*{SWIN}"):
        vz.create_simmim("timm/resnet18")
