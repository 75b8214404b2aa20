"""CLIP: visionzoo against open_clip and transformers, on the same weights (moved across by our adapters).

    python benchmarks/clip.py --data.path flickr8k                       # 1,000 labels: hours on a CPU
    python benchmarks/clip.py --jobs classifier --labels 20 --rounds 1

Jobs: ``classifier`` encodes labels x 80 templates into the weights of a zero-shot classifier, tokenizer included;
``images`` and ``texts`` encode a batch of images, or of captions; ``training`` is a step of a batch of both (tokenized
before) with the same AdamW on all sides; ``memory`` is the peak of the loss alone, in chunks and as a full matrix.
Embeddings, loss and gradients are compared in float32 before anything is timed. bf16 is autocast on all sides. A peer
that is not installed, or a case that runs out of memory, is left out, and the record says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import (
    Record,
    clock_of,
    compare_cases,
    count_flops,
    in_fresh_process,
    machine,
    matmul_peak,
    table,
    those_that_fit,
)
from peers import Absent, installed, moved, open_clip_model, those_there, transformers_clip
from torch import Tensor, nn
from torch.nn import functional as F

import visionzoo as vz
from visionzoo.data.sources.templates import VARIED_TEMPLATES
from visionzoo.losses.contrastive import info_nce
from visionzoo.models.clip import Clip
from visionzoo.runs.memory import peak_bytes

OURS, OPEN_CLIP, TRANSFORMERS = "visionzoo", "open_clip", "transformers"
PEERS = (OPEN_CLIP, TRANSFORMERS)
JOBS = ("classifier", "images", "texts", "training", "memory")
LOSSES = ("chunked", "full matrix")
EMBEDDING_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-5, 1e-4
#: Labels of one to three words are made of these.
WORDS = ("red", "small", "old", "wild", "sea", "mountain", "dog", "cat", "bird", "car", "boat", "house", "tree", "shoe")


def build_models(args: argparse.Namespace, job: str) -> tuple[Clip, dict[str, nn.Module], dict[str, str]]:
    """Ours with random weights, the peers' networks with the same ones, and why others are absent."""
    torch.manual_seed(0)
    model = vz.create_clip(args.model)
    if args.depth is not None:
        model.text.transformer.resblocks = model.text.transformer.resblocks[: args.depth]
        model.visual.trunk.blocks = model.visual.trunk.blocks[: args.depth]

    def of_transformers() -> nn.Module:
        if job == "classifier":
            raise Absent("builds no classifier from labels and templates")
        return transformers_clip(model)

    builders: dict[str, Callable[[], nn.Module]] = {
        OPEN_CLIP: partial(open_clip_model, model, args.depth),
        TRANSFORMERS: of_transformers,
    }
    return model, *those_there({name: build for name, build in builders.items() if name in args.peers})


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
    if name == TRANSFORMERS:
        return model(input_ids=ids, pixel_values=images, return_loss=True).loss
    image, text, scale, *_ = model(images, ids)
    if name == OURS:
        return info_nce(image, text, model.logit_scale)
    import open_clip

    return open_clip.ClipLoss()(image, text, scale)


def build(args: argparse.Namespace, job: str, precision: str) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The cases of a job, on the same weights and the same batch, and why others are absent."""
    ours, peers, absent = build_models(args, job)
    models: dict[str, Any] = {OURS: ours, **peers}
    torch.manual_seed(1)
    images = torch.randn(args.batch, 3, *ours.image_size)
    ids = ours.tokenizer(captions(args))
    wanted = labels(args.labels)
    if args.check and peers:
        compare(models, job, images[:4], ids[:4], wanted[:3])
    images, ids = images.to(args.device), ids.to(args.device)
    cases: dict[str, Callable[[], Any]] = {}
    for name in models:
        model = models[name].to(args.device)
        if job == "training":
            run = step(name, model.train(), images, ids)
        elif job == "images":
            run = encoder(name, model.eval(), images)
        elif job == "texts":
            run = encoder(name, model.eval(), ids, text=True)
        else:
            run = classifier(name, model.eval(), wanted, args)
        cases[name] = cast_to(run, args.device, precision)
    return cases, absent


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


def encoder(name: str, model: Any, batch: Tensor, *, text: bool = False) -> Callable[[], Tensor]:
    """(B, E) embeddings of length one, of images or texts."""
    if name == TRANSFORMERS:
        encode = model.get_text_features if text else model.get_image_features

        def theirs() -> Tensor:
            out = encode(batch)
            return F.normalize(out if isinstance(out, Tensor) else out.pooler_output, dim=-1)

        return torch.inference_mode()(theirs)
    encode = model.encode_text if text else model.encode_image
    return torch.inference_mode()(partial(encode, batch, normalize=True))


def classifier(name: str, model: Any, wanted: list[str], args: argparse.Namespace) -> Callable[[], Tensor]:
    """(K, E): the weights of a zero-shot classifier, from labels and templates as texts."""
    if name == OURS:
        return lambda: vz.ZeroShotClassifier(model, wanted, "varied").text_embeddings
    import open_clip

    tokenizer = open_clip.get_tokenizer(args.model)
    return lambda: (
        open_clip.build_zero_shot_classifier(
            model, tokenizer, wanted, VARIED_TEMPLATES, num_classes_per_batch=10, device=args.device
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
        SystemExit: naming who differs in what.
    """
    values: dict[str, Tensor] = {}
    for name, model in models.items():
        if job == "classifier":
            values[name] = classifier(name, model.eval(), wanted, argparse.Namespace(device="cpu", model="ViT-B-32"))()
        elif job == "training":
            values[name] = contrast(name, model.train(), images, ids)
            values[name].backward()
        else:
            text = job == "texts"
            values[name] = encoder(name, model.eval(), ids if text else images, text=text)()
    mine = values.pop(OURS)
    for name, theirs in values.items():
        found: dict[str, tuple[float, float]] = {}
        if job == "training":
            found["loss"] = (abs(float(mine.detach() - theirs.detach())), LOSS_TOLERANCE)
            found["gradient, relative"] = (_gradients_differ(models[OURS], models[name], name), GRADIENT_TOLERANCE)
        else:
            found["image embeddings" if job == "images" else "text embeddings"] = (
                _relative(mine, theirs),
                EMBEDDING_TOLERANCE,
            )
        print(f"differences from {name}: " + ", ".join(f"{what} {value:.1e}" for what, (value, _) in found.items()))
        if wrong := [what for what, (value, limit) in found.items() if not value <= limit]:
            raise SystemExit(f"{name} does not agree in {', '.join(wrong)}; nothing was timed")
    for model in models.values():
        model.zero_grad()


def _relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / b.abs().clamp_min(1.0)).max())


def _gradients_differ(ours: Any, theirs: Any, library: str) -> float:
    """The largest difference of a tensor's gradient; a share of the largest is allowed where one is zero."""
    kept = {name: p.detach().clone() for name, p in ours.named_parameters()}
    with torch.no_grad():  # the adapter moves parameters, so the gradients take their places for a moment
        for p in ours.parameters():
            p.copy_(p.grad)
        gradients = {k: v.clone() for k, v in moved(ours, library, "clip").items()}
        for name, p in ours.named_parameters():
            p.copy_(kept[name])
    reference = {k: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    largest = max(float(g.norm()) for g in reference.values())
    return max(float((gradients[k] - g).norm() / (g.norm() + 1e-3 * largest)) for k, g in reference.items())


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
        import open_clip

        open_clip.ClipLoss()(image, text, scale.exp()).backward()
    return {"before": before, "peak": peak_bytes(device)}


def measure_memory(args: argparse.Namespace, pairs: int) -> dict[str, Any]:
    """GiB that each form of the loss adds for so many pairs, each in a process of its own."""
    found, absent = {}, {}
    for kind in LOSSES:
        if kind != "chunked":
            try:
                installed(OPEN_CLIP)
            except Absent as why:
                absent[f"{kind}, of open_clip"] = str(why)
                continue
        peak = in_fresh_process(__file__, "--only", kind, "--pairs", str(pairs), "--device", args.device)
        found[kind] = (peak["peak"] - peak["before"]) / 2**30
    print(f"\nGiB that the loss of {pairs:,d} pairs adds")
    print(table(["form", "GiB"], [[kind, f"{gib:.3f}"] for kind, gib in found.items()]))
    return {"added_gib": found, "absent": absent}


def measure(args: argparse.Namespace, job: str, precision: str) -> dict[str, Any]:
    cases, absent = build(args, job, precision)
    if args.warmup:
        cases = those_that_fit(cases, absent)
    if OURS not in cases:
        return {"absent": absent, "cases": {}}
    counted = job != "classifier"  # counting runs a case once more, and this one is long
    flops = {name: count_flops(run) for name, run in cases.items()} if counted else None
    if flops and job == "images":  # one network on all sides; torch's counter does not see every fused product
        flops = dict.fromkeys(flops, max(flops.values()))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    row = compare_cases(
        title(args, job, precision),
        cases,
        OPEN_CLIP,
        rounds=args.rounds,
        warmup=max(0, args.warmup - 1),
        device=args.device,
        flops=flops,
        peak=matmul_peak(dtype, args.device, clock=clock_of(args.device)),
    )
    return {**row, "absent": absent}


def title(args: argparse.Namespace, job: str, precision: str) -> str:
    """The name of a row."""
    what = {
        "classifier": f"classifier, {args.labels:,} labels x {len(VARIED_TEMPLATES)} templates",
        "images": f"image encoding, batch {args.batch}",
        "texts": f"text encoding, batch {args.batch}",
        "training": f"training step, batch {args.batch}" + ("" if args.path else ", made-up captions"),
    }
    return f"{args.model}, {what[job]}, {precision}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
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
    facts: dict[str, Any] = {"machine": machine(args.device, ("open_clip_torch", "transformers")), "model": args.model}
    with contextlib.suppress(ImportError):  # a checkout in front of the installed release has no metadata of its own
        facts["machine"]["versions"]["open_clip_torch"] = importlib.import_module("open_clip").__version__
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
