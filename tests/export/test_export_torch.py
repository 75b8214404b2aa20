"""Files for torch itself: any size, any batch, in several precisions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_models import perturbed

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.export.feeds import proof_images
from visionzoo.export.plans import Wish, make_plan
from visionzoo.export.to_torch import METADATA, in_precision


def test_a_pt2_runs_at_any_size_and_carries_its_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export = ["export", "vit_nano_patch4_32", "--weights", "random", "--out", str(out), "--to", "pt2"]
    with pytest.warns(UserWarning, match="random weights"):
        assert main([*export, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["proof"]
    assert {row["size"] for row in rows} == {"36x16", "32x32", "29x35"}
    assert all(row["difference"] < 1e-4 for row in rows)
    extra = {METADATA: ""}
    program = torch.export.load(out / "model.pt2", extra_files=extra)
    assert json.loads(extra[METADATA])["backbone"] == "vit_nano_patch4_32"
    assert program.module()(torch.zeros(2, 3, 51, 37, dtype=torch.uint8))[1].shape == (2, 64, 13, 10)
    with pytest.raises(ValueError, match=r"torch\.export\.load"):
        vz.load_exported(out)
    assert main([*export[:-3], str(tmp_path / "b"), "--precision", "bf16"]) == 2
    assert "--to pt2" in capsys.readouterr().err


def test_pixels_are_normalised_in_full_precision() -> None:
    torch.manual_seed(0)
    model = perturbed(vz.create_backbone("vit_nano_patch4_32"), 0.02)
    (part,) = make_plan(model, Wish(), "nano").parts
    low = in_precision(part.module, torch.bfloat16)
    assert low.normalize.scale.dtype == torch.float32  # type: ignore[union-attr]
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in part.module.parameters()} == {torch.float32}
    feed = next(part.feeds(proof_images(None)[0]))
    with torch.no_grad():
        ours, theirs = part.module(*feed.inputs), low(*feed.inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert b.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).min() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_machine_code_gives_the_same(precision: str, tmp_path: Path) -> None:
    from visionzoo.export.write import export_plan

    torch.manual_seed(0)
    model = perturbed(vz.create_backbone("vit_nano_patch4_32"), 0.02)
    plan = make_plan(model, Wish(fixed_size=True), "nano")
    done = export_plan(plan, tmp_path / "out", to="aoti", precision=precision)
    assert done.sizes["model"] > 0
    assert "aoti_load_package" in (tmp_path / "out" / "README.md").read_text()
