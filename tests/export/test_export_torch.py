"""Files for torch itself: any size, any batch, in several precisions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from export_models import perturbed

import visionzoo as vz
from visionzoo.backbones.base import Backbone
from visionzoo.backbones.swin import SwinConfig, SwinTransformer
from visionzoo.cli.main import main
from visionzoo.export.feeds import proof_images
from visionzoo.export.plans import Wish, make_plan
from visionzoo.export.to_torch import METADATA, export_torch, in_precision
from visionzoo.types import Preprocess


@pytest.mark.long
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


def runs_at_every_size(model: Backbone, folder: Path, sizes: list[tuple[int, int]]) -> None:
    """A file made of one size has PyTorch's answers at others, in batches of one and two."""
    perturbed(model, 0.02)
    (part,) = make_plan(model, Wish(), "model").parts
    run = export_torch(part, next(part.feeds(proof_images(None)[0])), folder / "m.pt2", {}, "fp32", compiled=False)
    generator = torch.Generator().manual_seed(0)
    for batch, (height, width) in itertools.product((1, 2), sizes):
        pixels = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
        with torch.inference_mode():
            wanted = part.module(pixels)
        for ours, theirs in zip(run(pixels.numpy()), wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_rows_of_one_window_and_of_several_go_through_one_pt2(tmp_path: Path) -> None:
    """What is 1 at the size that a graph is made of, or at no other, is not fixed in it."""
    torch.manual_seed(0)
    config = SwinConfig(patch_size=2, embed_dim=16, depths=(2,), num_heads=(2,), window=4)
    sizes = [(16, 16), (8, 8), (8, 40), (40, 8), (2, 2), (17, 23), (32, 32)]
    model = SwinTransformer(config, Preprocess(image_size=(16, 16)))
    model.name = "small"
    runs_at_every_size(model.eval(), tmp_path, sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("swin_nano_patch2_window4_32", 32), ("swinv2_nano_patch2_window4_32", 32), ("samvit_base_patch16", 256)],
)
def test_a_family_with_windows_goes_through_one_pt2(name: str, size: int, tmp_path: Path) -> None:
    model = vz.create_backbone(name, image_size=size)
    if name.startswith("samvit"):
        model.blocks = model.blocks[::11]  # type: ignore[index,operator]
    sizes = [(size, size), (size // 2, size), (size // 4, size // 2 + 3), (2 * size, size), (size + 5, 2 * size - 3)]
    runs_at_every_size(model.eval(), tmp_path, sizes)


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
