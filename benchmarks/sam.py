"""Segment Anything: visionzoo against Meta's segment-anything and transformers, on the same weights.

    python benchmarks/sam.py

Three things are timed: the image encoder, a click's answer (mask decoder and masks at the size of the image), and all
masks of one image. Embeddings and masks are compared before anything is timed. The peers run in float32; for the
encoder ours also runs in bfloat16. The generators' thresholds are minus infinity and zero and their box NMS is off, so
that random weights give masks; the same masks must agree to an IoU of 0.999. A peer that is not installed, or a case
that runs out of memory, is left out, and the record says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import (
    Record,
    clock_of,
    compare_cases,
    count_flops,
    in_fresh_process,
    machine,
    matmul_peak,
    those_that_fit,
)
from peers import segment_anything_model, those_there, transformers_sam
from PIL import Image

import visionzoo as vz
from visionzoo.losses.segmentation import mask_iou
from visionzoo.models.sam import Sam
from visionzoo.runs.memory import peak_bytes

META, TRANSFORMERS, OURS, HALF = "segment-anything", "transformers", "visionzoo", "visionzoo, bf16"
PEERS: dict[str, Callable[[Sam], Any]] = {META: segment_anything_model, TRANSFORMERS: transformers_sam}
JOBS = ("encoder", "click", "everything")
EMBEDDING_TOLERANCE, MASK_TOLERANCE, SCORE_TOLERANCE, LEAST_IOU = 1e-4, 1e-4, 1e-3, 0.999
GENERATOR = {"pred_iou_thresh": -float("inf"), "stability_score_thresh": 0.0}
Case = Callable[[], Any]


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


def build(args: argparse.Namespace, job: str, names: list[str]) -> tuple[dict[str, Case], dict[str, str]]:
    """The named cases of a job, on the same weights and the same picture, and why others are absent."""
    ours = build_model(args)
    peers, absent = those_there({n: partial(make, ours) for n, make in PEERS.items() if n in names})
    models: dict[str, Any] = {OURS: ours, **peers}
    if args.check and peers:
        compare(models, args, job)
    if OURS not in names:  # nothing but what is measured may be in memory
        del models[OURS], ours
    if HALF in names:
        models[HALF] = build_model(args).bfloat16()
    for model in models.values():
        model.to(args.device)
    make = {"encoder": encoder_case, "click": click_case, "everything": everything_case}[job]
    cases: dict[str, Case] = {}
    for name in [n for n in names if n not in absent]:
        cases[name] = make(name, models[name], args)
    return cases, absent


def encoder_case(name: str, model: Any, args: argparse.Namespace) -> Case:
    """Calling it gives the (1, 256, h, w) embedding of one image."""
    torch.manual_seed(1)
    images = torch.randn(1, 3, args.image_size, args.image_size).to(args.device)
    encoder = model.get_image_embeddings if name == TRANSFORMERS else model.image_encoder
    return torch.no_grad()(partial(encoder, images))


def click_case(name: str, model: Any, args: argparse.Namespace, *, raw: bool = False) -> Case:
    """Calling it gives three masks at the size of the picture and their scores; ``raw`` for logits."""
    picture, (width, height) = photo(args), args.picture
    where = np.array([[width // 3, height // 2]])
    if name == TRANSFORMERS:
        return _transformers_click(model, picture, where, raw)
    if name == META:
        from segment_anything import SamPredictor as Predictor
    else:
        Predictor = vz.SamPredictor  # type: ignore[misc, assignment]
    predictor = Predictor(model)
    predictor.set_image(picture)
    return lambda: predictor.predict(where, np.array([1]), return_logits=raw)[:2]


def _transformers_click(model: Any, picture: np.ndarray, where: np.ndarray, raw: bool) -> Case:
    processor = _transformers_processor(model)
    inputs = processor(images=picture, return_tensors="pt").to(model.device)
    sizes = [inputs[k].tolist() for k in ("original_sizes", "reshaped_input_sizes")]
    scale = sizes[1][0][1] / sizes[0][0][1]
    points = torch.tensor(where * scale, dtype=torch.float32, device=model.device)[None, None]
    with torch.no_grad():
        embedding = model.get_image_embeddings(inputs["pixel_values"])

    @torch.no_grad()
    def ask() -> tuple[np.ndarray, np.ndarray]:
        out = model(image_embeddings=embedding, input_points=points)
        masks = processor.post_process_masks(out.pred_masks, *sizes, binarize=not raw)
        return masks[0][0].cpu().numpy(), out.iou_scores[0, 0].cpu().numpy()

    return ask


def _transformers_processor(model: Any) -> Any:
    from transformers import SamImageProcessor

    size = model.config.vision_config.image_size
    return SamImageProcessor(size={"longest_edge": size}, pad_size={"height": size, "width": size})


def everything_case(name: str, model: Any, args: argparse.Namespace) -> Case:
    """Calling it gives all masks of the picture, as each library does."""
    picture = photo(args)
    if name == TRANSFORMERS:
        from transformers import MaskGenerationPipeline

        pipeline = MaskGenerationPipeline(model=model, image_processor=_transformers_processor(model))
        options = {**GENERATOR, "crops_nms_thresh": 1.0, "points_per_crop": args.points_per_side}
        return lambda: pipeline(Image.fromarray(picture), points_per_batch=64, **options)
    if name == META:
        from segment_anything import SamAutomaticMaskGenerator as Generator
    else:
        Generator = vz.MaskGenerator  # type: ignore[misc, assignment]
    generator = Generator(model, args.points_per_side, **GENERATOR, box_nms_thresh=1.0)  # type: ignore[arg-type]
    return partial(generator.generate, picture)


@torch.no_grad()
def compare(models: dict[str, Any], args: argparse.Namespace, job: str) -> None:
    """The same embedding, the same answer to a click, the same masks, or no benchmark.

    Raises:
        SystemExit: naming who differs in what.
    """
    few = argparse.Namespace(**{**vars(args), "device": "cpu", "points_per_side": min(args.points_per_side, 4)})
    answers: dict[str, Any] = {}
    for name, model in models.items():
        if job == "click":
            answers[name] = click_case(name, model, few, raw=True)()
        else:
            answers[name] = (encoder_case if job == "encoder" else everything_case)(name, model, few)()
    mine = answers.pop(OURS)
    for name, theirs in answers.items():
        found: dict[str, tuple[float, float]] = {}
        if job == "encoder":
            found["embedding"] = (_relative(mine, theirs), EMBEDDING_TOLERANCE)
        elif job == "click":
            for what, a, b in zip(("masks", "scores"), mine, theirs, strict=True):
                found[what] = (_relative(torch.from_numpy(a), torch.from_numpy(b)), MASK_TOLERANCE)
        else:
            found["masks that are not matched"] = (worst_match(_scored(mine), _scored(theirs)), 1 - LEAST_IOU)
        print(f"differences from {name}: " + ", ".join(f"{what} {value:.1e}" for what, (value, _) in found.items()))
        if wrong := [what for what, (value, limit) in found.items() if not value <= limit]:
            raise SystemExit(f"{name} does not agree in {', '.join(wrong)}; nothing was timed")


def _scored(masks: Any) -> list[tuple[float, np.ndarray]]:
    """(predicted IoU, mask) of every mask, from either form of answer."""
    if isinstance(masks, dict):
        return [(float(s), np.asarray(m)) for s, m in zip(masks["scores"], masks["masks"], strict=True)]
    return [(m["predicted_iou"], m["segmentation"]) for m in masks]


def worst_match(ours: list[tuple[float, np.ndarray]], theirs: list[tuple[float, np.ndarray]]) -> float:
    """The largest 1 - IoU of a mask with the likest of the other side's masks whose predicted IoU is the same."""
    if len(ours) != len(theirs):
        return 1.0
    worst = 0.0
    for score, mask in ours:
        likest = 0.0
        for other, candidate in theirs:
            if abs(score - other) <= SCORE_TOLERANCE:
                likest = max(likest, float(mask_iou(torch.from_numpy(mask), torch.from_numpy(candidate))))
        worst = max(worst, 1 - likest)
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
    cases, absent = build(args, job, [OURS, *args.peers, *([HALF] if job == "encoder" else [])])
    if args.warmup:
        cases = those_that_fit(cases, absent)
    if OURS not in cases:
        return {"absent": absent, "cases": {}}
    counted = job == "encoder"
    row = compare_cases(
        f"{job}: {args.model} at {args.image_size}, picture {args.picture[0]}x{args.picture[1]}",
        cases,
        META,
        rounds=max(1, args.rounds // 3) if job == "everything" else args.rounds,
        warmup=max(0, args.warmup - 1),
        device=args.device,
        # torch's counter does not see every fused product of ours, and all do the same work
        flops=dict.fromkeys(cases.keys() - {HALF}, count_flops(cases.get(META, cases[OURS]))) if counted else None,
        peak=matmul_peak(torch.float32, args.device, clock=clock_of(args.device)),
        held=memory(args, job, list(cases)) if args.memory else None,
    )
    return {**row, "absent": absent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
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
    parser.add_argument("--only", choices=(OURS, HALF, *PEERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.image_size, args.picture, args.points_per_side, args.rounds, args.warmup = 128, [128, 100], 3, 1, 0
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.only:
        args.check = False
        build(args, args.jobs[0], [args.only])[0][args.only]()
        print(json.dumps({"peak": peak_bytes(args.device)}))
        return
    facts = {"machine": machine(args.device, ("segment-anything", "transformers")), "model": args.model}
    facts |= {"image_size": args.image_size, "picture": args.picture, "points_per_side": args.points_per_side}
    record = Record(f"sam-{args.device}", facts, args.out)
    for job in args.jobs:
        record.row(job, partial(measure, args, job))
    record.finish()


if __name__ == "__main__":
    main()
