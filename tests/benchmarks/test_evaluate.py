"""Released models: timm's numbers to the last prediction, and each data set asked among its own classes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_dataset, create_loader, resolve_data_config

import visionzoo as vz
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.shapes import ShapesSource

SYNSETS = ImageNetInfo().label_names()


def everything(path: Path) -> Any:
    return open_data(str(path), val_fraction=1.0).to_evaluate


def write_images(folder: Path, classes: list[str], count: int = 1) -> Path:
    source = ShapesSource(len(classes) * count, size=96)
    for i, name in enumerate(np.repeat(classes, count)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        source.read(i).resize((120 + i % 40, 110)).save(folder / name / f"{i:04d}.png")
    return folder


def of_timm(name: str, folder: Path, class_map: Path) -> dict[str, int]:
    """Top-1 of every image file by the parts of timm's validate.py, on random weights."""
    torch.manual_seed(0)
    model = timm.create_model(name.removeprefix("timm/"), pretrained=False).eval()
    config = resolve_data_config({}, model=model, use_test_size=True)
    dataset = create_dataset("", str(folder), class_map=str(class_map))
    loader = create_loader(
        dataset, config["input_size"], 16, use_prefetcher=False, num_workers=0, interpolation=config["interpolation"],
        mean=config["mean"], std=config["std"], crop_pct=config["crop_pct"], crop_mode=config["crop_mode"],
        device=torch.device("cpu"),
    )  # fmt: skip
    with torch.inference_mode():
        output = torch.cat([model(images) for images, _ in loader])
    return dict(zip(dataset.filenames(basename=True), output.argmax(1).tolist(), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/lcnet_035"])  # tested at 224 after 176 pixels, and at its own
def test_predictions_are_those_of_timms_validation(name: str, load: Any, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "val", SYNSETS[::50], 2)
    class_map = tmp_path / "classes.txt"
    class_map.write_text("\n".join(SYNSETS))
    want = of_timm(name, folder, class_map)
    scoring, labels = load("released.scoring"), load("released.labels")
    source = everything(folder)
    model = scoring.Released(name, "random").build("cpu")
    torch.manual_seed(0)
    model.load_state_dict(timm.create_model(name.removeprefix("timm/"), pretrained=False).state_dict())
    asked = labels.question(source, "auto")
    scoring.answer(model, source, asked, 16, tmp_path / "answers.parquet")
    rows, about = scoring.read_table(tmp_path / "answers.parquet", scoring.COLUMNS)
    names = [Path(s).name for s in rows["sample"]]
    assert {name: a[0] for name, a in zip(names, rows["answers"], strict=True)} == want
    assert len(set(want.values())) > 1
    test_size = timm.models.get_pretrained_cfg(name.removeprefix("timm/")).test_input_size
    assert about["image_size"][0] == (test_size or model.pretrained_cfg["input_size"])[1]
    row = scoring.score(tmp_path / "answers.parquet", asked)
    targets = [SYNSETS.index(Path(s).parent.name) for s in rows["sample"]]
    assert row["top1"] == pytest.approx(100 * np.mean([want[n] == t for n, t in zip(names, targets, strict=True)]))
    assert "asked among all 1000" in asked.note


@pytest.mark.long
def test_two_hundred_classes_are_asked_among_two_hundred(load: Any, tmp_path: Path) -> None:
    labels = load("released.labels")
    for name, some in (("imagenet_a", "n01498041"), ("imagenet_r", "n01443537")):
        listed = [SYNSETS[i] for i in labels.published(name)]
        assert len(listed) == 200
        assert some in listed
        source = everything(write_images(tmp_path / name, listed))
        found = labels.question(source, "auto")
        assert found.asked.tolist() == list(labels.published(name))
        assert found.note == ""
        assert labels.question(source, "all").asked.tolist() == list(range(1000))
        targets = {next(iter(r)) for r in found.right}
        assert targets == set(labels.published(name))
    with pytest.raises(ValueError, match="imagenet_r has no class"):
        labels.question(everything(tmp_path / "imagenet_a"), "imagenet_r")


@pytest.mark.long
def test_what_no_image_shows_cannot_be_answered(load: Any, tmp_path: Path) -> None:
    """The trap: a model that prefers a class outside the list is asked for its best answer inside it."""
    scoring, labels = load("released.scoring"), load("released.labels")
    listed = [SYNSETS[i] for i in labels.published("imagenet_a")]
    source = everything(write_images(tmp_path / "a", listed))
    model = scoring.Released("vit_nano_patch4_32", "random").build("cpu")
    outside = next(i for i in range(1000) if i not in labels.published("imagenet_a"))
    with torch.no_grad():
        model.head.bias[outside] += 100
        model.head.bias[labels.published("imagenet_a")[7]] += 50
    for rule, wanted in (("auto", labels.published("imagenet_a")[7]), ("all", outside)):
        scoring.answer(model, source, labels.question(source, rule), 64, tmp_path / f"{rule}.parquet")
        rows, _ = scoring.read_table(tmp_path / f"{rule}.parquet", scoring.COLUMNS)
        assert {a[0] for a in rows["answers"]} == {wanted}


def test_folders_that_are_numbers_and_lists(load: Any, tmp_path: Path) -> None:
    labels = load("released.labels")
    assert labels.class_indices(["0", "10", "2", "999"]).tolist() == [0, 10, 2, 999]  # ImageNet-V2
    assert labels.class_indices(SYNSETS).tolist() == list(range(1000))  # Sketch, ImageNet
    assert labels.class_indices([f"class {i:03d}" for i in range(1000)])[7] == 7
    with pytest.raises(ValueError, match="'cat' is no class of ImageNet"):
        labels.class_indices(["cat", "dog"])
    write_images(tmp_path, ["n01440764"], 2)
    table = tmp_path / "list.csv"
    table.write_text("path,label\nn01440764/0000.png,n01440764\nn01440764/0001.png,n02102040\n")
    found = labels.question(everything(table), "present")
    assert found.asked.tolist() == [0, 217]


def test_real_labels_take_any_right_answer_and_leave_out_images_without(load: Any, tmp_path: Path) -> None:
    scoring, labels = load("released.scoring"), load("released.labels")
    real = labels.real_labels()
    assert len(real) == 50_000
    single = next(i for i, r in enumerate(real) if len(r) == 1)
    several = next(i for i, r in enumerate(real) if len(r) > 1)
    none = next(i for i, r in enumerate(real) if not r)
    for name, i in (("n01440764", single), ("n01443537", several), ("n01443537", none)):
        (tmp_path / "val" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "val" / name / f"ILSVRC2012_val_{i + 1:08d}.JPEG")
    source = everything(tmp_path / "val")
    found = labels.question(source, "real")
    order = [int(Path(source.sample_id(i)).stem[-8:]) - 1 for i in range(3)]
    for i in (single, several, none):
        assert found.right[order.index(i)] == frozenset(real[i])
    model = scoring.Released("vit_nano_patch4_32", "random").build("cpu")
    with torch.no_grad():
        model.head.bias[real[several][-1]] += 100
    scoring.answer(model, source, found, 8, tmp_path / "answers.parquet")
    row = scoring.score(tmp_path / "answers.parquet", found)
    assert (row["images"], row["top1"]) == (2, 50.0 if real[several][-1] not in real[single] else 100.0)
    with pytest.raises(ValueError, match="by their published names"):
        labels.question(everything(write_images(tmp_path / "other", ["n01440764", "n01443537"])), "real")


@pytest.mark.long
def test_the_command_goes_on_and_writes_one_table_and_one_page(load: Any, tmp_path: Path, capsys: Any) -> None:
    main = load("evaluate").main
    one = write_images(tmp_path / "one" / "val", SYNSETS[:3])
    write_images(tmp_path / "two", SYNSETS[5:8])
    told = ["--models", "vit_nano_patch4_32=random,timm/lcnet_035=random", "--device", "cpu", "--out"]
    told += [str(tmp_path / "out"), "--data.path", f"{one},{tmp_path / 'two'}", "--data.classes", "all,present"]
    assert main(told) == 0
    assert "(kept)" not in capsys.readouterr().out
    (tmp_path / "out" / "answers" / "timm_lcnet_035=random-two-present.parquet").unlink()
    assert main(told) == 0
    assert capsys.readouterr().out.count("(kept)") == 3
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [(r["model"], r["data"], r["classes"]) for r in rows][:2] == [
        ("vit_nano_patch4_32=random", "val-all", "1000"), ("vit_nano_patch4_32=random", "two-present", "3"),
    ]  # fmt: skip
    assert "timm/lcnet_035=random" in (tmp_path / "out" / "index.html").read_text()
    assert main([*told, "--data.classes", "some"]) == 2
    assert "data.classes=some must be one of auto" in capsys.readouterr().err
    assert main(["--models", "vit_nano_patch4_32", *told[2:]]) == 1
    assert "is a name without weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--limit", "0"], "limit=0 must be at least 1"),
        (["--data.path", ""], "data.path is empty"),
        (["--models", "m=a/best.pt,m=b/best.pt"], "models=m=a/best.pt and m=b/best.pt are both called m=best.pt"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "robustness"])
def test_what_cannot_be_asked_is_named(
    command: str, options: list[str], said: str, load: Any, capsys: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    told = ["--models", "vit_nano_patch4_32=random", "--data.path", "shapes:8", "--out", str(out), *options]
    assert load(command).main(told) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_data_sets_of_one_name_are_told_apart(load: Any) -> None:
    names_of = load("released.identity").names_of
    assert names_of(["/d/IMAGENET/val", "/d/V2/val"]) == ["IMAGENET/val", "V2/val"]
    assert names_of(["/d/a", "b"]) == ["a", "b"]
    assert names_of(["x/val", "x/val/"]) == ["val", "val"]  # one and the same
    assert names_of(["val", "x/val"]) == ["val", "x/val"]
    assert names_of(["."]) == [Path.cwd().name]


def test_answers_of_other_images_or_weights_are_not_taken_for_these(load: Any, tmp_path: Path, capsys: Any) -> None:
    main, weights = load("evaluate").main, tmp_path / "m.safetensors"
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = vz.create_classifier("vit_nano_patch4_32", 1000)
        save_file(model.state_dict(), weights.with_name(f"{seed}.safetensors"))
    weights.with_name("0.safetensors").rename(weights)
    one = write_images(tmp_path / "one" / "val", SYNSETS[:3])
    two = write_images(tmp_path / "two" / "val", SYNSETS[2:5])
    told = ["--models", f"vit_nano_patch4_32={weights}", "--device", "cpu", "--out", str(tmp_path / "out")]
    told += ["--data.path"]
    assert main([*told, f"{one},{two},{one}", "--data.classes", "all,all,present"]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [r["data"] for r in rows] == ["one_val-all", "two_val-all", "one_val-present"]
    assert main([*told, str(one)]) == 0
    assert main([*told, str(two)]) == 1
    assert "holds answers of other images; delete it" in capsys.readouterr().err
    weights.with_name("1.safetensors").replace(weights)
    assert main([*told, str(one)]) == 1
    assert "holds answers of other weights; delete it" in capsys.readouterr().err
