"""Every task leaves a page; that of a run which goes on tells of all its epochs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from visionzoo import report
from visionzoo.cli.train import run
from visionzoo.runs import RunFolder
from visionzoo.runs.answers import read_answers
from visionzoo.runs.gallery import read_gallery

pytestmark = [pytest.mark.usefixtures("block_network"), pytest.mark.filterwarnings("ignore")]

SHARED = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--data.num_workers", "0"]
DIGITS = ["--data.path", "digits", "--data.train_limit", "64", "--data.batch_size", "32", "--model.image_size", "16"]
NANO = ["--model.backbone", "vit_nano_patch4_32"]


def fit(task: str, folder: Path, *options: str) -> RunFolder:
    assert run([task, "fit", *SHARED, *options, "--run_dir", str(folder)]) == 0
    return RunFolder(folder)


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two epochs, and then, resumed, a third."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    fit("classify", folder, *DIGITS, *NANO, "--trainer.max_epochs", "2")
    assert run(["classify", "fit", "--resume", str(folder), "--trainer.max_epochs", "3"]) == 0
    return RunFolder(folder)


def page_of(folder: RunFolder) -> str:
    text = folder.report.read_text(encoding="utf-8")
    assert 'class="warning"' not in text
    assert "parts of this page are missing" not in text
    report.write_report(folder)
    assert folder.report.read_text(encoding="utf-8") == text  # made anew it is the same
    return text


@pytest.mark.long
def test_a_resumed_run_keeps_its_record(classified: RunFolder) -> None:
    found = read_answers(classified.answers)
    assert found.about.validations == 3
    assert found.about.images == 359 == len(found.rows["label"])
    assert max(found.rows["times_right"]) == 3
    assert set(found.rows["first_right"]) <= {0, 1, 2, 3}
    assert [name for name in found.rows["sample"] if not name.startswith("digits:")] == []
    told = json.loads(classified.results.read_text())
    right = sum(count for label, answer, count in found.about.matrix if label == answer)
    assert right / 359 == pytest.approx(told["scores"]["accuracy"])
    page = page_of(classified)
    assert "Confusion matrix" in page
    assert "the last of 2, since it was resumed" in page


def test_masked_images(tmp_path: Path) -> None:
    folder = fit("mae", tmp_path, *DIGITS, *NANO, "--trainer.max_epochs", "2", "--model.sheet_every_n_steps", "1")
    page = page_of(folder)
    assert re.findall(r'<p class="frame-name">(.*?)</p>', page) == ["step 1", "step 2", "step 3", "step 4"]
    assert len(read_gallery(folder.path / "reconstruction.parquet").pictures) == 8
    for file in folder.sheets.glob("*.parquet"):
        file.unlink()
    page = report.write_report(folder).read_text()  # as runs of earlier versions are
    assert page.count('alt="sheet of step') == 4


def test_retrievals_and_zero_shot(tmp_path: Path) -> None:
    small = ["--model.backbone", "swin_nano_patch2_window4_32", "--model.text", "nano", "--model.context_length", "16"]
    data = ["--data.path", "shapes:40", "--data.holdout", "diagonal", "--data.batch_size", "20"]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "2"]
    page = page_of(fit("clip", tmp_path, *small, *data, *short))
    assert "Zero-shot confusion matrix" in page
    assert "From image to text" in page
    assert "the right image has place" in page
    about = read_answers(tmp_path / "answers.parquet").about
    assert about.temperature is None
    assert about.images == 40
    gallery = read_gallery(tmp_path / "retrieval.parquet")
    assert [name for name, _ in gallery.about.curves] == ["image to text", "text to image"]
    shares = json.loads((tmp_path / "results.json").read_text())["scores"]
    for name, points in gallery.about.curves:
        assert points[0][1] == pytest.approx(100 * shares[f"{name.replace(' ', '_')}_r1"])


@pytest.mark.long
def test_masks_by_iou(tmp_path: Path) -> None:
    size = ["--model.image_size", "32", "--model.embedding_stride", "8", "--model.decoder_dim", "32"]
    data = ["--data.path", "shapes:8", "--data.batch_size", "4"]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "3", "--model.clicks", "1"]
    folder = fit(
        "segment", tmp_path, *NANO, *size, *data, *short, "--model.encoder", "full", "--model.mask_rounds", "0"
    )
    page = page_of(folder)
    gallery = read_gallery(tmp_path / "masks.parquet")
    assert {p.group for p in gallery.pictures} in (
        {"By IoU after one click, the worst first"},
        {"Worst after one click", "In the middle", "Best after one click"},
    )
    scores = json.loads(folder.results.read_text())["scores"]
    curves = dict(gallery.about.curves)
    for name, key in (("1 click", "iou_1"), ("box", "iou_box")):
        mean = sum(share for _, share in curves[name][1:]) / 2000
        assert mean == pytest.approx(scores[key], abs=0.051)  # of steps of 0.05
    assert "Objects with at least this IoU" in page


def test_a_page_that_cannot_be_drawn_does_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: RunFolder) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(report, "write_report", broken)
    with pytest.warns(UserWarning, match=r"could not draw .*a fault of ours.*`visionzoo report .*` tries again"):
        folder = fit("classify", tmp_path, *DIGITS, *NANO, "--trainer.max_epochs", "1")
    assert folder.model.is_file()
    assert not folder.report.exists()


def test_a_run_without_held_out_images_has_a_page_too(tmp_path: Path) -> None:
    folder = fit("classify", tmp_path, *DIGITS, *NANO, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")
    page = folder.report.read_text()
    assert "classify · vit_nano_patch4_32 · digits" in page
    assert "has no results.json and no answers.parquet" in page
