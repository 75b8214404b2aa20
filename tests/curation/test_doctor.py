"""The data doctor as a person asks it: folders, tables, captions, masks; its page, and the data without the faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from PIL import Image

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.curation.choose import choose_next
from visionzoo.curation.drift import find_drift
from visionzoo.curation.findings import Findings
from visionzoo.curation.objects import mask_faults
from visionzoo.curation.texts import caption_fit, knows
from visionzoo.data.sources.objects import DenseObjects, ObjectSource
from visionzoo.data.sources.open import open_data

MODEL = {"model": "vit_nano_patch4_32", "weights": "random"}
pytestmark = pytest.mark.filterwarnings("ignore:.*random weights")


def _picture(colour: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    pixels = np.kron(rng.integers(0, 90, (8, 8, 1)), np.ones((4, 4, 3))) + rng.integers(0, 12, (32, 32, 3))
    return Image.fromarray((pixels + np.array(colour)).clip(0, 255).astype(np.uint8))


COLOURS = {"red": (160, 0, 0), "green": (0, 160, 0)}


#: Confident learning doubts a label where another class is likelier than that class is on average among its own: of one
#: wrong label that may or may not be so.
WRONG = 8
TRAIN = 63 + WRONG


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in two splits; some labels are wrong, a picture is in both splits, one empty, one no picture."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 12)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                _picture(colour, rng).save(folder / split / name / f"{i:02d}.png")
    for i in range(WRONG):
        _picture(COLOURS["green"], rng).save(folder / f"train/red/wrong{i}.png")
    with Image.open(folder / "val/red/03.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "train/red/leak.jpg", quality=90)
    Image.new("RGB", (32, 32), (80, 80, 80)).save(folder / "train/green/empty.png")
    (folder / "train/green/broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return folder


@pytest.fixture(scope="module")
def found(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, Path]:
    out = tmp_path_factory.mktemp("found") / "doctor"
    return vz.data_doctor(photos, **MODEL, out=out), out


def _names(found: Findings, reason: str) -> list[str]:
    return ["/".join(Path(f.image).parts[-3:]) for f in found.of(reason)]


@pytest.mark.long
def test_what_was_planted_is_found(found: tuple[Findings, Path]) -> None:
    answer, _ = found
    assert _names(answer, "leak") == ["train/red/leak.jpg"]
    assert answer.of("leak")[0].text.startswith("mirrored as ")
    assert answer.of("leak")[0].other_split == "val"
    assert _names(answer, "unreadable") == ["train/green/broken.jpg"]
    wrong = _names(answer, "wrong label")
    assert wrong
    assert all(name.startswith("train/red/wrong") for name in wrong)
    assert answer.of("wrong label")[0].suggestion == "green"
    assert _names(answer, "empty") == ["train/green/empty.png"]
    assert answer.accuracy is not None
    assert answer.accuracy > 0.9
    assert answer.images == {"train": TRAIN, "val": 24}
    assert answer.findings[0].reason == "leak"


def test_what_is_written_is_read_again(found: tuple[Findings, Path]) -> None:
    answer, out = found
    clean, suggested = (open_data(out / f"{name}.csv") for name in ("clean", "suggested"))
    gone = {f.image for f in answer.findings if f.reason in ("leak", "unreadable", "wrong label", "twin", "empty")}
    assert clean.train is not None
    assert suggested.train is not None
    assert len(clean.train) == TRAIN - len(gone)
    assert clean.val is not None
    assert len(clean.val) == 24
    labels = {Path(suggested.train.sample_id(i)).name: int(t) for i, t in enumerate(suggested.train.targets)}
    first = Path(answer.of("wrong label")[0].image).name
    assert suggested.classes[labels[first]] == "green"
    assert json.loads((out / "findings.json").read_text())["images"] == {"train": TRAIN, "val": 24}
    page = (out / "doctor.html").read_text()
    assert first in page
    assert "data:image/webp" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_names_are_escaped_on_the_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("<script>alert(1)<", "b"):
        folder = tmp_path / "data" / name.replace("/", "_")
        folder.mkdir(parents=True)
        for i in range(4):
            _picture((90, 90, 0), rng).save(folder / f"<b>{i}.png")
        Image.new("RGB", (8, 8)).save(folder / "<img src=x>.png")
    vz.data_doctor(tmp_path / "data", **MODEL, out=tmp_path / "out")
    page = (tmp_path / "out/doctor.html").read_text()
    assert "<img src=x>" not in page
    assert "<script>alert" not in page


@pytest.mark.long
def test_a_second_look_reads_what_was_kept(
    photos: Path, found: tuple[Findings, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionzoo.inference.stream import Stream

    asked: list[int] = []
    run = Stream.run
    monkeypatch.setattr(Stream, "run", lambda self, count, *rest: asked.append(count) or run(self, count, *rest))
    again = vz.data_doctor(photos, **MODEL)
    assert again == found[0]
    assert asked == [TRAIN, TRAIN]  # the chunk with a broken file is read again, by pixels and by the model; val is not


@pytest.mark.long
def test_the_command(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", "vit_nano_patch4_32", "--weights", "random"]
    unlabelled = str(photos / "val/red")
    code = main(["data", "doctor", str(photos), *options, "--label-next", "3", "--unlabelled", unlabelled])
    said = capsys.readouterr().out
    assert code == 1  # something cannot be read
    assert said.index("the same picture in several splits: 1") < said.index("probably a wrong label")
    assert "label next: 3 images" in said
    folder = tmp_path / "runs" / f"doctor-{photos.name}"
    assert (folder / "doctor.html").is_file()
    assert len((folder / "label_next.csv").read_text().splitlines()) == 4


def test_without_weights_pixels_are_looked_at(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionzoo.curation import doctor

    def missing(*_: object) -> None:
        raise FileNotFoundError("the weights are not here")

    monkeypatch.setattr(doctor, "open_eye", missing)
    answer = vz.data_doctor(photos)
    with pytest.raises(ValueError, match="--label-next needs a model; give --model M"):
        vz.data_doctor(photos, label_next=3)
    assert answer.model == ""
    assert "only pixels were looked at, and no labels: the weights are not here" in answer.said
    assert _names(answer, "leak") == ["train/red/leak.jpg"]
    with pytest.raises(FileNotFoundError, match="the weights are not here"):
        vz.data_doctor(photos, model="vit_nano_patch4_32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_next": -1}, "label_next=-1 must be at least 0"),
        ({"label_next": 3, **MODEL}, r"--label-next 3: there are 0 images without a label; give --unlabelled"),
        ({"choice": "best"}, "choice='best' is unknown"),
        ({"model": "vit_nano_patch4_32"}, "name without weights"),
        ({"out": "taken"}, "holds other files; name a new folder"),
    ],
)
def test_mistakes_are_said_in_a_line(photos: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    if options.get("out"):
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken/mine.txt").write_text("mine")
        options = {"out": tmp_path / "taken"}
    with pytest.raises(ValueError, match=message):
        vz.data_doctor(photos, **options)  # type: ignore[arg-type]


def test_what_cannot_be_written_is_said_before_looking(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # whoever tests may write anywhere
    with pytest.raises(ValueError, match=r"nothing can be written in .*; name another folder"):
        vz.data_doctor(photos, **MODEL, out=tmp_path / "new/out")


def test_labels_are_not_judged_by_a_model_that_does_not_know_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "data" / "xy"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        _picture((80, 80, 80), rng).save(folder / f"{i}.png")
    (tmp_path / "pool").mkdir()
    _picture((80, 80, 80), rng).save(tmp_path / "pool/a.png")
    (tmp_path / "pool/b.png").write_bytes(b"no picture")
    answer = vz.data_doctor(tmp_path / "data", **MODEL, label_next=2, unlabelled=str(tmp_path / "pool"))
    assert answer.of("wrong label") == []
    assert answer.slices == ()
    assert "does not tell the classes apart" in answer.said[-2]
    assert [Path(name).name for name in answer.label_next] == ["a.png"]
    assert answer.said[-1].startswith("1 of the images to choose from cannot be read, the first is ")


def test_a_missing_folder_is_said() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        vz.data_doctor("nowhere")


def test_parquet_comes_back_as_parquet(tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    rows, labels = [], []
    for i in range(24):
        data = io.BytesIO()
        name = "red" if i % 2 else "green"
        _picture(COLOURS[name], rng).save(data, "PNG")
        rows.append({"bytes": data.getvalue(), "path": None})
        labels.append(name)
    rows.append(rows[0])
    labels.append("red")
    pq.write_table(pa.table({"image": rows, "label": labels}), tmp_path / "data.parquet")
    answer = vz.data_doctor(tmp_path / "data.parquet", **MODEL, out=tmp_path / "out")
    assert "with another label" in answer.of("twin")[0].text
    clean = open_data(tmp_path / "out/clean", val_fraction=0.0)
    assert clean.train is not None
    assert len(clean.train) < 25
    assert clean.classes == ("green", "red")


def test_masks() -> None:
    masks = np.zeros((6, 40, 40), bool)
    masks[0, 5:15, 5:15] = True
    masks[1, 5:15, 5:15] = True
    masks[3, 0:20, 20:30] = True
    masks[4] = True
    masks[5, 30, 30] = True
    faults = [
        (f.reason, f.text.split(" ")[0], f.part)
        for f in mask_faults(DenseObjects(masks, ["a", "b", "c", "d", "e", "f"]))
    ]
    assert sorted(faults) == [
        ("cut off", "d:", 3),
        ("empty mask", "c", 2),
        ("mask of everything", "e", 4),
        ("mask twice", "a", 1),
        ("tiny mask", "f", 5),
    ]


def test_data_with_masks_and_images_alone_are_looked_at(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(3):
        _picture((0, 60, 90), rng).save(tmp_path / f"data/images/{i}.png")
        mask = np.zeros((32, 32), np.uint8)
        mask[0:10, 4:20] = 1
        Image.fromarray(mask).save(tmp_path / f"data/masks/{i}.png")
    answer = vz.data_doctor(tmp_path / "data", **MODEL, out=tmp_path / "out")
    assert answer.kind == "objects"
    assert len(answer.of("cut off")) == 3
    assert {f.part for f in answer.of("cut off")} == {0}
    alone = vz.data_doctor(tmp_path / "data/images", **MODEL, out=tmp_path / "alone")
    assert alone.kind == "images"
    assert open_data(tmp_path / "alone/clean.csv", "images", val_fraction=0.0).train is not None


def _instances(folder: Path) -> None:
    """Four pictures: the last is the first again; of the second one mask is there twice and another is empty."""
    from visionzoo.data.sources.rle import RLE

    rng = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    images, annotations = [], []
    first = _picture((0, 60, 90), rng)
    for i in range(4):
        (first if i in (0, 3) else _picture((0, 60, 90), rng)).save(folder / f"train/{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 32, "width": 32})
        for k in range(4):
            mask = np.zeros((32, 32), bool)
            if (i, k) != (1, 2):
                place = 1 if (i, k) == (1, 3) else k
                mask[4:16, 6 * place + 1 : 6 * place + 5 + i] = True
            runs = RLE.of(np.ascontiguousarray(mask.T)).uncompressed()
            annotations.append({"id": 4 * i + k, "image_id": i, "category_id": 7 + k % 2, "segmentation": runs})
    categories = [{"id": 7, "name": "Ümläut"}, {"id": 8, "name": "b"}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances_train.json").write_text(json.dumps(record))


def test_masks_are_written_without_what_is_wrong(tmp_path: Path) -> None:
    _instances(tmp_path / "data")
    answer = vz.data_doctor(tmp_path / "data", **MODEL, out=tmp_path / "out")
    assert [(Path(f.image).name, f.part) for f in answer.of("mask twice")] == [("1.png", 3)]
    assert [(Path(f.image).name, f.part) for f in answer.of("empty mask")] == [("1.png", 2)]
    assert [Path(f.image).name for f in answer.of("twin")] == ["3.png"]
    before, after = (open_data(tmp_path / name, "objects", val_fraction=0.0).train for name in ("data", "out/clean"))
    assert isinstance(before, ObjectSource)
    assert isinstance(after, ObjectSource)
    assert after.categories == before.categories
    assert [Path(after.sample_id(i)).name for i in range(len(after))] == ["0.png", "1.png", "2.png"]
    for i, kept in enumerate(([0, 1, 2, 3], [0, 1], [0, 1, 2, 3])):
        old, new = before.objects(i), after.objects(i)
        assert new.names == tuple(old.names[k] for k in kept)
        for place, k in enumerate(kept):
            assert np.array_equal(new.mask(place), old.mask(k))


def test_captions_that_fit_another_image() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(60, 32))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = images + 0.1 * rng.normal(size=images.shape)
    texts[7] = images[20]
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    share, loss = caption_fit(images, texts, np.arange(60), 20.0)
    assert np.flatnonzero(share > 0.05).tolist() == [7]
    assert knows(share)
    assert not knows(caption_fit(images, rng.permutation(texts), np.arange(60))[0])
    logits = 20.0 * images @ texts.T  # few enough that all are compared with
    both = [scipy.special.log_softmax(logits, axis=axis).diagonal() for axis in (0, 1)]
    np.testing.assert_allclose(loss, -(both[0] + both[1]))


def test_drift_is_told_from_none() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(400, 16))
    p = [find_drift(before, rng.normal(size=(150, 16)), seed=s).p for s in range(5)]
    assert sum(value < 0.05 for value in p) <= 1
    moved = find_drift(before, rng.normal(size=(150, 16)) + 0.5)
    assert moved.drifted
    assert moved.times > 10
    with pytest.raises(ValueError, match="20 images or more on either side, not 400 and 5"):
        find_drift(before, before[:5])


@pytest.mark.parametrize("method", ["badge", "coreset", "random"])
def test_what_is_chosen_differs_and_is_unsure(method: str) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 8)) * 5
    features = np.repeat(centres, 50, 0) + rng.normal(size=(500, 8)) * 0.01
    sure = np.full((500, 2), [0.999, 0.001])
    sure[:50] = 0.5  # the first cluster is the one that is not known
    rows = choose_next(features, 10, probabilities=sure, labelled=centres[1:], method=method, seed=0)  # type: ignore[arg-type]
    assert len(set(rows.tolist())) == 10
    if method != "random":
        assert rows[0] < 50
    spread = choose_next(features, 10, method=method, seed=0)  # type: ignore[arg-type]
    if method != "random":
        assert len(set((spread // 50).tolist())) >= 8
    with pytest.raises(ValueError, match="501 images to label next are asked for, and there are 500"):
        choose_next(features, 501)
