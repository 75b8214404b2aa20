"""Segment Anything: visionzoo against Meta's segment-anything, on the same weights.

    python benchmarks/sam.py

Three things are timed: the image encoder, a click's answer (mask decoder and masks at the size of the image), and all
masks of one image. Embeddings and masks are compared before anything is timed. Meta's code runs in float32; for the
encoder ours also runs in bfloat16. The generator's thresholds are minus infinity and zero and its box NMS is off, so
that random weights give masks; of each prompt the same masks must agree to an IoU of 0.999.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import segment_anything
import torch
from harness import Record, in_fresh_process, interleave, machine, matmul_peak, speedup, table
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

import visionzoo as vz
from visionzoo.models.sam import Sam
from visionzoo.runs.memory import peak_bytes

THEIRS, OURS, HALF = "segment-anything", "visionzoo", "visionzoo, bf16"
JOBS = ("encoder", "click", "everything")
EMBEDDING_TOLERANCE, MASK_TOLERANCE, LEAST_IOU = 1e-4, 1e-4, 0.999
GENERATOR = {"pred_iou_thresh": -float("inf"), "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


def meta_twin(model: Sam) -> nn.Module:
    """Meta's network with the weights of ours."""
    encoder: Any = model.image_encoder
    size, grid = model.image_size, model.embedding_size
    vit = segment_anything.modeling.ImageEncoderViT(
        img_size=size[0],
        embed_dim=encoder.config.embed_dim,
        depth=len(encoder.blocks),
        num_heads=encoder.config.num_heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=encoder.config.window,
        global_attn_indexes=encoder.config.global_blocks,
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
    twin = segment_anything.modeling.Sam(vit, PromptEncoder(256, grid, size, 16), decoder)
    from visionzoo.weights.adapters import LAYOUTS

    twin.load_state_dict(LAYOUTS["segment_anything"].from_timm(model.state_dict()))
    return twin.eval()


def build_model(args: argparse.Namespace) -> Sam:
    """Ours, with random weights, none of them at an initial zero."""
    torch.manual_seed(0)
    model = vz.create_sam(args.model, image_size=args.image_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def photo(args: argparse.Namespace) -> np.ndarray:
    """A picture with smooth shapes: (height, width, 3) uint8."""
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    width, height = args.picture
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def build(args: argparse.Namespace, job: str, names: list[str]) -> dict[str, Callable[[], Any]]:
    """The named cases of a job, on the same weights and the same picture."""
    ours = build_model(args)
    theirs = meta_twin(ours) if THEIRS in names else None
    if args.check and theirs is not None and len(names) > 1:
        compare(ours, theirs, args, job)
    for model in (ours, theirs):
        if model is not None:
            model.to(args.device)
    cases: dict[str, Callable[[], Any]] = {}
    for name in names:
        model: Any = theirs if name == THEIRS else ours
        if job == "encoder":
            images = torch.randn(1, 3, *ours.image_size, device=args.device)
            encoder = model.image_encoder
            if name == HALF:
                encoder = build_model(args).image_encoder.bfloat16().to(args.device)
            cases[name] = torch.no_grad()(partial(encoder, images))
        elif job == "click":
            predictor: Any = SamPredictor(model) if name == THEIRS else vz.SamPredictor(model)
            predictor.set_image(photo(args))
            where = np.array([[args.picture[0] // 3, args.picture[1] // 2]])
            cases[name] = partial(predictor.predict, where, np.array([1]))
        else:
            make: Any = SamAutomaticMaskGenerator if name == THEIRS else vz.MaskGenerator
            cases[name] = partial(make(model, args.points_per_side, **GENERATOR).generate, photo(args))
    return cases


@torch.no_grad()
def compare(ours: Sam, theirs: Any, args: argparse.Namespace, job: str) -> None:
    """The same embedding, the same answer to a click, the same masks, or no benchmark.

    Raises:
        SystemExit: naming what differs.
    """
    found: dict[str, tuple[float, float]] = {}
    if job == "encoder":
        images = torch.randn(1, 3, *ours.image_size)
        a, b = ours.image_encoder(images), theirs.image_encoder(images)
        found["embedding"] = (_relative(a, b), EMBEDDING_TOLERANCE)
    elif job == "click":
        answers = []
        for predictor in (vz.SamPredictor(ours), SamPredictor(theirs)):
            predictor.set_image(photo(args))
            answers.append(predictor.predict(np.array([[9, 9]]), np.array([1]), return_logits=True))
        for name, a, b in zip(("masks", "scores", "low-resolution masks"), *answers, strict=True):
            found[name] = (_relative(torch.from_numpy(a), torch.from_numpy(b)), MASK_TOLERANCE)
    else:
        side = min(args.points_per_side, 4)
        makers: tuple[Any, ...] = (vz.MaskGenerator, SamAutomaticMaskGenerator)
        a, b = (
            make(model, side, **GENERATOR).generate(photo(args))
            for make, model in zip(makers, (ours, theirs), strict=True)
        )
        found["masks that are not matched"] = (worst_match(a, b), 1 - LEAST_IOU)
    print("differences: " + ", ".join(f"{name} {value:.1e}" for name, (value, _) in found.items()))
    if wrong := [name for name, (value, limit) in found.items() if not value <= limit]:
        raise SystemExit(f"the two do not agree in {', '.join(wrong)}; nothing was timed")


def worst_match(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """The largest 1 - IoU of a mask with its partner: that of the same click, by order of predicted quality."""

    def key(mask: dict[str, Any]) -> tuple[Any, ...]:
        return (*(round(v, 6) for v in mask["point_coords"][0]), mask["predicted_iou"])

    if len(ours) != len(theirs):
        return 1.0
    worst = 0.0
    for a, b in zip(sorted(ours, key=key), sorted(theirs, key=key), strict=True):
        one, two = a["segmentation"], b["segmentation"]
        union = (one | two).sum()
        worst = max(worst, 1 - (one & two).sum() / union if union else 0.0)
    return float(worst)


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def memory(args: argparse.Namespace, job: str, names: list[str]) -> dict[str, float]:
    """Peak GiB of each case, each in a process of its own."""
    width, height = (str(v) for v in args.picture)
    shared = ["--jobs", job, "--model", args.model, "--image-size", str(args.image_size), "--device", args.device]
    shared += ["--picture", width, height, "--points-per-side", str(args.points_per_side)]
    shared += ["--threads", str(torch.get_num_threads())]
    return {name: in_fresh_process(__file__, "--only", name, *shared)["peak"] / 2**30 for name in names}


def measure(args: argparse.Namespace, job: str) -> dict[str, Any]:
    names = [THEIRS, OURS, *([HALF] if job == "encoder" else [])]
    cases = build(args, job, names)
    peaks = {str(d): matmul_peak(d, args.device) for d in (torch.float32, torch.bfloat16)}
    rounds = max(1, args.rounds // 3) if job == "everything" else args.rounds
    timings = interleave(cases, rounds=rounds, warmup=args.warmup, device=args.device)
    del cases
    held = memory(args, job, names) if args.memory else {}
    rows, results = [], {}
    for name, timing in timings.items():
        summary = timing.summary()
        ratio = {c: speedup(getattr(timing, c), getattr(timings[THEIRS], c)) for c in ("wall", "cpu")}
        results[name] = {"seconds": summary, "speedup": ratio, "peak_gib": held.get(name)}
        seconds = [
            f"{summary[c]['median']:.3f} ({summary[c]['low']:.3f}-{summary[c]['high']:.3f})" for c in ("wall", "cpu")
        ]
        times = [f"{ratio[c]['median']:.2f} ({ratio[c]['low']:.2f}-{ratio[c]['high']:.2f})" for c in ("wall", "cpu")]
        rows.append([name, *seconds, *times, f"{held[name]:.2f}" if name in held else "-"])
    width, height = args.picture
    print(f"\n{job}: {args.model} at {args.image_size}, picture {width}x{height}, {torch.get_num_threads()} threads")
    print(table(["case", "wall s", "cpu s", "times as fast, wall", "cpu", "peak GiB"], rows))
    return {"matmul_peak": peaks, "rounds": rounds, "cases": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--picture", type=int, nargs=2, default=[1024, 768], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; 1 makes CPU time meaningful")
    parser.add_argument("--rounds", type=int, default=9, help="a third of them for everything in an image")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small input and few clicks: does it run, not how fast")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare answers first")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--out", default=None, help="JSON file; by default benchmarks/results/sam-DEVICE.json")
    parser.add_argument("--only", choices=(THEIRS, OURS, HALF), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.image_size, args.picture, args.points_per_side, args.rounds, args.warmup = 128, [100, 80], 3, 1, 0
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.only:
        run = build(args, args.jobs[0], [args.only])[args.only]
        run()
        print(json.dumps({"peak": peak_bytes(args.device)}))
        return
    facts = {"machine": machine(args.device, ("segment-anything",)), "model": args.model}
    facts |= {"image_size": args.image_size, "picture": args.picture, "points_per_side": args.points_per_side}
    record = Record(f"sam-{args.device}", facts, args.out)
    for job in args.jobs:
        record.row(job, partial(measure, args, job))
    record.finish()


if __name__ == "__main__":
    main()
