"""The table of docs/export.md: every family, every part, every format, and how far the file is from PyTorch.

    python benchmarks/export_table.py            # measures, goes on where it was interrupted, and writes the table
    python benchmarks/export_table.py --write    # writes it from the record alone

Networks have their real widths and random weights; a family's blocks are all alike, so two at each resolution are kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, Record, machine
from torch import nn

import visionzoo as vz
from visionzoo.backbones.base import Backbone
from visionzoo.backbones.swin import SwinTransformer
from visionzoo.export.feeds import proof_images
from visionzoo.export.plans import Wish, make_plan
from visionzoo.export.proof import Proof, prove
from visionzoo.export.to_onnx import OnnxRunner, export_onnx
from visionzoo.export.to_torch import export_torch
from visionzoo.export.to_transformers import export_transformers
from visionzoo.files import write_text
from visionzoo.inference.classifier import ImageClassifier

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
    ("timm/efficientvit_b0", 96),
    ("timm/vit_tiny_patch16_224", 112),
    ("timm/eva02_tiny_patch14_224", 112),
]
PARTS = ("features", "pyramid", "classifier")
FORMATS = ("onnx", "pt2", "aoti", "transformers")
#: Machine code takes a minute of a C++ compiler each, so one of each kind of code.
COMPILED = ("vit_tiny_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224", "swin_nano_patch2_window4_32",
            "timm/resnet18")  # fmt: skip
#: A Swin whose size is open takes minutes to export: its big ones are fixed here.
FIXED = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256")
#: Whose folder transformers opens; as they are, since the number of blocks is in the configuration.
TRANSFORMERS = ("vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2",
                "swin_nano_patch2_window4_32", "swinv2_nano_patch2_window4_32")  # fmt: skip
TABLE = RESULTS / "export" / "table.json"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "export.md"
BEGIN, END = "<!-- benchmarks/export_table.py writes from here -->", "<!-- to here -->"


def perturbed(model: nn.Module) -> nn.Module:
    """Fresh tables and heads are nearly constant, and would prove nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def shallow(model: Any, name: str) -> Any:
    """A network with two blocks at each resolution."""
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
    return model


def made(name: str, size: int, part: str, *, whole: bool = False) -> Backbone | ImageClassifier | None:
    """What a part is exported of; None where the network has no such part."""
    torch.manual_seed(0)
    if part == "classifier":
        model = vz.create_classifier(name, 5, image_size=size)
    else:
        model = vz.create_backbone(name, image_size=size)
    if part == "pyramid" and "pyramid" not in model.capabilities:
        return None
    perturbed(model if whole else shallow(model, name))
    return ImageClassifier.from_model(model, list("abcde"), name=name) if part == "classifier" else model


def proved(name: str, size: int, part: str, to: str, folder: Path) -> Proof | None:
    """The proof of a file; None where the network has no such part."""
    whole = to == "transformers"
    model = made(name, size, part, whole=whole)
    if model is None:
        return None
    if whole:
        return export_transformers(model, folder / "transformers")[0]
    (graph,) = make_plan(model, Wish(part=part, fixed_size=to == "aoti" or name in FIXED), name).parts
    images = proof_images(None)[0][:8]
    example = next(graph.feeds(images))
    if to == "onnx":
        export_onnx(graph, example, folder / "model.onnx", {})
        return prove(graph, OnnxRunner(folder / "model.onnx", threads=1), images)
    return prove(graph, export_torch(graph, example, folder / "model.pt2", {}, "fp32", compiled=to == "aoti"), images)


def measured(name: str, size: int, part: str, to: str) -> dict[str, Any]:
    """A row of the record: what came of it, or why nothing did."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            proof = proved(name, size, part, to, Path(folder))
        except ValueError as error:  # what the command would say
            print(f"{name}, {part}, {to}: {error}", flush=True)
            return {"reason": str(error)[:300]}
    if proof is None:
        return {"reason": "no such part"}
    proof.require("fp32")
    rows = proof.rows
    found = {
        "difference": max(r.difference for r in rows),
        "cosine": min(r.cosine for r in rows),
        "sizes": list(dict.fromkeys(r.size for r in rows)),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(f"{name}, {part}, {to}: {found['difference']:.1e} in {found['seconds']} s", flush=True)
    return found


def cases() -> list[tuple[str, int, str, str]]:
    """All that is measured, what says most first."""
    open_graphs = [(*family, part, to) for part in PARTS for to in ("onnx", "pt2") for family in FAMILIES]
    sizes = dict(FAMILIES)
    compiled = [(name, sizes[name], "features", "aoti") for name in COMPILED]
    hub = [(name, sizes[name], "features", "transformers") for name in TRANSFORMERS]
    return [*hub, *compiled, *open_graphs]


def key_of(name: str, part: str, to: str) -> str:
    """Of a row in the record."""
    return f"{name}, {part}, {to}"


def table(results: dict[str, Any]) -> str:
    """The Markdown of a record: a row for each family and part, a column for each format."""
    lines = ["| network | part | sizes | " + " | ".join(FORMATS) + " |", "|---" * (3 + len(FORMATS)) + "|"]
    for name, _ in FAMILIES:
        for part in PARTS:
            rows = [results.get(key_of(name, part, to)) for to in FORMATS]
            there = [row for row in rows if row is not None and "difference" in row]
            if there:
                graphs = [row for row in rows[:2] if row in there]  # the other formats are compared at one size here
                sizes = "" if not graphs else "any" if len(graphs[0]["sizes"]) > 1 else "one"
                lines.append(f"| {name} | {part} | {sizes} | " + " | ".join(map(_cell, rows)) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['difference']:.1e}" if "difference" in row else "refused"


def write_docs(results: dict[str, Any]) -> None:
    """Put the table between the two marks of docs/export.md."""
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    write_text(DOCS, f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.write:
        write_docs(json.loads(TABLE.read_text(encoding="utf-8"))["results"])
        return
    torch.set_num_threads(1)
    TABLE.parent.mkdir(exist_ok=True)
    packages = ("timm", "transformers", "onnx", "onnxruntime", "onnxscript")
    record = Record("export-table", {"machine": machine("cpu", packages)}, str(TABLE))
    for name, size, part, to in cases():
        record.row(key_of(name, part, to), partial(measured, name, size, part, to))
    record.finish()
    write_docs(record.value["results"])


if __name__ == "__main__":
    main()
