"""``visionzoo masks`` as a user types it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from sam_twins import NANO, nano_sam, picture

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.models.bundle import ModelConfig, save_bundle

pytestmark = pytest.mark.usefixtures("block_network")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "segment-nuclei"
    model = nano_sam()
    save_bundle(
        model, ModelConfig(task="segment", architecture=model.architecture, preprocess=model.preprocess), folder
    )
    return str(folder)


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(40, 50)).save("photo.png")
    return "photo.png"


def test_a_click(run_folder, photo, capsys):
    assert main(["masks", photo, "--model", run_folder, "--point", "10,20", "--json", "m.json"]) == 0
    said = capsys.readouterr()
    assert said.out == "overlay.png: 1 mask\n"
    assert said.err == ""
    record = json.loads(Path("m.json").read_text())
    assert record["images"] == [{"id": 1, "file_name": "photo.png", "width": 50, "height": 40}]
    (found,) = record["annotations"]
    predictor = vz.SamPredictor(nano_sam())
    predictor.set_image(photo)
    masks, scores, _ = predictor.predict(np.array([[10, 20]]), np.array([1]))
    best = masks[scores.argmax()]
    assert np.array_equal(coco.decode(found["segmentation"]).astype(bool), best)
    assert found["area"] == best.sum()
    assert found["point_coords"] == [[10.0, 20.0]]
    drawn = np.asarray(Image.open("overlay.png")).astype(int)
    assert drawn.shape == (40, 50, 3)
    far = np.hypot(*np.ogrid[-20:20, -10:40]) > 5
    changed = (drawn != picture(40, 50)).any(axis=2)
    assert (changed[best & far]).mean() > 0.95
    assert not changed[~best & far].any()


def test_box_and_clicks_give_the_single_mask(run_folder, photo, capsys):
    prompts = ["--box", "5,5,40,30", "--point", "10,20", "--point", "30,9,0"]
    assert main(["masks", photo, "--model", run_folder, *prompts, "--out", "x.jpg", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["annotations"]
    predictor = vz.SamPredictor(nano_sam())
    predictor.set_image(photo)
    masks, _, _ = predictor.predict(
        np.array([[10, 20], [30, 9]]), np.array([1, 0]), np.array([5, 5, 40, 30]), multimask_output=False
    )
    assert np.array_equal(coco.decode(found["segmentation"]).astype(bool), masks[0])
    assert os.path.exists("x.jpg")


def test_a_click_of_a_model_whose_clicks_mean_one_thing(tmp_path, photo, capsys):
    model = nano_sam()
    model.ambiguous = model.architecture["ambiguous"] = False
    config = ModelConfig(task="segment", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model, config, tmp_path / "cells")
    assert main(["masks", photo, "--model", str(tmp_path / "cells"), "--point", "10,20", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["annotations"]
    predictor = vz.SamPredictor(model)
    predictor.set_image(photo)
    masks, _, _ = predictor.predict(np.array([[10, 20]]), np.array([1]), multimask_output=False)
    assert np.array_equal(coco.decode(found["segmentation"]).astype(bool), masks[0])


@pytest.fixture
def spoken_run(tmp_path):
    """A run that was trained with names, beside its CLIP."""
    torch.manual_seed(0)
    clip = vz.create_clip(backbone="vit_nano_patch4_32", text="nano", text_width=32, text_heads=2)
    save_bundle(
        clip, ModelConfig(task="clip", architecture=clip.architecture, preprocess=clip.preprocess), tmp_path / "clip"
    )
    model = vz.create_sam(NANO, image_size=64, embedding_stride=4, decoder_dim=32, text_dim=32)
    config = ModelConfig(
        task="segment",
        architecture=model.architecture,
        preprocess=model.preprocess,
        text_prompts={"model": str(tmp_path / "elsewhere" / "clip"), "template": "the {}"},
    )
    save_bundle(model, config, tmp_path / "spoken")
    return tmp_path / "spoken"


def test_names_as_prompts(spoken_run, photo, capsys):
    names = ["--text", "a cat", "--text", "dog"]
    assert main(["masks", photo, "--model", str(spoken_run), *names, "--json", "m.json"]) == 0
    said = capsys.readouterr()
    assert said.out == "overlay.png: 2 masks\n"
    assert "experimental: whether this model tells names apart was not measured" in said.err
    for gain, words in ((0.2, "are experimental: its held-out objects have +0.200 ± 0.010"), (0.01, "do not work yet")):
        scores = {"scores": {"text_gain": gain, "text_gain_error": 0.01}}
        (spoken_run / "results.json").write_text(json.dumps(scores))
        assert main(["masks", photo, "--model", str(spoken_run), *names]) == 0
        assert words in capsys.readouterr().err
    record = json.loads(Path("m.json").read_text())
    assert record["categories"] == [{"id": 1, "name": "a cat"}, {"id": 2, "name": "dog"}]
    assert [a["category_id"] for a in record["annotations"]] == [1, 2]
    predictor = vz.SamPredictor.load(spoken_run)
    predictor.set_image(photo)
    clip = vz.create_clip(weights=str(spoken_run.parent / "clip")).eval()
    for name, found in zip(["a cat", "dog"], record["annotations"], strict=True):
        with torch.no_grad():
            text = clip.encode_text(clip.tokenizer([f"the {name}"]), normalize=True)[0]
        masks, scores, _ = predictor.predict(text=text)
        assert np.array_equal(coco.decode(found["segmentation"]).astype(bool), masks[scores.argmax()])
    assert Image.open("overlay.png").size == (500, 400)  # enlarged tenfold, or no name could be read


def test_mistakes_with_names(spoken_run, run_folder, photo, capsys):
    for args, message in (
        (["--model", run_folder, "--text", "a cat"], "takes no names as prompts"),
        (["--model", NANO, "--text", "a cat"], "takes no names as prompts"),
        (["--model", str(spoken_run), "--text", " "], "missing or empty"),
        (["--model", str(spoken_run), "--text", "x", "--all"], "say what to segment"),
        (["--model", str(spoken_run), "--text", "x", "--text-model", "gone"], "name it with --text-model"),
    ):
        assert main(["masks", photo, *args]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ")
        assert message in said.err
        assert said.err.count("\n") == 1


def test_what_to_do_when_no_mask_is_good_enough(run_folder, photo, capsys):
    assert main(["masks", photo, "--model", run_folder, "--all", "--points-per-side", "2", "--min-iou", "99"]) == 0
    said = capsys.readouterr()
    assert said.out == "overlay.png: 0 masks\n"
    generator = vz.MaskGenerator(nano_sam(), 2, pred_iou_thresh=-9, stability_score_thresh=0, box_nms_thresh=1)
    everything = generator.generate(photo)
    highest = max(m["predicted_iou"] for m in everything)
    assert f"no mask has a predicted IoU above 99: the highest of any is {highest:.3f}; give a lower" in said.err
    found = ["--all", "--points-per-side", "2", "--min-iou", "0", "--min-stability", "1.5"]
    assert main(["masks", photo, "--model", run_folder, *found]) == 0
    highest = max(m["stability_score"] for m in everything)
    assert f"has a stability of 1.5: the highest of any is {highest:.3f}; give a lower" in capsys.readouterr().err


def test_everything(run_folder, photo, capsys):
    options = ["--all", "--points-per-side", "3", "--min-iou", "-9", "--min-stability", "0", "--crop-layers", "1"]
    options += ["--out", "all.png", "--json", "all.json"]
    assert main(["masks", photo, "--model", run_folder, *options]) == 0
    found = json.loads(Path("all.json").read_text())["annotations"]
    assert capsys.readouterr().out == f"all.png: {len(found)} mask{'s' * (len(found) != 1)}\n"
    theirs = vz.MaskGenerator(nano_sam(), 3, pred_iou_thresh=-9, stability_score_thresh=0, crop_n_layers=1).generate(
        photo
    )
    assert [m["bbox"] for m in found] == [coco.toBbox(m["segmentation"]).tolist() for m in found]
    for mine, meta in zip(found, theirs, strict=True):  # whose boxes end at the last pixel; of no pixels there is none
        x, y, w, h = meta["bbox"]
        assert mine["bbox"] == ([x, y, w + 1, h + 1] if meta["area"] else [0, 0, 0, 0])


def test_random_weights_are_said(photo, capsys):
    command = ["masks", photo, "--model", NANO, "--image-size", "64", "--point", "3,3"]
    assert main(command) == 2
    assert "is a name without weights" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="has random weights, as was asked for"):
        assert main([*command, "--weights", "random"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "say what to segment"),
        (["--all", "--point", "1,1"], "say what to segment"),
        (["--point", "60,3"], "(60, 3) lies outside the image of 50x40"),
        (["--point", "6,3,2"], "point label 2.0 must be 1"),
        (["--box", "30,5,10,20"], "are swapped"),
        (["--all", "--out", "photo.png"], "is the image itself"),
        (["--all", "--out", "masks.txt"], "must end in"),
        (["--all", "--json", "photo.png"], "must end in .json"),
        (["--all", "--weights", "x"], "leave the options out"),
        (["--all", "--points-per-side", "0"], "--points-per-side: 0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line(run_folder, photo, args, message, capsys):
    before = Path(photo).read_bytes()
    assert main(["masks", photo, "--model", run_folder, *args]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert Path(photo).read_bytes() == before


@pytest.mark.parametrize("model", ["nowhere", "vit_bb"])
def test_unknown_models_and_images(photo, model, capsys):
    assert main(["masks", photo, "--model", model, "--all"]) == 2
    assert "unknown backbone" in capsys.readouterr().err
    assert main(["masks", "missing.png", "--model", NANO, "--all"]) == 2
    assert "missing.png" in capsys.readouterr().err


def test_form_of_a_point(photo, capsys):
    assert main(["masks", photo, "--model", NANO, "--point", "3"]) == 2
    assert "'3' is not of the form x,y" in capsys.readouterr().err
