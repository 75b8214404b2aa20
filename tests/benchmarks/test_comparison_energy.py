"""Joules of an image: counters that begin again, parts that are not counted twice, and reasons where there are none."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from visionzoo.inference import speed as product


def zone(powercap: Path, name: str, energy: int, *, label: str = "package-0", most: int = 1_000_000) -> Path:
    """A folder as the kernel shows it; energies in microjoules."""
    folder = powercap / name
    folder.mkdir(parents=True)
    for file, value in (("name", label), ("energy_uj", energy), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


def test_rapl_adds_packages_and_passes_its_end(load: Any, tmp_path: Path) -> None:
    energy = load("comparison.energy")
    first = zone(tmp_path, "intel-rapl:0", 900_000)
    second = zone(tmp_path, "intel-rapl:1", 0, label="package-1")
    for name, label in (("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0")):
        zone(tmp_path, name, 0, label=label)
    (tmp_path / "intel-rapl").mkdir()  # the driver itself
    meter = energy.open_meter("cpu", tmp_path)
    assert meter() == 0
    (first / "energy_uj").write_text("100000\n")  # 0.1 J to its end, 0.1 J since
    (second / "energy_uj").write_text("500000\n")
    assert meter() == pytest.approx(0.7)
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("900000\n")
    (tmp_path / "intel-rapl:2" / "energy_uj").write_text("900000\n")
    assert meter() == pytest.approx(0.7)
    (first / "energy_uj").write_text("50000\n")  # once more around
    assert meter() == pytest.approx(0.7 + 0.95)


def test_without_a_counter_there_is_a_reason(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = load("comparison.energy")
    with pytest.raises(energy.NoCounter, match="the kernel shows no RAPL counter in /sys/class/powercap"):
        energy.open_meter("cpu", tmp_path / "none")
    (zone(tmp_path, "intel-rapl:0", 1) / "energy_uj").write_text("")
    with pytest.raises(energy.NoCounter, match="RAPL cannot be read"):
        energy.open_meter("cpu", tmp_path)

    def refused(self: Path) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(energy.NoCounter, match="RAPL may be read by the superuser alone"):
        energy.open_meter("cpu", tmp_path)


def test_nvml_counts_the_gpu_that_cuda_names(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = load("comparison.energy")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(energy.NoCounter, match="nvidia-ml-py, which is not installed"):
        energy.Nvml("abc")

    class NVMLError(Exception):
        pass

    def handle(uuid: str) -> str:
        if uuid != "GPU-abc":
            raise NVMLError("Not Found")
        return uuid

    joules = iter((5_000, 6_500))
    fake = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: next(joules),  # millijoules
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert energy.Nvml("abc")() == 6.5
    with pytest.raises(energy.NoCounter, match="does not count the energy of this GPU: Not Found"):
        energy.Nvml("other")


def test_joules_of_a_batch_are_those_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "ENERGY_SECONDS", 0.02)
    batches: list[float] = []

    def run() -> None:
        time.sleep(0.005)
        batches.append(4.0)

    assert product._joules(run, lambda: 100 + sum(batches), SimpleNamespace(type="cpu")) == 4
    assert 2 <= len(batches) <= 5


@pytest.mark.long
def test_a_record_has_joules_or_the_reason(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speed, energy = load("comparison.speed"), load("comparison.energy")
    monkeypatch.setattr(product, "ENERGY_SECONDS", 0.01)
    spec = {"job": "inference", "model": "vit_nano_patch4_32", "image_size": 16, "num_classes": 2, "batch": 2}
    spec |= {"rounds": 1, "channels_last": False, "device": "cpu"}
    joules = iter((1.0, 1.0))
    monkeypatch.setattr(speed, "open_meter", lambda _: lambda: next(joules))
    found = speed.measure(precision="fp32", **spec)
    assert found["joules_per_image"] == 0
    assert len(found["latency_ms"]["rounds"]) == 20

    def none(device: str) -> None:
        raise energy.NoCounter(f"nothing counts {device}")

    monkeypatch.setattr(speed, "open_meter", none)
    assert speed.measure(precision="fp32", **spec)["no_energy"] == "nothing counts cpu"


@pytest.mark.parametrize(
    ("more", "said", "columns"),
    [
        ({"joules_per_image": 0.01234}, "whatever else they do included.", True),
        ({"no_energy": "no <counter>"}, "Energy was not measured: no <counter>.", False),
        ({}, "see the problems.", False),  # of records of before
    ],
)
def test_the_table_of_costs_has_joules_or_says_why_not(
    load: Any, more: dict[str, Any], said: str, columns: bool
) -> None:
    models, summary = load("comparison.models"), load("comparison.summary")
    entry = models.Entry("a", "CNN", 1, 0.5)
    result = {"images_per_second": 1.0, "peak_bytes": 1, "latency_ms": {"p50": 1.0, "p95": 2.0}, **more}
    records = [
        {"kind": "speed", "status": "done", "about": {"model": "a", "job": job}, "result": result}
        for job in ("inference", "training")
    ]
    table = load("comparison.cost_tables").cost(summary.summarize([entry], records, 8), [entry])
    assert table.note.endswith(said)
    assert ("training J/image" in table.header) == columns
    assert (table.rows[0][-1] == "0.0123") == columns
    assert len(table.rows[0]) == len(table.header)
