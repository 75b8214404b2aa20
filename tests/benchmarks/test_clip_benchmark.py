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
    for name in ("harness", "peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VARIED_TEMPLATES", ("a photo of a {}.", "my own {} in the far mountains."))
    classifier = module.vz.ZeroShotClassifier
    monkeypatch.setattr(
        module.vz, "ZeroShotClassifier", lambda m, x, _: classifier(m, x, module.VARIED_TEMPLATES), raising=False
    )
    return module


def _args(**changes):
    values = {"model": "ViT-B-32", "depth": 1, "labels": 3, "batch": 2, "path": None, "device": "cpu", "check": True}
    values["peers"] = ["open_clip", "transformers"]
    return argparse.Namespace(**{**values, "rounds": 1, "warmup": 0, **changes})


@pytest.mark.long
@pytest.mark.parametrize("job", ["classifier", "images", "texts", "training"])
def test_all_sides_do_the_same(benchmark, job, capsys):
    cases, absent = benchmark.build(_args(), job, "fp32")
    if job == "classifier":
        assert absent == {"transformers": "builds no classifier from labels and templates"}
    else:
        assert absent == {}
        assert list(cases) == ["visionzoo", "open_clip", "transformers"]
    assert "differences from open_clip: " in capsys.readouterr().out
    ours, *others = (run() for run in cases.values())
    for theirs in others:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_without_peers_ours_is_timed_and_the_record_says_so(benchmark, monkeypatch):
    def absent(package):
        raise benchmark.Absent("not installed")

    monkeypatch.setitem(benchmark.those_there.__globals__, "installed", absent)
    row = benchmark.measure(_args(), "texts", "fp32")
    assert list(row["cases"]) == ["visionzoo"]
    assert row["absent"] == {"open_clip": "not installed", "transformers": "not installed"}


@pytest.mark.long
def test_measure_gives_ratios(benchmark, capsys):
    record = benchmark.measure(_args(), "training", "fp32")  # bf16 takes minutes where a CPU only emulates it
    assert record["cases"][benchmark.OURS]["speedup"]["wall"]["median"] > 0
    assert record["cases"][benchmark.OURS]["share_of_peak"] > 0
    assert "ViT-B-32, training step, batch 2, made-up captions, fp32" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("peer", ["open_clip", "transformers"])
def test_networks_that_differ_are_not_timed(benchmark, peer):
    ours, twins, _ = benchmark.build_models(_args(), "training")
    with torch.no_grad():
        for name in ("text_projection", "text_projection.weight"):
            if name in dict(twins[peer].named_parameters()):
                twins[peer].get_parameter(name).mul_(-1)
    ids = ours.tokenizer(["a dog", "a red car"])
    models = {benchmark.OURS: ours, peer: twins[peer]}
    for job, what in (("texts", "text embeddings"), ("training", "loss, gradient")):
        with pytest.raises(SystemExit, match=f"{peer} does not agree in {what}"):
            benchmark.compare(models, job, torch.randn(2, 3, 224, 224), ids, ["dog", "cat"])


def test_captions_and_labels(benchmark, tmp_path):
    assert len(set(benchmark.labels(1000))) == 1000
    lines = [json.dumps({"image": "x", "captions": [f"{i} a", f"{i} b"]}) for i in range(3)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert benchmark.captions(_args(path=str(tmp_path), batch=3)) == ["0 a", "1 b", "2 a"]
    assert len(set(benchmark.captions(_args(batch=8)))) == 8


@pytest.mark.slow
def test_memory_of_the_loss_in_chunks(benchmark, capsys):
    found = benchmark.measure_memory(argparse.Namespace(device="cpu"), 8192)["added_gib"]
    assert found["full matrix"] > 0.5  # two matrices at least, of 256 MiB each
    assert 0 < found["chunked"] < 0.4 * found["full matrix"]
    assert "8,192" in capsys.readouterr().out
