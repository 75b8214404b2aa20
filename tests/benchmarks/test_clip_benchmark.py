"""The benchmark of CLIP on two blocks: both sides do the same work, and the loss in chunks grows with the batch."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("clip_benchmark", FOLDER / "clip.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.delitem(sys.modules, "harness", raising=False)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "IMAGENET_TEMPLATES", ("a photo of a {}.", "my own {} in the far mountains."))
    classifier = module.vz.ZeroShotClassifier
    monkeypatch.setattr(
        module.vz, "ZeroShotClassifier", lambda m, x, _: classifier(m, x, module.IMAGENET_TEMPLATES), raising=False
    )
    return module


def _args(**changes):
    values = {"model": "ViT-B-32", "depth": 1, "labels": 3, "batch": 2, "path": None, "device": "cpu", "check": True}
    return argparse.Namespace(**{**values, "rounds": 1, "warmup": 0, **changes})


@pytest.mark.parametrize("job", ["classifier", "images", "training"])
def test_both_sides_do_the_same(benchmark, job, capsys):
    cases = benchmark.build(_args(), job, "fp32", [benchmark.OURS, benchmark.THEIRS])
    assert "differences: " in capsys.readouterr().out
    ours, theirs = (run() for run in cases.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_measure_gives_ratios(benchmark, capsys):
    record = benchmark.measure(_args(), "training", "bf16")
    assert record["cases"][benchmark.OURS]["speedup"]["wall"]["median"] > 0
    assert record["cases"][benchmark.OURS]["share_of_peak"] > 0
    assert "ViT-B-32, training step, batch 2, made-up captions, bf16" in capsys.readouterr().out


def test_networks_that_differ_are_not_timed(benchmark):
    ours, theirs = benchmark.build_models(_args())
    with torch.no_grad():
        theirs.text_projection.mul_(-1)
    ids = ours.tokenizer(["a dog", "a red car"])
    models = {benchmark.OURS: ours, benchmark.THEIRS: theirs}
    for job, what in (("classifier", "text embeddings"), ("training", "loss, gradient")):
        with pytest.raises(SystemExit, match=f"do not agree in {what}"):
            benchmark.compare(models, job, torch.randn(2, 3, 224, 224), ids, ["dog", "cat"])


def test_captions_and_labels(benchmark, tmp_path):
    assert len(set(benchmark.labels(1000))) == 1000
    lines = [json.dumps({"image": "x", "captions": [f"{i} a", f"{i} b"]}) for i in range(3)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert benchmark.captions(_args(path=str(tmp_path), batch=3)) == ["0 a", "1 b", "2 a"]
    assert len(set(benchmark.captions(_args(batch=8)))) == 8


@pytest.mark.slow
def test_memory_of_the_loss_in_chunks(benchmark, capsys):
    found = benchmark.measure_memory(argparse.Namespace(pairs=[8192], device="cpu"))
    assert found["full matrix"]["8192"] > 0.5  # two matrices at least, of 256 MiB each
    assert 0 < found["chunked"]["8192"] < 0.4 * found["full matrix"]["8192"]
    assert "8,192" in capsys.readouterr().out
