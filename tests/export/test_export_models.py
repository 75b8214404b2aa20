"""CLIP, SAM and MAE out of visionzoo, and what runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from export_models import perturbed
from PIL import Image
from test_export_classifier import run_script

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.export.plans import Wish, make_plan
from visionzoo.export.predictors import ExportedTowers, ExportedZeroShot
from visionzoo.export.sam_predictor import ExportedSamPredictor
from visionzoo.export.write import export_plan
from visionzoo.inference.sam_predictor import SamPredictor
from visionzoo.inference.zero_shot import ZeroShotClassifier
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.clip import Clip
from visionzoo.models.sam import Sam

WORDS = ["a black cat", "a red dog", "a tall tree"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return perturbed(vz.create_clip(backbone="vit_nano_patch4_32", text="nano", context_length=16), 0.05)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def clip_run(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "clip"
    config = ModelConfig(task="clip", architecture=clip.architecture, preprocess=clip.preprocess)
    save_bundle(clip, config, folder)
    return folder


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return perturbed(vz.create_sam("vit_nano_patch4_32", image_size=64), 0.05)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def sam_folder(sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "sam"
    done = export_plan(make_plan(sam, Wish(), "sam"), out)
    assert {row.size for proof in done.proofs for row in proof.rows} == {
        "pictures of any size",
        "clicks",
        "clicks and boxes",
        "clicks and masks",
        "one click",
    }
    return out


@pytest.mark.slow
def test_both_towers_of_a_clip(clip: Clip, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_plan(make_plan(clip, Wish(), "clip"), out)
    towers = vz.load_exported(out)
    assert isinstance(towers, ExportedTowers)
    tokens = clip.tokenizer(WORDS)
    with torch.no_grad():
        wanted = clip.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(towers.encode_text(tokens.numpy()), wanted, rtol=1e-4, atol=1e-6)
    images = sorted(photos.iterdir())[:3]
    ours = ZeroShotClassifier(clip, WORDS).embed(images).numpy()
    np.testing.assert_allclose(towers(images)["embeddings"], ours, rtol=1e-4, atol=1e-6)
    run_script(out, images[:1], tmp_path)
    np.testing.assert_allclose(
        np.load(tmp_path / f"{images[0].name}.npz")["embeddings"], ours[:1], rtol=1e-4, atol=1e-6
    )


@pytest.mark.long
def test_a_zero_shot_classifier_with_its_labels(
    clip: Clip, clip_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, labels = tmp_path / "out", ",".join(WORDS)
    assert main(["export", str(clip_run), "--labels", labels, "--templates", "none", "--out", str(out)]) == 0
    images = sorted(photos.iterdir())[:5]
    ours, theirs = ZeroShotClassifier(clip, WORDS), vz.load_exported(out)
    assert isinstance(theirs, ExportedZeroShot)
    torch.testing.assert_close(theirs.probabilities(images), ours.probabilities(images), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(theirs.embed(images), ours.embed(images), rtol=1e-4, atol=1e-6)
    for classifier in (ours, theirs):
        classifier.remove(WORDS[1])
    torch.testing.assert_close(theirs.probabilities(images), ours.probabilities(images), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="exported with its labels"):
        theirs.add("a fish")
    with pytest.raises(ValueError, match="no label 'a fish'"):
        theirs.remove("a fish")
    capsys.readouterr()
    assert main(["zeroshot", str(images[0]), "--model", str(out), "--csv"]) == 0
    best = capsys.readouterr().out.splitlines()[1].split(",")[1]
    assert best == ZeroShotClassifier(clip, WORDS).predict(images[:1])[0][0][0]
    assert main(["zeroshot", str(images[0]), "--model", str(out), "--labels", "a,b"]) == 2
    assert "exported with its labels" in capsys.readouterr().err


def test_labels_that_are_scored_by_themselves(clip: Clip, photos: Path) -> None:
    from visionzoo.export.feeds import pixel_batch
    from visionzoo.export.plans import zero_shot_plan

    classifier = ZeroShotClassifier(clip, WORDS, multi_label=True)
    (part,) = zero_shot_plan(classifier).parts
    images = [Image.open(path) for path in sorted(photos.iterdir())[:4]]
    with torch.no_grad():
        found = part.module(pixel_batch(images, clip.preprocess, 0, 4))[0]
    torch.testing.assert_close(found, classifier.probabilities(images), rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_sam_answers_points_boxes_and_masks(sam: Sam, sam_folder: Path) -> None:
    from sklearn.datasets import load_sample_images

    ours, theirs = SamPredictor(sam), vz.load_exported(sam_folder)
    assert isinstance(theirs, ExportedSamPredictor)
    for picture in (load_sample_images().images[0], load_sample_images().images[1][:, :301]):
        height, width = picture.shape[:2]
        click = np.array([[width * 0.4, height * 0.5]])
        asked = [
            {"point_coords": click, "point_labels": np.array([1])},
            {"box": np.array([10, 20, width - 30, height - 5])},
            {"point_coords": click, "point_labels": np.array([0]), "box": np.array([0, 0, width, height])},
            {"point_coords": click + np.array([[0, 0], [9, 9], [-9, 4]]), "point_labels": np.array([1, 0, -1])},
            {},
        ]
        for predictor in (ours, theirs):
            predictor.set_image(picture)
        for prompt in asked:
            for multimask in (True, False):
                wanted = ours.predict(**prompt, multimask_output=multimask, return_logits=True)  # type: ignore[arg-type]
                given = theirs.predict(**prompt, multimask_output=multimask, return_logits=True)  # type: ignore[arg-type]
                for a, b in zip(wanted, given, strict=True):
                    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * max(1, np.abs(a).max()))
        low = ours.predict(click, np.array([1]), multimask_output=False)[2]
        wanted = ours.predict(click, np.array([1]), mask_input=low, return_logits=True)
        given = theirs.predict(click, np.array([1]), mask_input=low, return_logits=True)
        np.testing.assert_allclose(given[0], wanted[0], rtol=1e-4, atol=1e-4 * np.abs(wanted[0]).max())
    with pytest.raises(ValueError, match="without text prompts"):
        theirs.predict(text=np.zeros(8))


@pytest.mark.long
def test_a_sam_that_reads_the_pixels_too(tmp_path: Path) -> None:
    options = {"image_size": 64, "embedding_stride": 8, "decoder_dim": 32, "conv_stem": True}
    model = perturbed(vz.create_sam("vit_nano_patch4_32", **options), 0.05)
    done = export_plan(make_plan(model, Wish(), "sam"), tmp_path / "sam")
    assert max(row.difference for proof in done.proofs for row in proof.rows) < 1e-4


@pytest.mark.long
def test_sams_script_and_command_draw_the_predictors_mask(
    sam: Sam, sam_folder: Path, photos: Path, tmp_path: Path
) -> None:
    import subprocess
    import sys

    from test_export_classifier import BLOCK

    image = photos / "turned.jpg"
    assert len((sam_folder / "predict.py").read_text().splitlines()) <= 60
    for prompt, asked in (
        (["200,300"],
         {"point_coords": np.array([[200, 300]]), "point_labels": np.array([1]), "multimask_output": True}),
        (["box:20,40,300,500", "100,90,0"],
         {"point_coords": np.array([[100, 90]]), "point_labels": np.array([0]),
          "box": np.array([20, 40, 300, 500]), "multimask_output": False}),
    ):  # fmt: skip
        command = [sys.executable, "-c", BLOCK, str(sam_folder / "predict.py"), str(image), *prompt]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        masks, scores, _ = predictor.predict(**asked)  # type: ignore[arg-type]
        drawn = np.asarray(Image.open(tmp_path / "turned.jpg.mask.png")).astype(bool)
        assert drawn.shape == (640, 427)
        assert (drawn != masks[scores.argmax()]).mean() < 1e-4
        assert f"score {scores.max():.4f}" in done.stdout
    deep = np.asarray(Image.open(image).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")  # of a microscope
    command[4] = str(tmp_path / "deep.png")
    assert subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120).returncode == 0
    predictor.set_image(tmp_path / "deep.png")
    masks, scores, _ = predictor.predict(**asked)  # type: ignore[arg-type]
    drawn = np.asarray(Image.open(tmp_path / "deep.png.mask.png")).astype(bool)
    assert (drawn != masks[scores.argmax()]).mean() < 1e-4
    out = tmp_path / "overlay.png"
    assert main(["masks", str(image), "--model", str(sam_folder), "--point", "200,300", "--out", str(out)]) == 0
    assert out.is_file()
    assert main(["masks", str(image), "--model", str(sam_folder), "--text", "cat", "--out", str(out)]) == 2
    some = ["--all", "--points-per-side", "3", "--min-iou", "0", "--min-stability", "0"]
    assert main(["masks", str(image), "--model", str(sam_folder), *some, "--out", str(out)]) == 0


def test_everything_by_an_export_is_what_its_run_finds(sam: Sam, sam_folder: Path) -> None:
    from sklearn.datasets import load_sample_images

    picture = load_sample_images().images[1][:200, :301]
    every = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}
    ours, theirs = (
        sorted(
            vz.MaskGenerator(model, 3, step, **every, crop_n_layers=1).generate(picture),
            key=lambda m: (m["crop_box"], m["point_coords"], m["predicted_iou"]),
        )
        for model, step in ((sam, None), (vz.load_exported(sam_folder), 5))
    )
    assert len(ours) == len(theirs) > 9
    for a, b in zip(ours, theirs, strict=True):
        assert (a["point_coords"], a["crop_box"]) == (b["point_coords"], b["crop_box"])
        np.testing.assert_allclose(b["predicted_iou"], a["predicted_iou"], rtol=1e-4, atol=1e-5)
        assert (a["segmentation"] != b["segmentation"]).mean() < 1e-3  # logits of zero, to the last digits


def test_an_export_knows_whether_its_clicks_are_ambiguous(sam_folder: Path, tmp_path: Path) -> None:
    assert vz.load_exported(sam_folder).model.ambiguous
    clear = vz.create_sam("vit_nano_patch4_32", image_size=64, ambiguous=False)
    assert make_plan(clear, Wish(), "clear").facts["ambiguous"] is False


def test_several_pictures_in_one_call_of_the_decoder(sam: Sam, sam_folder: Path) -> None:
    encoder, decoder = (
        onnxruntime.InferenceSession(sam_folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder")
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    (embeddings,) = encoder.run(None, {"images": images, "sizes": np.array([[64, 64], [40, 64]])})
    feed = {
        "image_index": np.array([1, 0, 1, 1]),
        "point_coords": rng.uniform(0, 40, (4, 2, 2)).astype(np.float32),
        "point_labels": np.array([[1, -1], [0, -1], [1, 1], [2, 3]]),
        "mask_input": np.zeros((4, 1, *sam.mask_size), np.float32),
        "has_mask_input": np.zeros(4, bool),
    }
    together = decoder.run(None, {"embeddings": embeddings, **feed})
    for i in range(4):
        own = {k: v[i : i + 1] for k, v in feed.items()} | {"image_index": np.zeros(1, np.int64)}
        k = feed["image_index"][i]
        alone = decoder.run(None, {"embeddings": embeddings[k : k + 1], **own})
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(b[i : i + 1], a, rtol=1e-4, atol=1e-5 * np.abs(a).max())


@pytest.mark.slow
def test_the_encoder_of_a_mae(tmp_path: Path, photos: Path) -> None:
    torch.manual_seed(0)
    model = perturbed(vz.create_mae("vit_nano_patch4_32"), 0.02)
    run, out = tmp_path / "mae", tmp_path / "out"
    save_bundle(model, ModelConfig(task="mae", architecture=model.architecture, preprocess=model.preprocess), run)  # type: ignore[arg-type]
    assert main(["export", str(run), "--out", str(out)]) == 0
    exported = vz.load_exported(out)
    images = sorted(photos.iterdir())[:2]
    from visionzoo.data.transforms import EvalTransform
    from visionzoo.models.preprocess import Normalize

    pixels = torch.stack([EvalTransform(model.preprocess)(image) for image in images])  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = model.encoder(Normalize(model.preprocess)(pixels))  # type: ignore[operator, arg-type]
    found = exported(images)
    for name in ("pooled", "grid", "prefix"):
        np.testing.assert_allclose(found[name], getattr(wanted, name).numpy(), rtol=1e-4, atol=1e-5)
    other = np.random.default_rng(0).integers(0, 256, (2, 3, 51, 37), dtype=np.uint8)
    assert exported.run(other)["grid"].shape == (2, 64, 13, 10)
