"""``visionzoo env``: what a report of a fault is asked for."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from visionzoo.cli.main import main
from visionzoo.runs import environment

ROOT = Path(__file__).parents[2]


def test_env_prints_versions_machine_and_what_is_installed(capsys: Any) -> None:
    assert main(["env"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"python: {platform.python_version()}" in lines
    assert f"torch: {torch.__version__.partition('+')[0]}" in [line.partition("+")[0] for line in lines]
    for name in ("name:", "features:", "cuda:", "gpus:", "timm:", "pytorch-lightning:", "peft:", "extensions:"):
        assert any(line.startswith(name) for line in lines), name


def test_env_as_json(capsys: Any, tmp_path: Path) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["processor"]["threads"] == torch.get_num_threads()
    assert found["packages"]["needed"]["torch"] == torch.__version__.partition("+")[0] or "+" in torch.__version__
    assert main(["env", "--json", str(tmp_path / "env.json")]) == 0
    assert json.loads((tmp_path / "env.json").read_text())["cache"] == found["cache"]


def test_env_names_neither_user_nor_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found = environment.describe_environment()
    assert found["cache"] == "~/.cache/visionzoo"
    assert str(Path.home()) not in json.dumps(found)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = ["torch>=2", 'no-such-thing>=1; extra == "some"', 'visionzoo[some]; extra == "test"']
    monkeypatch.setattr(environment.metadata, "requires", lambda name: requires)
    packages = environment.describe_environment()["packages"]
    assert packages["some"] == {"no-such-thing": None}
    assert set(packages) == {"needed", "some"}


def test_processor_features_are_read_as_linux_writes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 amx_bf16 avx512f other\n")
    monkeypatch.setattr(environment, "CPU_INFO", info)
    processor = environment.describe_environment()["processor"]
    assert processor["name"] == "Some CPU"
    assert processor["features"] == ["avx2", "avx512f", "amx_bf16"]


def test_the_issue_template_asks_for_it() -> None:
    assert "visionzoo env" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "fault.yml").read_text()
