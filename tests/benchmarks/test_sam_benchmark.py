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
    monkeypatch.delitem(sys.modules, "harness", raising=False)
    spec.loader.exec_module(module)

    def small(args):
        torch.manual_seed(0)
        model = shallow_sam(SIZE)
        shake(model, 0.02)
        return model

    monkeypatch.setattr(module, "build_model", small)
    return module


def _args(**changes):
    values = {"model": "vit_b", "image_size": SIZE, "picture": [100, 80], "points_per_side": 3, "device": "cpu"}
    return argparse.Namespace(**{**values, "rounds": 1, "warmup": 0, "check": True, "memory": False, **changes})


@pytest.mark.parametrize("job", ["encoder", "click", "everything"])
def test_every_job_agrees_and_is_timed(benchmark, job, capsys):
    cases = benchmark.measure(_args(), job)["cases"]
    assert list(cases)[:2] == [benchmark.THEIRS, benchmark.OURS]
    assert all(case["speedup"]["wall"]["median"] > 0 for case in cases.values())
    said = capsys.readouterr().out
    assert "differences: " in said
    assert "times as fast" in said


@pytest.mark.parametrize(
    ("job", "what"), [("encoder", "embedding"), ("click", "masks, scores"), ("everything", "masks")]
)
def test_networks_that_differ_are_not_timed(benchmark, job, what):
    ours = benchmark.build_model(None)
    theirs = benchmark.meta_twin(ours)
    with torch.no_grad():
        theirs.image_encoder.neck[3].bias.add_(1.0)
        theirs.mask_decoder.output_hypernetworks_mlps[1].layers[-1].bias.add_(0.2)
    with pytest.raises(SystemExit, match=f"do not agree in {what}"):
        benchmark.compare(ours, theirs, _args(), job)
