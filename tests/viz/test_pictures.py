"""Pictures are looked at by people; what a program can check of them is checked here."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from visionzoo.metrics.classification import class_scores
from visionzoo.viz import confusion_matrix, contact_sheet, learning_curves, mistakes_sheet, per_class_csv
from visionzoo.viz.curves import read_metrics


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they are saved, laid out."""
    figures: list[Figure] = []

    def keep(figure: Figure, out: Path, *, tight: bool = False) -> Path:
        figure.canvas.draw()
        figures.append(figure)
        return Path(out)

    for module in ("visionzoo.viz.confusion", "visionzoo.viz.curves"):
        monkeypatch.setattr(sys.modules[module], "save_figure", keep)
    return figures


def overlaps(texts: list[Any]) -> list[tuple[str, str]]:
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_visible() and t.get_text()]
    return [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[i + 1 :] if x.shrunk(0.98, 0.98).overlaps(y)]


def write(path: Path, rows: list[dict[str, float]]) -> Path:
    """As Lightning's CSVLogger does: every column in every row, empty where it was not logged."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


# confusion matrix


@pytest.mark.parametrize("k", [2, 10, 25, 26, 60, 61, 301])
def test_confusion_labels_do_not_overlap(k: int, drawn: list[Figure]) -> None:
    names = [f"a rather long class name of $ {i}" for i in range(k)]
    confusion_matrix(np.eye(k, dtype=int) * 12345 + np.eye(k, k, 1, dtype=int) * 678, names, "unused.png")
    axes = drawn[0].axes[0]
    assert overlaps(axes.get_xticklabels()) == []
    assert overlaps(axes.get_yticklabels()) == []
    counts = [t for t in axes.texts if t.get_text()]
    assert overlaps(counts) == []
    assert len(counts) == (2 * k - 1 if k <= 25 else 0)
    listed = [t for child in axes.child_axes for t in child.texts]
    assert overlaps(listed) == []
    assert bool(listed) == (k > 25)


def test_confusion_colours_rows_by_their_own_total(drawn: list[Figure]) -> None:
    confusion_matrix(torch.tensor([[90, 10, 0], [1, 0, 0], [0, 0, 0]]), ["a", "b", "c"], "unused.png")
    shares = drawn[0].axes[0].images[0].get_array()
    np.testing.assert_allclose(shares[:2], [[0.9, 0.1, 0], [1, 0, 0]])
    assert shares.mask[2].all()  # a class without images has no shares, and is not drawn as a row of zeros
    assert not shares.mask[:2].any()
    assert drawn[0].axes[0].get_title(loc="left") == "Confusion matrix: 89.11% of 101 right"


def test_single_mistakes_of_many_classes_are_seen(drawn: list[Figure]) -> None:
    counts = np.eye(400, dtype=int)
    counts[10, 300] = 1
    confusion_matrix(counts, [str(i) for i in range(400)], "unused.png")
    shares = drawn[0].axes[0].images[0].get_array()
    assert (shares[9:12, 299:302] == 0.5).all()
    assert shares[8, 300] == 0
    first = drawn[0].axes[0].child_axes[-1].texts[0].get_text()
    assert first == "10 → 300"


def test_confusion_file_and_errors(tmp_path: Path) -> None:
    out = confusion_matrix(np.zeros((3, 3), dtype=int), ["a", "b", "c"], tmp_path / "new" / "c.png")
    assert min(Image.open(out).size) > 300
    with pytest.raises(ValueError, match=r"shape \(3, 3\) does not fit 2 class names"):
        confusion_matrix(np.zeros((3, 3)), ["a", "b"], tmp_path / "d.png")
    assert not (tmp_path / "d.png").exists()


# learning curves


def test_ragged_rows_and_resumed_steps(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [
        {"epoch": 0, "step": 0, "train/loss": 2.0, "lr": 1e-3},
        {"epoch": 0, "step": 1, "train/loss": 1.5},
        {"epoch": 0, "step": 1, "val/loss": 1.4, "val/acc": 0.5},
        {"epoch": 1, "step": 2, "train/loss": math.nan},
        {"epoch": 1, "step": 1, "train/loss": 1.25},  # resumed: step 1 was run again
        {"epoch": 1, "step": 3, "train/loss": math.inf},
    ]
    series = {s.name: s for s in read_metrics(write(tmp_path / "m.csv", rows))}
    assert series["train/loss"].steps.tolist() == [0, 1]
    assert series["train/loss"].values.tolist() == [2.0, 1.25]
    assert series["val/acc"].values.tolist() == [0.5]
    assert set(series) == {"train/loss", "lr", "val/loss", "val/acc"}


@pytest.mark.parametrize("stem", ["{}/{}", "{}_{}"])
def test_panels_by_kind(tmp_path: Path, drawn: list[Figure], stem: str) -> None:
    rows: list[dict[str, float]] = []
    for step in range(5):
        logged = {stem.format(a, b): 1.0 + step for a in ("train", "val") for b in ("loss", "acc", "logit_scale")}
        rates = {f"lr-AdamW/pg{i}": 0.1 for i in range(12)}
        epoch = {stem.format("train", "aux_loss_step"): 1.0, stem.format("train", "aux_loss_epoch"): 1.0}
        rows.append({"step": step, **logged, **rates, **epoch})
    learning_curves(write(tmp_path / "m.csv", rows), "unused.png", title="cost in $")
    titles = [a.get_title(loc="left") for a in drawn[0].axes if a.axison]
    assert titles == ["Loss", "Accuracy", "logit_scale", "Learning rate"]
    legends = [[t.get_text() for t in a.get_legend().get_texts()] for a in drawn[0].axes if a.axison]
    assert len(legends[0]) == 3  # train, auxiliary (once, not by step and by epoch), val
    assert legends[0][-1] == stem.format("val", "loss") + " (best 1 at step 0)"
    assert legends[1][-1] == stem.format("val", "acc") + " (best 5 at step 4)"
    assert legends[3] == ["12 parameter groups"]


def test_long_noisy_curves_are_smoothed_and_spikes_cut(tmp_path: Path, drawn: list[Figure]) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 1000)
    rows = [{"step": i, "train/loss": 1 + noise[i] + (500 if i < 3 else 0)} for i in range(1000)]
    learning_curves(write(tmp_path / "m.csv", rows), "unused.png")
    axes = drawn[0].axes[0]
    raw, smooth = (line.get_ydata()[100:-100] for line in axes.lines)
    assert smooth.std() < raw.std() / 3
    assert axes.get_ylim()[1] < 3
    assert axes.texts[0].get_text() == "highest value 501 not shown"


def test_training_values_are_smoothed_from_a_few_points_on(tmp_path: Path, drawn: list[Figure]) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 30)
    rows = [{"step": i, "train/loss": 1 + noise[i], "val/loss": 1 + noise[i]} for i in range(30)]
    learning_curves(write(tmp_path / "m.csv", rows), "unused.png")
    raw, smooth, held_out = (line.get_ydata() for line in drawn[0].axes[0].lines)
    assert smooth.std() < 0.8 * raw.std()
    assert held_out.tolist() == pytest.approx((1 + noise).tolist())


def test_each_direction_of_retrieval_has_a_panel(tmp_path: Path, drawn: list[Figure]) -> None:
    names = [f"val/{d}_r{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)] + ["val/recall_mean"]
    rows = [{"step": i, **dict.fromkeys(names, 0.1 * i)} for i in range(3)]
    learning_curves(write(tmp_path / "m.csv", rows), "unused.png")
    lines = {a.get_title(loc="left"): len(a.lines) for a in drawn[0].axes if a.axison}
    assert lines == {"Score": 1, "Recall, image to text": 3, "Recall, text to image": 3}


def test_one_epoch_can_be_read(tmp_path: Path, drawn: list[Figure]) -> None:
    rows: list[dict[str, float]] = [{"step": 7, "train/loss": 1.5, "lr": 0.1}, {"step": 7, "val/loss": 1.25}]
    learning_curves(write(tmp_path / "m.csv", rows), "unused.png")
    loss, rate = (a for a in drawn[0].axes if a.axison)
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["train/loss 1.5", "val/loss 1.25"]
    assert all(line.get_markersize() >= 6 and line.get_marker() != "" for line in (*loss.lines, *rate.lines))
    assert [tick for tick in loss.get_xticks() if 6 < tick < 8] == [7]
    window, box = loss.get_window_extent(), loss.get_legend().get_window_extent()
    assert not window.overlaps(box)


def test_nothing_logged_yet_draws_nothing(tmp_path: Path) -> None:
    assert learning_curves(write(tmp_path / "m.csv", [{"epoch": 0, "step": 0}]), tmp_path / "c.png") is None
    (tmp_path / "empty.csv").write_text("")
    assert learning_curves(tmp_path / "empty.csv", tmp_path / "c.png") is None
    assert not (tmp_path / "c.png").exists()
    with pytest.raises(FileNotFoundError):
        learning_curves(tmp_path / "none.csv", tmp_path / "c.png")
    with pytest.raises(ValueError, match="no column 'step'"):
        learning_curves(write(tmp_path / "b.csv", [{"loss": 1.0}]), tmp_path / "c.png")


def test_curves_file(tmp_path: Path) -> None:
    rows = [{"step": 0, "train/loss": 1.0}]
    out = learning_curves(write(tmp_path / "m.csv", rows), tmp_path / "c.png")
    assert out is not None
    assert Image.open(out).size == (550, 396)


# sheets and tables


def test_contact_sheet_puts_each_image_in_its_place(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [np.full((5, 7, 3), c, dtype=np.uint8) for c in colours]
    out = contact_sheet(images, [["a"]] * 3, tmp_path / "s.png", columns=2, tile=100)
    sheet = Image.open(out)
    pixels = np.asarray(sheet)
    centres = []
    for colour in colours:
        ys, xs = np.nonzero((pixels == colour).all(-1))
        assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == (98, 70)  # 7 x 5 enlarged by a whole factor, aspect kept
        centres.append((xs.mean(), ys.mean()))
    assert centres[0][1] == centres[1][1] < centres[2][1]
    assert centres[0][0] == centres[2][0] < centres[1][0]


def test_contact_sheet_takes_what_images_come_as(tmp_path: Path) -> None:
    images = [
        np.zeros((300, 40), np.uint8),
        np.zeros((30, 400, 1), np.uint8),
        Image.new("RGBA", (1, 1)),
        Image.new("CMYK", (9, 2000)),
    ]
    contact_sheet(images, [[], ["x" * 500], ["猫 Zürich"], ["a", "b"]], tmp_path / "s.png", title="t", note="n")
    with pytest.raises(ValueError, match="uint8, not"):
        contact_sheet([np.zeros((4, 4, 3), np.float32)], [[]], tmp_path / "s.png")
    with pytest.raises(ValueError, match="1 images need as many captions, not 2"):
        contact_sheet([images[0]], [[], []], tmp_path / "s.png")


def test_mistakes_sheet(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    mistakes_sheet([(image, "cat", "dog", 0.987), (image, "cat\nfelis", "d" * 99, 1.0)], tmp_path / "m.png")
    none = mistakes_sheet([], tmp_path / "none.png")
    assert Image.open(tmp_path / "m.png").size[1] > Image.open(none).size[1] > 20


def test_per_class_csv(tmp_path: Path) -> None:
    scores = class_scores(torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]]))
    out = per_class_csv(scores, ["a, b", "c", "d"], tmp_path / "per_class.csv")
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["class", "precision", "recall", "f1", "support"],
        ["a, b", "0.600000", "0.750000", "0.666667", "4"],
        ["c", "0.000000", "", "0.000000", "0"],
        ["d", "1.000000", "0.500000", "0.666667", "4"],
    ]
    with pytest.raises(ValueError, match="2 class names do not fit 3"):
        per_class_csv(scores, ["a", "b"], out)


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; import visionzoo.viz as v; assert not {'matplotlib', 'torch'} & set(sys.modules);"
        f"v.confusion_matrix(np.eye(2, dtype=int), ['a', 'b'], {str(tmp_path / 'a.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
