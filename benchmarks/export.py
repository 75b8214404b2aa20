"""Exported classifiers: ONNX Runtime on our file against PyTorch, and against timm's own ONNX of the same network.

    python benchmarks/export.py --threads 1

timm's network gets our weights and is exported by the same call of torch's exporter; the runtime is the same. Inputs
are normalised pixels on all sides. Logits are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Record, compare_cases, machine, those_that_fit
from peers import backbone
from torch import Tensor, nn

import visionzoo as vz
from visionzoo.export.parts import Feed, GraphPart, Port
from visionzoo.export.to_onnx import OnnxRunner, export_onnx

MODELS = ("vit_small_patch16_224", "swin_tiny_patch4_window7_224")
OURS, EAGER, COMPILED, TIMM = "visionzoo, ONNX Runtime", "PyTorch", "torch.compile", "timm's ONNX, ONNX Runtime"
CLASSES, TOLERANCE = 1000, 1e-4


class Logits(nn.Module):
    """(B, 3, H, W) normalised -> (B, K) of any network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """As the class says."""
        return self.network(images)


def runner(network: nn.Module, images: Tensor, folder: Path, threads: int) -> OnnxRunner:
    """A network as an ONNX file of any batch."""
    folder.mkdir()
    part = GraphPart(
        name="model",
        module=Logits(network).eval(),
        inputs=(Port("images", "float32", ("batch", *images.shape[1:]), ""),),
        outputs=(Port("logits", "float32", ("batch", CLASSES), ""),),
        feeds=lambda _: iter(()),
    )
    export_onnx(part, Feed("", 2, (images[:1].repeat(2, 1, 1, 1),)), folder / "model.onnx", {})
    return OnnxRunner(folder / "model.onnx", threads)


def build(args: argparse.Namespace, name: str, batch: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """What is timed, after logits were compared."""
    torch.manual_seed(0)
    ours = vz.create_classifier(name, CLASSES).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    images = torch.randn(batch, 3, *ours.image_size)
    theirs = backbone("timm", name, ours, CLASSES).eval()
    compiled = torch.compile(ours)
    threads = args.threads or 0
    files = {
        OURS: runner(ours, images, folder / "ours", threads),
        TIMM: runner(theirs, images, folder / "timm", threads),
    }
    pixels = images.numpy()

    def eager(network: Any) -> Any:
        with torch.inference_mode():
            return network(images)

    cases: dict[str, Callable[[], Any]] = {
        OURS: lambda: files[OURS](pixels)[0],
        EAGER: lambda: eager(ours),
        COMPILED: lambda: eager(compiled),
        TIMM: lambda: files[TIMM](pixels)[0],
    }
    wanted = eager(ours)
    for case, run in cases.items():
        off = (torch.as_tensor(run()) - wanted).abs().max() / wanted.abs().max()
        if not off <= TOLERANCE:
            raise SystemExit(f"{name}: {case} differs by {off:.1e}; nothing is timed")
    return cases


def measure(args: argparse.Namespace, name: str, batch: int) -> dict[str, Any]:
    """One row of the record."""
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        cases = those_that_fit(build(args, name, batch, Path(folder)), absent)
        row = compare_cases(
            f"{name}, batch {batch}", cases, None, rounds=args.rounds, warmup=args.warmup,
            units=dict.fromkeys(cases, float(batch)),
        )  # fmt: skip
    return {**row, "absent": absent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; 1 makes CPU time meaningful")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--out", default=None, help="JSON file; by default benchmarks/results/export-cpu.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    record = Record("export-cpu", {"machine": machine("cpu", ("timm", "onnx", "onnxruntime", "onnxscript"))}, args.out)
    for name in args.models:
        for batch in args.batches:
            record.row(f"{name}, batch {batch}", partial(measure, args, name, batch))
    record.finish()


if __name__ == "__main__":
    main()
