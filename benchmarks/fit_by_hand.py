"""Is ``visionzoo fit`` as good as the best of k-NN, probe, LoRA and full fine-tuning, each by hand with our recipes?

By hand: ``visionzoo probe`` for the first two; for the others the recipe of ``visionzoo.auto.recipes`` with the epochs
it wants, on all training images, beginning with a random head, the best epoch chosen on the held-out images (as
``train.py`` does, which flatters it). ``fit`` sees the held-out images once.

    python benchmarks/fit_by_hand.py SET [--data FOLDER] [--minutes 3] [--weights W] [--backbone B] [--image-size P]

SET: digits, shapes, imagenette, cifar10, crops (objects cut out of coco_things), or any other below FOLDER.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from visionzoo.auto.fit import fit
from visionzoo.auto.recipes import DataFacts, Method, recipe, wanted_epochs
from visionzoo.auto.result import Fitted
from visionzoo.cli.train import run as train
from visionzoo.data.sources.open import open_data
from visionzoo.inference.device import resolve_device
from visionzoo.inference.probe import probe

LEAST_EDGE = 32  #: pixels of an object that is cut out
LEAST_IMAGES = 8  #: training images of a class that is taken


def crops(source: Path, out: Path) -> None:
    """Cut the objects of a COCO folder out of their pictures, into class folders; classes with few are left out."""
    from PIL import Image

    objects: dict[str, list[tuple[str, dict[str, Any], Path]]] = {}
    for split in ("train", "val"):
        annotations = json.loads((source / f"instances_{split}.json").read_text())
        names = {c["id"]: c["name"] for c in annotations["categories"]}
        files = {i["id"]: source / split / i["file_name"] for i in annotations["images"]}
        for entry in annotations["annotations"]:
            if not entry.get("iscrowd") and min(entry["bbox"][2:]) >= LEAST_EDGE:
                objects.setdefault(names[entry["category_id"]], []).append((split, entry, files[entry["image_id"]]))
    for name, found in objects.items():
        if sum(split == "train" for split, _, _ in found) < LEAST_IMAGES:
            continue
        for split, entry, file in found:
            folder = out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            x, y, w, h = entry["bbox"]
            with Image.open(file) as picture:
                picture.convert("RGB").crop((x, y, x + w, y + h)).save(folder / f"{entry['id']}.png")


def by_hand(method: Method, path: str, network: dict[str, Any], mirrors: bool, device: torch.device) -> list[float]:
    """Accuracies on the held-out images after each epoch of ``train.py classify fit`` with our recipe."""
    splits = open_data(path)
    assert splits.train is not None
    images = len(splits.train)
    facts = DataFacts(
        images=images, classes=len(splits.classes), pixels=min(splits.train.read(0).size), mirrors=mirrors
    )
    precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    workers = max(1, min(4, (os.cpu_count() or 2) - 1))
    made = recipe(method, facts, wanted_epochs(method, images), precision=precision, workers=workers)
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "model": {**network, **made.model},
            "data": {**made.data, "path": path, "eval_batch_size": 128},
            "trainer": made.trainer,
            "run_dir": f"{folder}/run",
        }
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config))
        if train(["classify", "fit", "--config", f"{folder}/config.yaml"]) != 0:
            raise SystemExit(f"{method} on {path} failed")
        with open(f"{folder}/run/metrics.csv", encoding="utf-8") as file:
            return [float(row["val/accuracy"]) for row in csv.DictReader(file) if row.get("val/accuracy")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--weights")
    parser.add_argument("--backbone", help="none for a run folder, which knows its own, and its size")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = resolve_device(None)
    path = str(args.data / args.set)
    scratch = tempfile.TemporaryDirectory()
    if args.set in ("digits", "shapes"):
        path = args.set
    elif args.set == "crops":
        crops(args.data / "coco_things", Path(scratch.name))
        path = scratch.name
    found: dict[str, float] = {}
    minutes: dict[str, float] = {}

    def timed(name: str, run) -> None:  # type: ignore[no-untyped-def]
        begun = time.monotonic()
        found[name] = 100 * run()
        minutes[name] = (time.monotonic() - begun) / 60
        print(
            args.set,
            {k: round(v, 2) for k, v in found.items()},
            {k: round(v, 2) for k, v in minutes.items()},
            flush=True,
        )

    given = {"backbone": args.backbone, "weights": args.weights, "image_size": args.image_size}
    network = {name: value for name, value in given.items() if value is not None}
    reports = []

    def frozen() -> float:
        reports.append(
            probe(args.weights, path)
            if args.backbone is None
            else probe(args.backbone, path, weights=args.weights, image_size=args.image_size)
        )
        return reports[0].linear

    timed("probe", frozen)
    found["k-NN"], minutes["k-NN"] = 100 * reports[0].knn, 0.0
    mirrors = args.set not in ("digits",)
    methods: tuple[Method, ...] = ("lora", "full")
    for method in methods:
        curve: list[float] = []

        def trained(method: Method = method, curve: list[float] = curve) -> float:
            curve += by_hand(method, path, network, mirrors, device)
            return max(curve)

        timed(method, trained)
        print(f"{args.set}, {method}: {100 * curve[-1]:.2f} % after the last epoch", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"

        def fitted() -> float:
            fit(
                path,
                minutes=args.minutes,
                backbone=args.backbone,
                weights=args.weights,
                image_size=args.image_size,
                out=run,
            )
            return Fitted.read(run).final_accuracy or 0.0

        timed("fit", fitted)
        result = {
            "set": args.set,
            "accuracy": found,
            "minutes": minutes,
            "fit": json.loads((run / "fit.json").read_text()),
        }
    best = max(value for name, value in found.items() if name != "fit")
    print(f"{args.set}: best by hand {best:.2f} %, fit {found['fit']:.2f} % ({found['fit'] - best:+.2f})", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1))
    scratch.cleanup()


if __name__ == "__main__":
    main()
