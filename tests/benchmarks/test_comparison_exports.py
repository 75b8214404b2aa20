"""ONNX files of a comparison: what is told of them is what the files do, and a refusal costs nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.tiny import TINY, records, run
from visionzoo.export.failure import NotTheSame

MORE = ["--recipes", "equal", "--corruptions", "none", "--seeds", "0,1", "--export.precisions", "int8,fp32"]


def ask_by_hand(file: Path, source: Any, positions: np.ndarray) -> np.ndarray:
    """(N,) int64: answers of a graph for images that PIL resizes, by ONNX Runtime itself."""
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pictures = [source.read(int(i)).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC) for i in positions]
    pixels = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
    return session.run(["logits"], {"images": pixels})[0].argmax(1)


@pytest.mark.long
def test_columns_of_files_are_what_the_files_do_and_a_refusal_keeps_the_rest(
    load: Any, here: list[tuple[str, str]], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, child = tmp_path / "out", load("comparison.child")
    work, exporting = child.work, load("comparison.exporting")
    export_plan, seen = exporting.export_plan, []

    def kept(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        found = work(kind, spec)
        if found.get("exported"):
            run_folder = Path(spec["folder"])
            shutil.copytree(run_folder.with_name("exported"), tmp_path / run_folder.parent.name, dirs_exist_ok=True)
        return found

    def refusing(plan: Any, folder: Path, *, precision: str, images: Any) -> Any:
        seen.append(images)
        if plan.backbone.endswith("lcnet_035"):
            folder.mkdir(parents=True)
            raise NotTheSame("it loses <points>") if precision == "int8" else KeyError(f"{folder}/model.onnx")
        return export_plan(plan, folder, precision=precision, images=images)

    monkeypatch.setattr(child, "work", kept)
    monkeypatch.setattr(exporting, "export_plan", refusing)
    assert run(load, out, *MORE) == 0

    data = [load("comparison.training").open_data("shapes:60", None, seed=seed) for seed in (0, 1)]
    assert len(seen) == 8
    for number, images in enumerate(seen):  # calibrated on what was learned from, and nothing else
        learned = data[number // 4].train_source  # a seed draws its own
        assert list(images.named) == ["train"]
        assert images.train.targets.tolist() == learned.targets.tolist()
        assert np.array_equal(np.asarray(images.train.read(7)), np.asarray(learned.read(7)))

    trained = {(r["about"]["model"], r["about"]["seed"], r["about"]["fraction"]): r for r in records(out, "train")}
    assert len(trained) == 8
    assert all("exported" not in r["result"] for key, r in trained.items() if key[2] == 0.5)
    changes, sizes = [], []
    for seed in (0, 1):
        result = trained["vit_nano_patch4_32", seed, 1.0]["result"]
        key = f"train-vit_nano_patch4_32-equal-seed{seed}-1"
        theirs = load("comparison.answers").read_answers(out / "pieces" / f"{key}.parquet")
        assert list(result["exported"]) == ["fp32", "int8"]
        for precision, found in result["exported"].items():
            file = tmp_path / key / precision / "model.onnx"
            answers = ask_by_hand(file, data[seed].val_source, theirs.position)
            assert found["bytes"] == file.stat().st_size
            assert found["accuracy"] == pytest.approx(float((answers == theirs.label).mean()))
            assert found["same_answers"] == pytest.approx(float((answers == theirs.answer).mean()))
            assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"]
            low, middle, high = (found["seconds"][name] for name in ("low", "median", "high"))
            assert low <= middle <= high
            assert found["images_per_second"] == pytest.approx(2 / middle)  # of --speed_batch
        assert result["exported"]["fp32"]["same_answers"] == 1
        assert "on 60 labelled pictures" in " ".join(result["exported"]["int8"]["notes"])
        changes.append(result["exported"]["int8"]["accuracy"] - result["accuracy"])
        sizes.append(result["exported"]["int8"]["bytes"] / 1e6)

    text = (out / "results.md").read_text()
    table = text.partition("## Exported\n")[2].partition("\n## ")[0]
    (row,) = [line for line in table.splitlines() if line.startswith("| vit_nano")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["vit_nano_patch4_32", "ViT", "equal"]
    assert cells[8] == f"{np.mean(sizes):.2f} ± {np.std(sizes, ddof=1):.2f}"
    assert cells[13] == f"{100 * np.mean(changes):+.1f} ± {100 * np.std(changes, ddof=1):.1f}"
    assert "| lcnet_035 | CNN | equal |" + " - |" * 12 in text
    assert (
        "- timm/lcnet_035, equal recipe, seed 0, 100 % of the images: not exported as int8 (it loses <points>)" in text
    )
    assert "not exported as fp32 (KeyError: 'fp32/model.onnx')" in text
    page = (out / "index.html").read_text()
    assert "it loses &lt;points&gt;" in page
    assert "it loses <points>" not in page
    assert str(tmp_path) not in page + text + (out / "results.json").read_text()

    here.clear()
    assert run(load, out, *MORE) == 0
    assert here == []
    capsys.readouterr()
    for other, said in ((MORE[:-2], "is None"), ([*MORE[:-1], "int8"], "is ['int8']")):
        assert run(load, out, *other) == 2
        assert f"export.precisions was ['fp32', 'int8'] and {said}" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["fp16", "int8,fp32,bf16"])
def test_other_precisions_are_refused(load: Any, here: list[Any], tmp_path: Path, capsys: Any, value: str) -> None:
    out = tmp_path / "out"
    assert run(load, out, "--export.precisions", value) == 2
    wrong = value.rpartition(",")[2]
    error = capsys.readouterr().err
    assert f"export.precisions={wrong} must be fp32 or int8, or both with a comma" in error
    assert error.count("\n") == 1
    assert here == []
    assert not out.exists()


def test_what_an_export_needs_is_said_first(
    load: Any, here: list[Any], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionzoo.export import failure

    monkeypatch.setattr(failure, "find_spec", lambda name: None if name == "onnxruntime" else name)
    out = tmp_path / "out"
    assert run(load, out, "--export.precisions", "fp32") == 2
    assert "exporting needs onnxruntime: pip install 'visionzoo[export]'" in capsys.readouterr().err
    assert here == []
    assert not out.exists()


def test_settings_of_before_go_on_and_files_do_not_join_later(load: Any, tmp_path: Path, here: list[Any]) -> None:
    options, runner = load("comparison.options"), load("comparison.runner")

    def settings(*more: str) -> dict[str, Any]:
        runner.Comparison(options.check(options.parse([*TINY, "--out", str(tmp_path), *more])))
        return json.loads((tmp_path / "settings.json").read_text())

    before = settings()
    assert not any(key.startswith("export") for key in before)
    assert settings() == before
    with pytest.raises(ValueError, match=r"export.precisions was None and is \['fp32'\]. Give another --out"):
        settings("--export.precisions", "fp32")
