"""ImageNet-C by its definitions, images changed so that families fall apart, and the command that asks for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from visionzoo.data.sources.shapes import ShapesSource


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """(224, 224, 3) uint8 with edges and texture."""
    drawn = ShapesSource(1, size=64).read(0).resize((224, 224))
    return np.uint8(np.clip(np.array(drawn) + 20.0 * np.random.default_rng(0).normal(size=(224, 224, 3)), 0, 255))


def test_the_fifteen_corruptions_are_the_same_for_the_same_draws(load: Any, image: np.ndarray) -> None:
    module = load("comparison.imagenet_c")
    assert len(module.CORRUPTIONS) == 15
    for name in module.CORRUPTIONS:
        if name == "frost" and not module.frost_pictures():
            continue
        one, again = (module.corrupt(image, name, 3, np.random.default_rng(1)) for _ in range(2))
        assert one.dtype == np.uint8
        assert one.shape == image.shape
        assert (one == again).all()
        assert np.abs(one.astype(int) - image).mean() > 1, name


def test_corruptions_are_their_published_definitions(load: Any, image: np.ndarray) -> None:
    """Written out from the paper's code; the released package gives these pixels too, to one level of rounding."""
    corrupt, x = load("comparison.imagenet_c").corrupt, image / 255

    def got(name: str, severity: int = 2, rng: Any = None) -> np.ndarray:
        return corrupt(image, name, severity, rng)

    def cut(y: np.ndarray) -> np.ndarray:
        return np.uint8(np.clip(y, 0, 1) * 255)

    mean = x.mean((0, 1), keepdims=True)
    assert (got("contrast") == cut((x - mean) * 0.3 + mean)).all()
    noise = np.random.RandomState(5).normal(size=x.shape, scale=0.12)
    assert (got("gaussian_noise", rng=np.random.RandomState(5)) == cut(x + noise)).all()
    shot = np.random.RandomState(5).poisson(x * 25) / 25.0
    assert (got("shot_noise", rng=np.random.RandomState(5)) == cut(shot)).all()
    small = Image.fromarray(image).resize((112, 112), Image.Resampling.BOX)
    assert (got("pixelate") == np.array(small.resize((224, 224), Image.Resampling.NEAREST))).all()
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    hsv = rgb_to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.2, 0, 1)
    assert np.abs(got("brightness").astype(int) - cut(hsv_to_rgb(hsv))).max() <= 1
    hit = (got("impulse_noise", 5, np.random.default_rng(0)) != image).mean()
    assert hit == pytest.approx(0.27, abs=0.02)  # of the channels' values, less those that were black or white before


def test_what_is_no_corruption_is_said(load: Any, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("comparison.imagenet_c")
    for arguments in ((image, "blur", 1), (image, "fog", 6), (image[:100], "fog", 1)):
        with pytest.raises(ValueError, match=r"is none of|is defined for"):
            module.corrupt(*arguments, np.random.default_rng(0))
    monkeypatch.setattr(module, "frost_pictures", list)
    with pytest.raises(ValueError, match="pip install --no-deps imagecorruptions"):
        module.corrupt(image, "frost", 1, np.random.default_rng(0))


def test_mean_corruption_error_is_that_of_the_paper(load: Any) -> None:
    mce = load("comparison.imagenet_c").mean_corruption_error
    base = {"fog": [0.5, 0.7], "snow": [0.4, 0.6]}
    assert mce(base, base) == (100.0, {"fog": 100.0, "snow": 100.0})
    total, each = mce({"fog": [0.3, 0.3], "snow": [0.5, 1.0]}, base)
    assert each == {"fog": pytest.approx(50.0), "snow": pytest.approx(150.0)}
    assert total == pytest.approx(100.0)
    with pytest.raises(ValueError, match="cannot be held against"):
        mce({"fog": [0.3, 0.3]}, base)
    with pytest.raises(ValueError, match="makes no mistake under fog"):
        mce({"fog": [0.3]}, {"fog": [0.0]})


def test_patches_are_dropped_and_shuffled_and_nothing_else(load: Any) -> None:
    looks = load("released.looks")
    image = np.arange(56 * 56 * 3).reshape(56, 56, 3).astype(np.uint8)
    dropped = looks.drop_patches(image, 0.25, np.random.default_rng(0))
    grey = (dropped.reshape(14, 4, 14, 4, 3) == looks.GREY).all((1, 3, 4))
    assert grey.sum() == 49
    same = (dropped == image).all(2).reshape(14, 4, 14, 4).all((1, 3))
    assert (grey | same).all()
    assert (looks.drop_patches(image, 0.0, np.random.default_rng(0)) == image).all()
    shuffled = looks.shuffle_patches(image, 4, np.random.default_rng(0))
    assert (shuffled != image).any()
    assert (np.sort(shuffled.reshape(-1)) == np.sort(image.reshape(-1))).all()
    assert (looks.shuffle_patches(image, 1, np.random.default_rng(0)) == image).all()
    with pytest.raises(ValueError, match="has no 60 x 60 patches"):
        looks.shuffle_patches(image, 60, np.random.default_rng(0))


def test_an_adversary_stays_near_and_does_harm(load: Any) -> None:
    looks = load("released.looks")
    torch.manual_seed(0)
    layer = torch.nn.Linear(3 * 8 * 8, 4)
    images, labels = torch.rand(16, 3, 8, 8), torch.randint(4, (16,))
    logits = lambda x: layer(x.flatten(1))  # noqa: E731
    found = looks.attack(logits, images, labels, 4 / 255)
    assert float((found - images).abs().max()) <= 4 / 255 + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    # of a linear model the best step is known for two classes; for four the loss must rise to nearly what a step
    # against the gradient at the start gives
    loss = torch.nn.functional.cross_entropy
    x = images.clone().requires_grad_()
    loss(logits(x), labels, reduction="sum").backward()
    one_step = (images + 4 / 255 * x.grad.sign()).clamp(0, 1)
    assert float(loss(logits(found), labels)) >= 0.999 * float(loss(logits(one_step), labels))


@pytest.mark.long
def test_the_command_looks_at_everything_and_goes_on(load: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from timm.data import ImageNetInfo

    for i, name in enumerate(ImageNetInfo().label_names()[:6]):
        (tmp_path / "val" / name).mkdir(parents=True)
        ShapesSource(6, size=96).read(i).save(tmp_path / "val" / name / f"{i}.png")
    (tmp_path / "other").mkdir()
    for i in range(5):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)).save(
            tmp_path / "other" / f"{i}.png"
        )
    imagenet_c = load("comparison.imagenet_c")
    few = {n: imagenet_c.CORRUPTIONS[n] for n in ("contrast", "pixelate")}
    monkeypatch.setattr(imagenet_c, "CORRUPTIONS", few)
    main = load("robustness").main
    told = ["--models", "timm/lcnet_035=random,timm/lcnet_050=random", "--data.path", str(tmp_path / "val")]
    told += ["--out", str(tmp_path / "out"), "--device", "cpu", "--ood_path", str(tmp_path / "other")]
    told += ["--data.classes", "present", "--baseline", "timm/lcnet_035=random", "--transfer_path", "shapes:24"]
    assert main(told) == 0
    pieces = sorted((tmp_path / "out" / "pieces").glob("*.json"))
    found = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    one = found["timm/lcnet_035=random"]
    assert set(one["imagenet_c"]) == set(few)
    assert len(one["imagenet_c"]["contrast"]) == 5
    assert one["occlusion"]["accuracy"][0] == one["shuffle"]["accuracy"][0] == one["clean"]["accuracy"]
    assert one["pgd"]["accuracy"][0] == one["clean"]["accuracy"]
    assert 0 <= one["ood"]["energy"]["auroc"] <= 1
    assert len(one["cka timm/lcnet_050=random"]["cka"]) == 5
    assert one["input_size"]["x"] == [128, 160, 224, 288, 320]
    assert one["input_size"]["accuracy"][2] == one["clean"]["accuracy"]
    assert one["transfer"]["train_images"] == 24
    assert 0 <= one["transfer"]["accuracy"] <= 1
    assert np.array(one["maps"]["cam"]).shape == (6, 14, 14)
    assert list(one["maps"]["left_out"]) == ["attention"]
    page = (tmp_path / "out" / "index.html").read_text()
    texts = ["Patches shuffled", "kappa of errors", "pixelate", "mCE is of timm/lcnet_035=random", "Grad-CAM"]
    for text in [
        *texts,
        "attention: it gives no attention weights",
        "transfer top-1 %",
        "Input size",
        "its level",
        "level 5",
    ]:
        assert text in page
    capsys.readouterr()
    times = [p.stat().st_mtime_ns for p in pieces]
    assert main(told) == 0
    assert [p.stat().st_mtime_ns for p in pieces] == times  # all kept
    assert main([*told, "--limit", "3"]) == 2
    assert "give another --out" in capsys.readouterr().err
    assert main([*told, "--transfer_path", "shapes:32"]) == 2
    assert "holds results of transfer" in capsys.readouterr().err
    assert main([*told, "--transfer_path", "shapes:32", "--looks", "clean"]) == 0  # which does not ask for it
    capsys.readouterr()
    assert main([*told[:-2], "--looks", "transfer"]) == 2
    assert "looks=transfer needs transfer_path" in capsys.readouterr().err
    assert main([*told, "--baseline", "alexnet"]) == 2
    assert "baseline=alexnet must be one of the models" in capsys.readouterr().err
    assert main([*told, "--looks", "blur"]) == 2
    assert "looks=blur must be all" in capsys.readouterr().err


@pytest.mark.long
def test_images_that_cannot_be_read_or_have_no_label_are_left_out(load: Any, tmp_path: Path, capsys: Any) -> None:
    """Of ReaL's labels some images have several and some none."""
    real = load("released.labels").real_labels()
    none = next(i for i, r in enumerate(real) if not r)
    several = next(i for i, r in enumerate(real) if len(r) > 1)
    single = next(i for i, r in enumerate(real) if len(r) == 1)
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    (tmp_path / "val" / "n01443537").mkdir()
    for place, i in enumerate((none, several, single)):
        name = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
        ShapesSource(6, size=96).read(place).save(tmp_path / "val" / "n01440764" / name)
    (tmp_path / "val" / "n01443537" / "ILSVRC2012_val_00000003.JPEG").write_bytes(b"\xff\xd8\xff broken")
    model = load("released.scoring").Released("vit_nano_patch4_32", "random").build("cpu")
    with torch.no_grad():
        model.head.bias[max(real[several])] += 100
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    told = ["--models", f"vit_nano_patch4_32={tmp_path / 'w.safetensors'}", "--data.path", str(tmp_path / "val")]
    told += ["--out", str(tmp_path / "out"), "--device", "cpu", "--data.classes", "real", "--looks", "clean,pgd"]
    assert load("robustness").main(told) == 0
    assert "left out: " in (said := capsys.readouterr().out)
    assert "00000003.JPEG cannot be read" in said
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    (looks,) = found["models"].values()
    assert found["images"] == 2
    share = float(np.mean([max(real[several]) in real[i] for i in (several, single)]))  # any right answer counts
    assert looks["clean"]["accuracy"] == looks["pgd"]["accuracy"][0] == share > 0
    assert looks["clean"]["ece"] == pytest.approx(1 - share, abs=1e-4)  # it is sure each time
    with torch.no_grad():
        model.head.bias[0] += 1
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert load("robustness").main(told) == 2
    assert "holds results of weights of vit_nano_patch4_32=w.safetensors" in capsys.readouterr().err


def test_texture_goes_from_large_inputs_as_from_small_ones(load: Any, image: np.ndarray) -> None:
    looks, sizes = load("released.looks"), (224, 448)
    left = []
    for size in sizes:
        picture = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
        flat = cv2.resize(looks.without_texture(picture), (112, 112), interpolation=cv2.INTER_AREA)
        left.append(flat.astype(float))
    changed = np.abs(left[0] - cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA)).mean()
    assert np.abs(left[0] - left[1]).mean() < 0.12 * changed
