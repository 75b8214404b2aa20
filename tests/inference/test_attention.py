"""Where a model looks: from a model to a picture, and as a command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.inference.attention import attention_heat, draw_attention
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.viz.heatmap import heat_overlay

pytestmark = pytest.mark.usefixtures("block_network")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("vit_nano_patch4_32", 32, (8, 8)),
        ("swin_nano_patch2_window4_32", 32, (16, 16)),
        ("deit_tiny_distilled_patch16_224", 64, (4, 4)),
        ("vit_small_patch16_dinov3", 64, (4, 4)),
        ("samvit_base_patch16_224", 64, (4, 4)),
    ],
)
def test_heat_of_every_kind_of_model(name: str, size: int, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = vz.create_backbone(name, image_size=size).eval()
    heat = attention_heat(model, torch.randn(2, 3, size, size))
    assert heat.shape == (2, *grid)
    assert heat.min() >= 0
    torch.testing.assert_close(heat.sum((1, 2)), torch.ones(2))


def test_heat_follows_what_the_class_token_attends_to() -> None:
    """One block whose keys make the class token look at one patch only: the brightest."""
    model = vz.create_backbone("vit_nano_patch4_32").eval()
    x = torch.zeros(1, 3, 32, 32)
    x[:, :, 8:12, 20:24] = 5.0  # row 2, column 5
    with torch.no_grad():
        model.pos_embed.zero_()
        for block in model.blocks:
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
            inside = block.norm1(model.embed(x).x)[0, 2 * 8 + 5]
            block.attn.qkv.weight[64:128] = inside / inside.norm() * torch.ones(64, 1)  # keys: likeness to that patch
            block.attn.qkv.bias[:64] = 10.0  # queries: the same for all
    heat = attention_heat(model, x)[0]
    assert divmod(int(heat.argmax()), 8) == (2, 5)
    assert heat[2, 5] > 0.5


def test_picture_of_a_classifiers_run(tmp_path: Path, photo: Path) -> None:
    torch.manual_seed(0)
    model = vz.create_classifier("vit_nano_patch4_32", num_classes=2)
    config = ModelConfig(
        task="classify", architecture=model.architecture, preprocess=model.preprocess, labels=("a", "b")
    )
    save_bundle(model, config, tmp_path / "run")
    out = draw_attention(photo, tmp_path / "run", tmp_path / "heat.png")
    with Image.open(out) as picture:
        assert picture.width > picture.height > 100
    with pytest.raises(ValueError, match="has weights and an image size of its own"):
        draw_attention(photo, tmp_path / "run", tmp_path / "heat.png", image_size=64)


def test_overlay_is_bright_where_the_heat_is(tmp_path: Path) -> None:
    heat = np.full((4, 4), 0.1)
    heat[:, 3] = 1.0
    out = heat_overlay(np.full((64, 64, 3), 128, np.uint8), heat, tmp_path / "heat.png")
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("L"), dtype=float)
    middle = pixels[pixels.shape[0] // 2]
    # Of the right panel: it begins just right of the middle and ends before the colour bar.
    left, right = int(0.55 * len(middle)), int(0.85 * len(middle))
    assert middle[right] > middle[left] + 30


@pytest.mark.parametrize("heat", [np.zeros((3, 3)), -np.ones((3, 3)), np.full((3, 3), np.nan), np.ones(9)])
def test_overlay_refuses_what_is_no_heat(tmp_path: Path, heat: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be \\(h, w\\), finite"):
        heat_overlay(np.zeros((8, 8, 3), np.uint8), heat, tmp_path / "heat.png")


def test_command(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heat.png"
    command = ["attention", str(photo), "--model", "vit_nano_patch4_32", "--out", str(out)]
    assert main(command) == 2
    assert "is a name without weights" in capsys.readouterr().err
    assert not out.exists()
    with pytest.warns(UserWarning, match="random weights, as was asked for"):
        assert main([*command, "--weights", "random"]) == 0
    assert out.is_file()
    assert capsys.readouterr().out.strip() == str(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vit_nano_patch4_33"], "did you mean vit_nano_patch4_32"),
        (["--model", "timm/test_resnet", "--weights", "random"], "needs the capability 'attention_maps'"),
        (["--model", "vit_nano_patch4_32", "--out", "heat.csv"], "must end in one of .png"),
        (["--model", "vit_nano_patch4_32", "--weights", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_command_says_what_is_wrong(
    photo: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    assert main(["attention", str(photo), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in photo.parent.iterdir()] == ["photo.png"]


def test_command_does_not_overwrite_the_image(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = photo.read_bytes()
    assert main(["attention", str(photo), "--model", "vit_nano_patch4_32", "--out", str(photo)]) == 2
    assert "is the image itself" in capsys.readouterr().err
    assert photo.read_bytes() == before
    assert main(["attention", str(photo.parent / "no.png"), "--model", "vit_nano_patch4_32"]) == 2
