"""The benchmark of SAM at a small size: what it times gives the same answers on both sides."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from sam_twins import shake, shallow_sam

FOLDER = Path(__file__).parents[2] / "benchmarks"
SIZE = 128


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("sam_benchmark", FOLDER / "sam.py")
    module = importlib.util.module_from_spec(spec)
    for name in ("harness", "peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec.loader.exec_module(module)

    def small(args):
        torch.manual_seed(0)
        model = shallow_sam(SIZE)
        shake(model, 0.02)
        return model

    monkeypatch.setattr(module, "build_model", small)
    return module


def _args(benchmark, **changes):
    values = {"model": "vit_b", "image_size": SIZE, "picture": [128, 100], "points_per_side": 3, "device": "cpu"}
    values |= {"peers": list(benchmark.PEERS), "rounds": 1, "warmup": 0, "check": True, "memory": False}
    return argparse.Namespace(**{**values, **changes})


@pytest.mark.parametrize("job", ["encoder", "click", "everything"])
def test_every_job_agrees_and_is_timed(benchmark, job, capsys):
    row = benchmark.measure(_args(benchmark), job)
    assert list(row["cases"])[:3] == ["visionzoo", "segment-anything", "transformers"]
    assert row["absent"] == {}
    assert row["reference"] == "segment-anything"
    assert all(case["speedup"]["wall"]["median"] > 0 for case in row["cases"].values())
    said = capsys.readouterr().out
    assert said.count("differences from ") == 2
    assert "times as fast" in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("job", "what"), [("encoder", "embedding"), ("click", "masks, scores"), ("everything", "masks")]
)
@pytest.mark.parametrize("peer", ["segment-anything", "transformers"])
def test_networks_that_differ_are_not_timed(benchmark, peer, job, what):
    ours, other = benchmark.build_model(None), benchmark.build_model(None)
    with torch.no_grad():
        other.image_encoder.neck[3].bias.add_(1.0)
        other.mask_decoder.output_hypernetworks_mlps[1].layers[-1].bias.add_(0.2)
    models = {benchmark.OURS: ours, peer: benchmark.PEERS[peer](other)}
    with pytest.raises(SystemExit, match=f"{peer} does not agree in {what}"):
        benchmark.compare(models, _args(benchmark), job)


def test_without_peers_ours_is_timed_and_the_record_says_so(benchmark, monkeypatch, capsys):
    def absent(package):
        raise benchmark.those_there.__globals__["Absent"]("not installed")

    monkeypatch.setitem(benchmark.those_there.__globals__, "installed", absent)
    row = benchmark.measure(_args(benchmark, warmup=1), "click")
    assert list(row["cases"]) == ["visionzoo"]
    assert row["absent"] == {"segment-anything": "not installed", "transformers": "not installed"}
    assert "transformers is left out: not installed" in capsys.readouterr().out
