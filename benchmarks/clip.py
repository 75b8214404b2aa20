"""CLIP: visionzoo against open_clip, on the same weights (moved across by our adapter).

    python benchmarks/clip.py --data.path flickr8k                       # 1,000 labels: hours on a CPU
    python benchmarks/clip.py --jobs classifier --labels 20 --rounds 1

Jobs: ``classifier`` encodes labels x 80 templates into the weights of a zero-shot classifier, tokenizer included;
``images`` encodes a batch of images; ``training`` is a step of a batch of images and captions (tokenized before) with
the same AdamW on both sides; ``memory`` is the peak of the loss alone over the batch, in chunks and as a full matrix.
Embeddings, loss and gradients are compared in float32 before anything is timed. bf16 is autocast on both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from harness import Record, compare_cases, count_flops, in_fresh_process, machine, matmul_peak, table
from torch import Tensor, nn
from torch.nn import functional as F

import visionzoo as vz
from visionzoo.inference.templates import IMAGENET_TEMPLATES
from visionzoo.losses.contrastive import info_nce
from visionzoo.models.clip import Clip
from visionzoo.runs.memory import peak_bytes
from visionzoo.weights.adapters import layouts_named
from visionzoo.weights.exporting import facts_of

OURS, THEIRS = "visionzoo", "open_clip"
JOBS = ("classifier", "images", "training", "memory")
LOSSES = ("chunked", "full matrix")
EMBEDDING_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-5, 1e-4
#: Labels of one to three words are made of these.
WORDS = ("red", "small", "old", "wild", "sea", "mountain", "dog", "cat", "bird", "car", "boat", "house", "tree", "shoe")


def build_models(args: argparse.Namespace) -> tuple[Clip, nn.Module]:
    """Ours with random weights, and open_clip's network with the same ones."""
    torch.manual_seed(0)
    model = vz.create_clip(args.model)
    config = open_clip.get_model_config(args.model)
    if args.depth is not None:
        model.text.transformer.resblocks = model.text.transformer.resblocks[: args.depth]
        model.visual.trunk.blocks = model.visual.trunk.blocks[: args.depth]
        config["text_cfg"]["layers"] = config["vision_cfg"]["layers"] = args.depth
    custom = config.pop("custom_text", False)
    twin = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    twin.load_state_dict(as_open_clip(model))
    return model, twin


def as_open_clip(model: Clip) -> dict[str, Tensor]:
    """Our weights under the names of open_clip's network, which has more than one layout.

    Raises:
        SystemExit: where none holds this model.
    """
    for layout in layouts_named("open_clip", "clip"):
        with contextlib.suppress(ValueError):
            return layout.from_timm(model.state_dict(), facts_of(model))
    raise SystemExit(f"no layout of open_clip holds {model.name}")


def labels(count: int) -> list[str]:
    """That many different labels of one to three words."""
    n, found = len(WORDS), []
    for i in range(count):
        parts = [WORDS[i % n], WORDS[i // n % n], WORDS[i // n**2 % n]]
        found.append(" ".join(parts[: 1 if i < n else 2 if i < n**2 else 3]))
    assert len(set(found)) == count, f"there are labels for up to {n**3}"
    return found


def captions(args: argparse.Namespace) -> list[str]:
    """One caption for each image of a batch: of a manifest's first images, or made up of eight to twenty words."""
    if args.path is None:
        return [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 9 + i % 13)) for i in range(args.batch)]
    path = Path(args.path)
    lines = (path / "train.jsonl" if path.is_dir() else path).read_text(encoding="utf-8").splitlines()
    several = [json.loads(line)["captions"] for line in lines[: args.batch]]
    return [found[i % len(found)] for i, found in enumerate(several)]


def contrast(name: str, model: Any, images: Tensor, ids: Tensor) -> Tensor:
    """The loss that each side trains with."""
    image, text, scale, *_ = model(images, ids)
    if name == OURS:
        return info_nce(image, text, model.logit_scale)
    return open_clip.ClipLoss()(image, text, scale)


def build(args: argparse.Namespace, job: str, precision: str, names: list[str]) -> dict[str, Callable[[], Any]]:
    """The named cases of a job, on the same weights and the same batch."""
    ours, theirs = build_models(args)
    models: dict[str, Any] = {OURS: ours, THEIRS: theirs}
    size = ours.image_size
    torch.manual_seed(1)
    images = torch.randn(args.batch, 3, *size)
    ids = ours.tokenizer(captions(args))
    wanted = labels(args.labels)
    if args.check and len(names) > 1:
        compare(models, job, images[:4], ids[:4], wanted[:3])
    images, ids = images.to(args.device), ids.to(args.device)
    tokenizer = open_clip.get_tokenizer(args.model)
    cases: dict[str, Callable[[], Any]] = {}
    for name in names:
        model = models[name].to(args.device)
        if job == "training":
            run = step(name, model.train(), images, ids)
        elif job == "images":
            run = encoder(model.eval(), images)
        else:
            run = classifier(name, model.eval(), tokenizer, wanted, args)
        cases[name] = cast_to(run, args.device, precision)
    return cases


def step(name: str, model: Any, images: Tensor, ids: Tensor) -> Callable[[], Tensor]:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.98), weight_decay=0.2, fused=True)

    def run() -> Tensor:
        loss = contrast(name, model, images, ids)
        with torch.autocast(images.device.type, enabled=False):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run


def encoder(model: Any, images: Tensor) -> Callable[[], Tensor]:
    return torch.inference_mode()(lambda: model.encode_image(images, normalize=True))


def classifier(
    name: str, model: Any, tokenizer: Any, wanted: list[str], args: argparse.Namespace
) -> Callable[[], Tensor]:
    """(K, E): the weights of a zero-shot classifier, from labels and templates as texts."""
    if name == OURS:
        return lambda: vz.ZeroShotClassifier(model, wanted, "imagenet").text_embeddings
    return lambda: (
        open_clip.build_zero_shot_classifier(
            model, tokenizer, wanted, IMAGENET_TEMPLATES, num_classes_per_batch=10, device=args.device
        ).T
    )


def cast_to(run: Callable[[], Any], device: str, precision: str) -> Callable[[], Any]:
    if precision == "fp32":
        return run

    def cast() -> Any:
        with torch.autocast(device, torch.bfloat16):
            return run()

    return cast


def compare(models: dict[str, Any], job: str, images: Tensor, ids: Tensor, wanted: list[str]) -> None:
    """The same embeddings, or the same loss and gradients, in float32, or no benchmark.

    Raises:
        SystemExit: naming what differs.
    """
    found: dict[str, tuple[float, float]] = {}
    if job == "classifier":
        args = argparse.Namespace(device="cpu")
        tokenizer = open_clip.get_tokenizer("ViT-B-32")
        a, b = (classifier(n, models[n].eval(), tokenizer, wanted, args)() for n in (OURS, THEIRS))
        found["text embeddings"] = (_relative(a, b), EMBEDDING_TOLERANCE)
    elif job == "images":
        a, b = (encoder(models[n].eval(), images)() for n in (OURS, THEIRS))
        found["image embeddings"] = (_relative(a, b), EMBEDDING_TOLERANCE)
    else:
        values = {n: contrast(n, models[n].train(), images, ids) for n in (OURS, THEIRS)}
        for value in values.values():
            value.backward()
        found["loss"] = (abs(float(values[OURS].detach() - values[THEIRS].detach())), LOSS_TOLERANCE)
        found["gradient, relative"] = (_gradients_differ(models), GRADIENT_TOLERANCE)
        for model in models.values():
            model.zero_grad()
    print("differences: " + ", ".join(f"{name} {value:.1e}" for name, (value, _) in found.items()))
    if wrong := [name for name, (value, limit) in found.items() if not value <= limit]:
        raise SystemExit(f"the two networks do not agree in {', '.join(wrong)}; nothing was timed")


def _relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / b.abs().clamp_min(1.0)).max())


def _gradients_differ(models: dict[str, Any]) -> float:
    """The largest difference of a tensor's gradient; a share of the largest is allowed where one is zero."""
    ours, theirs = models[OURS], models[THEIRS]
    kept = {name: p.detach().clone() for name, p in ours.named_parameters()}
    with torch.no_grad():  # the adapter moves parameters, so the gradients take their places for a moment
        for p in ours.parameters():
            p.copy_(p.grad)
        moved = {k: v.clone() for k, v in as_open_clip(ours).items()}
        for name, p in ours.named_parameters():
            p.copy_(kept[name])
    reference = {k: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    largest = max(float(g.norm()) for g in reference.values())
    return max(float((moved[k] - g).norm() / (g.norm() + 1e-3 * largest)) for k, g in reference.items())


def loss_peak(kind: str, pairs: int, width: int, device: str) -> dict[str, float]:
    """Peak bytes that the loss of ``pairs`` adds, its backward pass included."""
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(pairs, width, device=device), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(2.7, device=device, requires_grad=True)
    warm = [x[:4].detach().requires_grad_() for x in (image, text)]
    info_nce(*warm, scale).backward()
    before = peak_bytes(device)
    if kind == "chunked":
        info_nce(image, text, scale).backward()
    else:
        open_clip.ClipLoss()(image, text, scale.exp()).backward()
    return {"before": before, "peak": peak_bytes(device)}


def measure_memory(args: argparse.Namespace, pairs: int) -> dict[str, dict[str, float]]:
    """GiB that each form of the loss adds for so many pairs, each in a process of its own."""
    found = {}
    for kind in LOSSES:
        peak = in_fresh_process(__file__, "--only", kind, "--pairs", str(pairs), "--device", args.device)
        found[kind] = (peak["peak"] - peak["before"]) / 2**30
    print(f"\nGiB that the loss of {pairs:,d} pairs adds")
    print(table(["form", "GiB"], [[kind, f"{gib:.3f}"] for kind, gib in found.items()]))
    return {"added_gib": found}


def measure(args: argparse.Namespace, job: str, precision: str) -> dict[str, Any]:
    cases = build(args, job, precision, [OURS, THEIRS])
    clock = "cpu" if args.device == "cpu" and torch.get_num_threads() == 1 else "wall"
    counted = job != "classifier"  # counting runs a case once more, and this one is long
    flops = {name: count_flops(run) for name, run in cases.items()} if counted else None
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return compare_cases(
        title(args, job, precision),
        cases,
        THEIRS,
        rounds=args.rounds,
        warmup=args.warmup,
        device=args.device,
        flops=flops,
        peak=matmul_peak(dtype, args.device, clock=clock),
    )


def title(args: argparse.Namespace, job: str, precision: str) -> str:
    """The name of a row."""
    what = {
        "classifier": f"classifier, {args.labels:,} labels x {len(IMAGENET_TEMPLATES)} templates",
        "images": f"image encoding, batch {args.batch}",
        "training": f"training step, batch {args.batch}" + ("" if args.path else ", made-up captions"),
    }
    return f"{args.model}, {what[job]}, {precision}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--labels", type=int, default=1000, help="of the classifier")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--data.path", dest="path", help="train.jsonl with captions, or its folder (default: made up)")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384], help="of the memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; 1 makes CPU time meaningful")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare outputs first")
    parser.add_argument("--out", default=None, help="JSON file; by default benchmarks/results/clip-DEVICE.json")
    parser.add_argument("--depth", type=int, default=None, help="blocks of each tower, to try the script")
    parser.add_argument("--only", choices=LOSSES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.only:
        print(json.dumps(loss_peak(args.only, args.pairs[0], 512, args.device)))
        return
    facts: dict[str, Any] = {"machine": machine(args.device, ("open_clip_torch",)), "model": args.model}
    facts |= {"batch": args.batch, "labels": args.labels, "depth": args.depth, "rounds": args.rounds}
    record = Record(f"clip-{args.device}", facts, args.out)
    for job in [job for job in args.jobs if job != "memory"]:
        for precision in args.precision:
            record.row(title(args, job, precision), partial(measure, args, job, precision))
    if "memory" in args.jobs:
        for pairs in args.pairs:
            record.row(f"memory of the loss, {pairs:,} pairs", partial(measure_memory, args, pairs))
    record.finish()


if __name__ == "__main__":
    main()
