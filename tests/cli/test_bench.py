"""``visionzoo bench``: what it prints, what it writes, and what it does when memory is short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import visionzoo as vz
from visionzoo.cli.commands import bench
from visionzoo.cli.main import main
from visionzoo.inference import speed
from visionzoo.inference.speed import Case, OutOfMemory, Speed, measure
from visionzoo.models.bundle import ModelConfig, save_bundle

TINY = "vit_nano_patch4_32"


def machine(per_image: int, budget: int) -> tuple[object, list[int]]:
    """A machine on which a process takes 1,000 bytes and ``per_image`` for each image."""
    tried: list[int] = []

    def pretend(case: Case) -> Speed:
        tried.append(case.batch)
        peak = 1000 + per_image * case.batch
        if peak > budget:
            raise OutOfMemory(f"{peak} of {budget}")
        return Speed(
            image_size=(32, 32), params=7, seconds=0.5, spread=(0.4, 0.8), cpu=(0.4, 0.5, 0.8), peak=peak, before=1000,
            budget=budget, latency=(0.1, 0.2),
        )  # fmt: skip

    return pretend, tried


@pytest.mark.parametrize(
    ("per_image", "budget", "most"), [(10, 5000, 1024), (10, 5000, 64), (3, 1003, 64), (9, 999, 8)]
)
def test_the_largest_batch(per_image: int, budget: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend, tried = machine(per_image, budget)
    monkeypatch.setattr(speed, "measure", pretend)
    best = min(most, max(0, (budget - 1000) // per_image))
    found = bench.largest_batch(Case(model=TINY, job="inference", batch=8), most)
    assert found == best if best in (0, most) else 7 / 9 * best <= found <= best
    assert len(tried) <= 8


def test_table_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "measure", machine(10, 5000)[0])
    assert main(["bench", TINY, "--batch-size", "16", "--device", "cpu", "--json", str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    for cell in ("32.0", "20.0-40.0", "100.0", "200.0"):
        assert cell in out
    value = json.loads((tmp_path / "b.json").read_text())
    assert [job["job"] for job in value["jobs"]] == ["inference", "training"]
    first = value["jobs"][0]
    assert first["images_per_second"] == 32.0
    assert first["latency_ms"] == {"p50": 100.0, "p95": 200.0}
    assert 311 <= first["largest_batch"] <= 400


def test_a_batch_that_does_not_fit_is_said_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "measure", machine(100, 1500)[0])
    assert main(["bench", TINY, "--batch-size", "8", "--device", "cpu", "--jobs", "inference", "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["jobs"] == [
        {"job": "inference", "batch": 8, "out_of_memory": True, "largest_batch": 5, "search_ended_at": 1024}
    ]


@pytest.mark.long
def test_a_real_process_measures() -> None:
    case = Case(model=TINY, job="training", batch=2, rounds=1, precision="bf16", latency=True)
    found = measure(case)
    assert found.params == sum(p.numel() for p in vz.create_classifier(TINY, 1000).parameters())
    assert found.image_size == (32, 32)
    assert 0 < found.spread[0] <= found.seconds <= found.spread[1]
    assert 0 < found.cpu[0] <= found.cpu[1] <= found.cpu[2]
    assert 2**26 < found.before <= found.peak < found.budget


@pytest.mark.slow
def test_a_real_process_is_ended_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONZOO_MEMORY_LIMIT", "1M")
    with pytest.raises(OutOfMemory):
        measure(Case(model=TINY, job="training", batch=512, rounds=1))


def test_a_run_is_measured_as_it_is(tmp_path: Path) -> None:
    model = vz.create_classifier(TINY, 3, image_size=16)
    config = ModelConfig(
        task="classify", architecture=model.architecture, preprocess=model.preprocess, labels=("a", "b", "c")
    )
    save_bundle(model, config, tmp_path / "run")
    found = speed.run_here(Case(model=str(tmp_path / "run"), job="inference", batch=1, rounds=2))
    assert found.image_size == (16, 16)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.latency is None
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("job", ["inference", "training"])
def test_precision_and_memory_format_reach_the_model(job: speed.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, torch.dtype, bool]] = []

    def build(case: Case) -> tuple[torch.nn.Module, tuple[int, int]]:
        model = vz.create_classifier(TINY, case.num_classes)

        def note(_: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
            channels_last = args[0].is_contiguous(memory_format=torch.channels_last)
            seen.append((next(model.parameters()).dtype, out.dtype, channels_last))

        model.register_forward_hook(note)
        return model, model.preprocess.image_size

    monkeypatch.setattr(speed, "_network", build)
    full, half = torch.float32, torch.bfloat16
    weights = half if job == "inference" else full
    for precision, channels_last, expected in (
        ("fp32", False, (full, full, False)),
        ("fp32", True, (full, full, True)),
        ("bf16", False, (weights, half, False)),
        ("bf16-mixed", True, (full, half, True)),
    ):
        seen.clear()
        case = Case(model=TINY, job=job, batch=2, rounds=1, precision=precision, channels_last=channels_last)
        speed.run_here(case)
        assert set(seen) == {expected}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vit_nano_patch4"], "vit_nano_patch4_32"),
        ([TINY, "--rounds", "0"], "--rounds: 0 must be at least 1"),
        ([TINY, "--batch-size", "-3"], "--batch-size: -3 must be at least 1"),
        ([TINY, "--device", "cuda:77"], "CUDA devices"),
        ([TINY, "--json", "photo.jpg"], "must end in .json"),
    ],
)
def test_errors_name_the_fix(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err
