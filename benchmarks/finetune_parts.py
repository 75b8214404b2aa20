"""What each part of a fine-tuning recipe gives: one at a time taken out of, or put into, the recipe; several seeds.

    python benchmarks/finetune_parts.py --data.path PHOTOS --weights W --backbone B [--seeds 3] [--epochs 8] [--jobs 1]

Prints a table of accuracies on held-out training images (a fifth, drawn by the seed), mean and standard deviation over
the seeds; the validation images are not read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

#: name -> what changes in (model, data); the first is the recipe as it is
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the recipe": ({}, {}),
    "layer decay 1 (none)": ({"layer_decay": 1.0}, {}),
    "layer decay 0.65": ({"layer_decay": 0.65}, {}),
    "lr 3e-5": ({"lr": 3e-5}, {}),
    "lr 3e-4": ({"lr": 3e-4}, {}),
    "EMA 0.99": ({"ema_decay": 0.99}, {}),
    "mixup 0.4": ({"mixup": 0.4}, {}),
    "drop path 0.1": ({"drop_path": 0.1}, {}),
    "label smoothing 0": ({"label_smoothing": 0.0}, {}),
    "RandAugment": ({}, {"policy": "randaugment"}),
    "crops from 0.7 of the area": ({}, {"crop_scale": [0.7, 1.0]}),
    "112 pixels": ({"image_size": 112}, {}),
    "head alone": ({"finetune": "head", "layer_decay": 1.0, "lr": 1e-2}, {}),
    "LoRA, lr 5e-4": ({"finetune": "lora", "layer_decay": 1.0, "lr": 5e-4}, {}),
    "LoRA, lr 2e-3": ({"finetune": "lora", "layer_decay": 1.0, "lr": 2e-3}, {}),
}


def one(job: tuple[str, int, dict[str, Any]]) -> tuple[str, int, float, float]:
    """(part, seed, accuracy, seconds) of one run."""
    import torch

    from visionzoo.auto.recipes import DataFacts, recipe
    from visionzoo.auto.trial import train_recipe
    from visionzoo.runs import RunFolder

    name, seed, options = job
    torch.set_num_threads(options["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = DataFacts(images=options["images"], classes=10, pixels=224)
    precision = options["precision"] or ("bf16-mixed" if device.type == "cuda" else "32-true")
    made = recipe("full", facts, options["epochs"], precision=precision, workers=options["workers"])
    model, data = PARTS[name]
    size = model.get("image_size", options["image_size"])
    made.model.update({k: v for k, v in model.items() if k != "image_size"})
    made.data.update(data)
    network = {"backbone": options["backbone"], "weights": options["weights"], "image_size": size}
    held = {"path": options["path"], "dev_fraction": 0.2, "eval_batch_size": 128}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcome = train_recipe(
            made,
            RunFolder(folder),
            held,
            network,
            deadline=begun + 1e6,
            to_beat=0.0,
            seed=seed,
            device=device,
            resume_command="",
        )
    return name, seed, 100 * outcome.accuracy, time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="path", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1600, help="training images, for the recipe")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--precision", help="as a trainer takes it; bf16-mixed on a GPU and 32-true elsewhere if left out"
    )
    parser.add_argument("--parts", nargs="*", default=list(PARTS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    jobs = [(name, seed, vars(args)) for seed in range(args.seeds) for name in args.parts]
    found: dict[str, list[float]] = {}
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for name, seed, accuracy, seconds in pool.map(one, jobs):
            found.setdefault(name, []).append(accuracy)
            print(f"{name}, seed {seed}: {accuracy:.2f} % in {seconds:.0f} s", flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(found, indent=1))
    for name, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:30s} {statistics.mean(values):6.2f} ± {spread:.2f} % ({len(values)} seeds)")


if __name__ == "__main__":
    main()
