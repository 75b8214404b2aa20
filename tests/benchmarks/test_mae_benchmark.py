"""The benchmark of a MAE step on a tiny model: what it times is the same on all sides."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import visionzoo as vz

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("mae_benchmark", FOLDER / "mae.py")
    module = importlib.util.module_from_spec(spec)
    for name in ("harness", "peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec.loader.exec_module(module)
    create = vz.create_mae
    small = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    monkeypatch.setattr(module.vz, "create_mae", lambda name: create("vit_nano_patch4_32", **small), raising=False)
    return module


def _args(**changes):
    values = {"model": "nano", "batch": 4, "device": "cpu", "optimizer": True, "check": True, "compile": False}
    return argparse.Namespace(**{**values, "rounds": 1, "warmup": 0, "memory": False, **changes})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_cases_take_the_same_steps(benchmark, precision, capsys):
    names = [benchmark.OURS, benchmark.WHOLE, benchmark.THEIRS]
    cases, absent = benchmark.build(_args(optimizer=False), precision, names)
    assert absent == {}
    assert "differences: loss" in capsys.readouterr().out
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    first = {name: run().item() for name, run in cases.items()}
    for name, loss in first.items():
        assert loss == pytest.approx(first[benchmark.THEIRS], abs=tolerance), name


def test_measure_gives_ratios_and_share_of_peak(benchmark, capsys):
    record = benchmark.measure(_args(), "fp32")
    ours = record["cases"][benchmark.OURS]
    assert ours["speedup"]["wall"]["median"] > 0
    assert ours["gflop"] < record["cases"][benchmark.WHOLE]["gflop"] < record["cases"][benchmark.THEIRS]["gflop"]
    assert "times as fast" in capsys.readouterr().out


def test_networks_that_differ_are_not_timed(benchmark, monkeypatch):
    model = vz.create_mae("any")
    twin = benchmark.mae(model)
    with torch.no_grad():
        twin.decoder.decoder_pred.bias.add_(1.0)
    with pytest.raises(SystemExit, match="do not agree in loss, prediction"):
        benchmark.compare(model, twin, torch.randn(2, 3, 32, 32), torch.rand(2, 64))


def test_without_transformers_ours_is_timed_and_the_record_says_so(benchmark, monkeypatch):
    def absent(package):
        raise benchmark.those_there.__globals__["Absent"]("not installed")

    monkeypatch.setitem(benchmark.those_there.__globals__, "installed", absent)
    row = benchmark.measure(_args(), "fp32")
    assert list(row["cases"]) == [benchmark.OURS, benchmark.WHOLE]
    assert row["absent"] == {"transformers": "not installed"}


def test_a_case_that_runs_out_of_memory_is_left_out_and_the_record_says_so(benchmark, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    build = benchmark.build
    monkeypatch.setattr(benchmark, "build", lambda *x: (build(*x)[0] | {benchmark.THEIRS: full}, {}))
    row = benchmark.measure(_args(), "fp32")
    assert row["absent"] == {"transformers": "out of memory"}
    assert row["reference"] == benchmark.WHOLE
