"""Every native family, every part: an ONNX file that gives PyTorch's answers at three sizes and two batches.

    python tests/export/test_export_sweep.py

prints the table of docs/export.md. Widths are the real ones; a family's blocks are all alike, so two of them are kept.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from export_models import perturbed
from torch import nn

import visionzoo as vz
from visionzoo.backbones.base import Backbone
from visionzoo.backbones.swin import SwinTransformer
from visionzoo.export.feeds import proof_images
from visionzoo.export.plans import Wish, make_plan
from visionzoo.export.proof import TOLERANCE, Proof, prove
from visionzoo.export.to_onnx import OnnxRunner, export_onnx

#: One of each family, and of each kind of position, pooling, norm and MLP that there is; (name, image size).
FAMILIES = [
    ("vit_tiny_patch16_224", 112),
    ("vit_small_patch16_qknorm_224", 112),
    ("vit_small_patch16_sincos_224", 112),
    ("vit_medium_patch16_reg4_gap_256", 128),
    ("deit_tiny_distilled_patch16_224", 112),
    ("deit3_small_patch16_224", 112),
    ("vit_small_patch14_dinov2", 98),
    ("vit_small_patch14_reg4_dinov2", 98),
    ("vit_base_patch32_clip_quickgelu_224", 128),
    ("vit_base_patch16_siglip_224", 112),
    ("vit_so400m_patch14_siglip_384", 112),
    ("vit_small_patch16_dinov3", 112),
    ("vit_small_plus_patch16_dinov3_qkvb", 112),
    ("vit_small_patch16_rope_224", 112),
    ("vit_small_patch16_rope_mixed_ape_224", 112),
    ("vit_medium_patch16_rope_reg1_gap_256", 128),
    ("beit_base_patch16_224", 112),
    ("beitv2_base_patch16_224", 112),
    ("samvit_base_patch16_224", 112),
    ("samvit_base_patch16", 256),
    ("swin_tiny_patch4_window7_224", 112),
    ("swin_nano_patch2_window4_32", 32),
    ("swinv2_nano_patch2_window4_32", 32),
    ("swinv2_tiny_window8_256", 128),
    ("timm/resnet18", 96),
    ("timm/convnext_atto", 96),
    ("timm/mobilenetv3_small_050", 96),
    ("timm/vit_tiny_patch16_224", 112),
    ("timm/efficientvit_b0", 96),
]
CASES = [(name, size, part) for name, size in FAMILIES for part in ("features", "pyramid")]


def shallow(name: str, size: int) -> Backbone:
    """A backbone of a family at its real width, with two blocks at each resolution."""
    torch.manual_seed(0)
    model = vz.create_backbone(name, image_size=size)
    if isinstance(model, SwinTransformer):
        for stage in model.layers:
            stage.blocks = stage.blocks[:2]
    elif (
        isinstance(getattr(model, "blocks", None), nn.Sequential)
        and not name.startswith("timm/")
        and "mixed" not in name
    ):
        model.blocks = model.blocks[:: max(1, len(model.blocks) - 1)]  # the first and the last
        if hasattr(model, "pyramid_blocks"):
            model.pyramid_blocks = [0, 1]
            model.pyramid_levels = model.pyramid_levels[:2]
    return perturbed(model, 0.02)  # type: ignore[return-value]


def proved(name: str, size: int, part: str, folder: Path) -> Proof | None:
    """The proof of a file; None where the backbone has no such part."""
    model = shallow(name, size)
    if part == "pyramid" and "pyramid" not in model.capabilities:
        return None
    (graph,) = make_plan(model, Wish(part=part), name).parts
    images = proof_images(None)[0][:8]
    export_onnx(graph, next(graph.feeds(images)), folder / "model.onnx", {})
    return prove(graph, OnnxRunner(folder / "model.onnx", threads=1), images)


@pytest.mark.parametrize(
    ("name", "size", "part"),
    [("vit_nano_patch4_32", 32, "pyramid"), *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES)],
)
def test_a_family_exports(name: str, size: int, part: str, tmp_path: Path) -> None:
    proof = proved(name, size, part, tmp_path)
    if proof is None:
        pytest.skip(f"{name} has no {part}")
    proof.require("fp32")
    assert max(row.difference for row in proof.rows) < TOLERANCE / 5


def main(names: list[str]) -> None:
    """Print a row for each case."""
    import tempfile

    print("| backbone | part | sizes | worst difference | least cosine | seconds |\n|---|---|---|---|---|---|")
    for name, size, part in CASES:
        if names and name not in names:
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                proof = proved(name, size, part, Path(folder))
            except Exception as error:
                print(f"| {name} | {part} | | {str(error)[:400]!r} | | |", flush=True)
                continue
        if proof is None:
            continue
        sizes = ", ".join(dict.fromkeys(row.size for row in proof.rows))
        worst, least = max(r.difference for r in proof.rows), min(r.cosine for r in proof.rows)
        took = time.perf_counter() - start
        print(f"| {name} | {part} | {sizes} | {worst:.1e} | {least:.6f} | {took:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
