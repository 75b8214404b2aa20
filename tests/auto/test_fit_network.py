"""The network around a head: every family carries one, and a CLIP's texts make one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.auto.network import fill_head, network_of, open_network, text_prior
from visionzoo.inference.linear import Linear
from visionzoo.inference.zero_shot import ZeroShotClassifier
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.clip.image import set_activation
from visionzoo.weights import hub

NANO = "vit_nano_patch4_32"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (NANO, 16),
        ("deit_tiny_distilled_patch16_224", 32),
        ("vit_small_patch14_dinov2", 28),
        ("swin_tiny_patch4_window7_224", 64),
        ("timm/resnet18", 32),
        ("timm/convnext_atto", 32),
        ("timm/mobilenetv3_small_050", 32),
    ],
)
def test_a_head_is_carried(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = vz.create_classifier(name, 5, image_size=None if name.startswith("timm/") else size).eval()
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        features = model.embed_images(images)
        head = Linear(torch.randn(5, features.shape[1]), torch.randn(5))
        fill_head(model, head)
        assert torch.allclose(model(images), head.logits(features), atol=1e-4)


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    model = vz.create_classifier(NANO, 5, image_size=16)
    with pytest.raises(ValueError, match="no linear layer"):
        fill_head(model, Linear(torch.zeros(5, 3), torch.zeros(5)))


def clip(embed_dim: int = 24) -> vz.VisionTask:
    torch.manual_seed(0)
    model = vz.create_clip(backbone=NANO, image_size=16, text="nano", embed_dim=embed_dim)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def test_texts_make_a_head() -> None:
    """Against the zero-shot classifier written out: the length of a projection is one for all in the head."""
    model, names = clip(), ("cat", "dog", "old_car")
    images = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        pooled = model.visual.pooled(images)
        embedded = model.encode_image(images)
    head = text_prior(model, names, pooled)
    texts = ZeroShotClassifier(model, labels=["cat", "dog", "old car"], templates="imagenet").text_embeddings
    expected = model.logit_scale.exp() * embedded @ texts.T / embedded.norm(dim=1).mean()
    assert torch.allclose(head.logits(pooled), expected, atol=1e-4)


def test_weights_of_every_kind(tmp_path: Path) -> None:
    model = clip()
    config = ModelConfig(task="clip", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model, config, tmp_path / "clip")
    found = open_network(None, str(tmp_path / "clip"), None, 3, 16, seed=0)
    assert found.clip is not None
    assert found.pretrained
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(found.model.embed_images(images), model.visual.pooled(images), atol=1e-5)
    copied = network_of(model, 3)
    with torch.no_grad():
        assert torch.allclose(copied.model.embed_images(images), model.visual.pooled(images), atol=1e-5)
    mae = vz.create_mae(NANO, image_size=16, decoder_dim=32, decoder_depth=1, decoder_heads=2)
    save_bundle(
        mae, ModelConfig(task="mae", architecture=mae.architecture, preprocess=mae.preprocess), tmp_path / "mae"
    )
    found = open_network(None, str(tmp_path / "mae"), None, 3, 16, seed=0)
    assert found.model.architecture["global_pool"] == "avg"  # a masked autoencoder trains no token that stands for all


def test_nothing_is_the_same_each_time_and_says_so() -> None:
    one, two = (open_network(None, "none", None, 3, 16, seed=4) for _ in range(2))
    assert not one.pretrained
    assert "random weights" in one.origin
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert one.model.preprocess.image_size == (16, 16)
    assert open_network(None, "none", None, 3, 300, seed=0).model.preprocess.image_size == (64, 64)


def test_without_a_network_the_default_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    found = open_network(None, None, None, 3, 16, seed=0)
    assert not found.pretrained
    assert "learns from nothing" in found.said
    with pytest.raises(FileNotFoundError, match="hub"):  # but who names one gets that one
        open_network("vit_tiny_patch16_224", None, None, 3, 16, seed=0)


@pytest.mark.parametrize(
    ("backbone", "weights", "said"),
    [
        (NANO, None, "has no published weights"),
        (None, "missing.pth", "name its backbone by --backbone"),
        ("vit_nan", None, "unknown backbone"),
    ],
)
def test_bad_input(backbone: str | None, weights: str | None, said: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        open_network(backbone, weights, None, 3, 16, seed=0)


@pytest.mark.long
def test_few_images(tmp_path: Path) -> None:
    """A folder, names that repeat but for case, and what is refused."""
    from visionzoo.auto.few_shot import few_shot

    rng = np.random.default_rng(0)
    images, labels = [], []
    for label, part in (("left", np.s_[:, :8]), ("top", np.s_[:8])):
        for _ in range(14):
            pixels = rng.integers(0, 90, (16, 16, 3)).astype(np.uint8)
            pixels[part] += 120
            images.append(Image.fromarray(pixels))
            labels.append(label)
    torch.manual_seed(0)
    backbone = vz.create_backbone(NANO, image_size=16)
    made = few_shot(images, labels, model=backbone, device="cpu")
    assert made.labels == ("left", "top")
    assert sum(p[0][0] == label for p, label in zip(made.predict(images), labels, strict=True)) > 22
    assert made.calibration is not None
    assert made.calibration.images == 28
    assert len(made.predict(images[:1], sets=0.9)[0]) >= 1
    single = few_shot([images[0], images[-1]], ["left", "top"], model=clip(), device="cpu")  # one of each
    assert single.calibration is None
    assert len(single.predict(images[0])[0]) == 2
    with pytest.raises(ValueError, match="2 labels do not fit 3 images"):
        few_shot(images[:3], labels[:2], model=backbone)
    with pytest.raises(ValueError, match="one class"):
        few_shot(images[:3], labels[:3], model=backbone)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png"):
        few_shot([images[0], tmp_path / "bad.png"], ["left", "top"], model=backbone)
    with pytest.raises(ValueError, match="leave the options out"):
        few_shot(images, labels, model=backbone, weights="x.pth")


def test_a_clips_activation_goes_with_its_weights() -> None:
    """timm has a name for each of the two; under the other one the same weights are another function."""
    trunk = vz.create_backbone("vit_base_patch32_clip_224", image_size=64).eval()
    set_activation(trunk, "quick_gelu")
    made = network_of(trunk, 3).model
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(made.embed_images(images), trunk(images).pooled, atol=1e-5)
