"""What the data doctor finds of what was planted, and what it costs.

    python benchmarks/doctor.py --data.path IMAGENETTE --model vit_small_patch14_dinov2 --weights FILE
    python benchmarks/doctor.py --data.path FLICKR8K --model CLIP --jobs captions
    python benchmarks/doctor.py --jobs pairs --vectors 100000

``labels``: wrong labels among turned ones. ``twins``: six changes of each of some photographs. ``next``: accuracy by
the number of labels, chosen and drawn. ``drift``: splits of the images against each other, and the images changed.
``captions``: captions that were given to other images. ``pairs``: all pairs of random vectors, time and memory.
Features are kept; ``docs/doctor.md`` says what was measured.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from harness import Record, in_fresh_process, machine, table
from PIL import Image, ImageDraw, ImageFilter
from script import exit_code

from visionzoo.curation.choose import CHOICES, choose_next
from visionzoo.curation.drift import find_drift
from visionzoo.curation.labels import find_label_issues, label_quality
from visionzoo.curation.looks import look_at, looks_of
from visionzoo.curation.model import Eye, open_eye
from visionzoo.curation.probabilities import out_of_sample
from visionzoo.curation.texts import BADLY, caption_fit, knows
from visionzoo.curation.twins import find_twins, near_pairs
from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.captions import CaptionSource
from visionzoo.data.sources.open import open_data
from visionzoo.inference.features import SourceFeatures
from visionzoo.inference.frozen import fit_head
from visionzoo.inference.stream import Stream

JOBS = ("labels", "twins", "next", "drift", "captions", "pairs")
#: Penalty of the classifier by whose answers images are chosen, that of the doctor.
STRENGTH = 3e-2


@dataclass(frozen=True)
class Subject:
    """The data and the model that looks at them."""

    args: argparse.Namespace

    @cached_property
    def eye(self) -> Eye:
        """The model."""
        return open_eye(self.args.model, self.args.weights, self.args.image_size, self.args.device)

    @cached_property
    def splits(self) -> Splits[Any]:
        """The data."""
        if self.args.path is None:
            raise ValueError("--data.path is missing")
        return open_data(self.args.path, "captions" if self.args.jobs == ["captions"] else "labels", val_fraction=0.0)

    @cached_property
    def train(self) -> SourceFeatures:
        """Features of the training images."""
        return self.features(self.splits.first)

    def features(self, source: Source) -> SourceFeatures:
        """Features of some images, kept between runs."""
        return self.eye.features(source, self.args.cache, 32, "features")

    def of(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(N, D) features of pictures that lie in no file."""
        stream = Stream(self.eye.forward, self.eye.preprocess, next(self.eye.module.parameters()).device)
        found = stream.run(len(pictures), pictures.__getitem__, str, 32, "changed pictures")
        return np.concatenate([each.values.numpy() for each in found])


def labels(subject: Subject, seed: int) -> dict[str, float]:
    """One label in twenty turned: precision among as many as were turned, and of what is found."""
    rng = np.random.default_rng(seed)
    features, given = subject.train.values, subject.train.labels.copy()
    classes = len(subject.splits.classes)
    turned = rng.choice(len(given), len(given) // 20, replace=False)
    given[turned] = (given[turned] + rng.integers(1, classes, len(turned))) % classes
    asked = out_of_sample(features, given, classes, np.arange(len(given)), seed)
    assert asked is not None
    found = np.flatnonzero(find_label_issues(asked.values, given))
    worst = np.argsort(label_quality(asked.values, given), kind="stable")[: len(turned)]
    return {
        "right": asked.accuracy,
        "precision at k": float(np.isin(worst, turned).mean()),
        "precision": float(np.isin(found, turned).mean()),
        "recall": float(np.isin(turned, found).mean()),
    }


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def _cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    edge = 0.8 if rng.random() < 0.5 else 0.8**0.5  # 80 % of the edges, or of the area
    width, height = round(image.width * edge), round(image.height * edge)
    x, y = (int(rng.integers(0, room + 1)) for room in (image.width - width, image.height - height))
    return image.crop((x, y, x + width, y + height))


def _marked(image: Image.Image) -> Image.Image:
    marked = image.copy()
    size = max(8, image.height // 12)
    ImageDraw.Draw(marked).text((size, image.height - 2 * size), "(c) photographs", fill="white", font_size=size)
    return marked


def changes(image: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    """Six pictures that are made of one."""
    scale = rng.uniform(0.3, 0.7)
    degrees = rng.uniform(2, 7) * rng.choice([-1, 1])
    return {
        "jpeg": _jpeg(image, int(rng.integers(25, 61))),
        "resized": image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))),
        "cropped": _cropped(image, rng),
        "mirrored": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "turned": image.rotate(degrees, Image.Resampling.BILINEAR),
        "marked": _marked(image),
    }


def twins(subject: Subject, seed: int) -> dict[str, float]:
    """Six changes of each of some photographs, among all: recall by change, precision of the pairs."""
    rng = np.random.default_rng(seed)
    source, places = subject.splits.first, subject.train.places
    chosen = rng.choice(len(places), min(subject.args.photographs, len(places)), replace=False)
    names: list[str] = []
    pictures: list[Image.Image] = []
    for row in chosen:
        for name, picture in changes(source.read(int(places[row])), rng).items():
            names.append(name)
            pictures.append(picture)
    origin = np.concatenate([np.arange(len(places)), np.repeat(chosen, len(names) // len(chosen))])
    whole = np.stack([look_at(source.read(int(place))) for place in places])
    looks = looks_of(np.concatenate([whole, np.stack([look_at(picture) for picture in pictures])]))
    found = find_twins(looks, np.concatenate([subject.train.values, subject.of(pictures)]))
    first = len(places)
    pairs = {(twin.one, twin.other) for twin in found} | {(twin.other, twin.one) for twin in found}
    hit = np.array([(int(origin[first + i]), first + i) in pairs for i in range(len(pictures))])
    # pairs that the data hold by themselves are no mistake of the search, nor a success: they are counted apart
    planted = [twin for twin in found if max(twin.one, twin.other) >= first]
    right = [origin[twin.one] == origin[twin.other] for twin in planted]
    by_name = {f"recall, {name}": float(hit[np.array(names) == name].mean()) for name in dict.fromkeys(names)}
    return {
        "recall": float(hit.mean()),
        "precision": float(np.mean(right)),
        **by_name,
        "pairs of the data themselves": float(len(found) - len(planted)),
    }


def label_next(subject: Subject, seed: int) -> dict[str, Any]:
    """Accuracy on the held-out images by the number of labels, for each way to choose them."""
    step, most = subject.args.step, subject.args.most
    x, y = subject.train.values, subject.train.labels
    held = subject.features(subject.splits.to_evaluate)
    classes = len(subject.splits.classes)
    if most > len(x):
        raise ValueError(f"--most {most} is more than there are training images: {len(x)}")
    found: dict[str, Any] = {}
    for method in CHOICES:
        have = np.random.default_rng(seed).choice(len(x), step, replace=False)
        curve: dict[str, float] = {}
        while True:
            head = fit_head(x[have], y[have], classes, STRENGTH)
            curve[str(len(have))] = float((_answers(head, held.values).argmax(1) == held.labels).mean())
            if len(have) + step > most:
                break
            rest = np.setdiff1d(np.arange(len(x)), have)
            answers = _answers(head, x[rest])
            new = choose_next(
                x[rest], step, probabilities=answers, labelled=x[have], method=method, seed=seed + len(have)
            )
            have = np.concatenate([have, rest[new]])
        found[method] = curve
    return found


def _answers(head: Any, features: np.ndarray) -> np.ndarray:
    import torch

    answers: np.ndarray = head.logits(torch.from_numpy(features)).softmax(1).numpy()
    return answers


def needed(curves: Sequence[dict[str, dict[str, float]]], method: str) -> list[tuple[int, float, float]]:
    """(labels drawn, their accuracy, chosen labels that reach it) of mean curves, between points along a line.

    Args:
        curves: of every seed, as :func:`label_next` gives them.
        method: how the labels were chosen.
    """
    counts = [int(n) for n in curves[0]["random"]]
    drawn, chosen = (np.mean([list(each[name].values()) for each in curves], 0) for name in ("random", method))
    best = np.maximum.accumulate(chosen)
    rows = []
    for count, accuracy in zip(counts, drawn, strict=True):
        if (k := int(np.searchsorted(best, accuracy))) < len(best):
            less = 0.0 if k == 0 or best[k] == best[k - 1] else (best[k] - accuracy) / (best[k] - best[k - 1])
            rows.append((count, float(accuracy), counts[k] - less * (counts[k] - counts[k - 1] if k else 0)))
    return rows


#: What happens to photographs on their way.
DRIFTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as they are": lambda image: image,
    "JPEG at quality 10": partial(_jpeg, quality=10),
    "half as bright": lambda image: image.point(lambda value: value // 2),
    "blurred by 2 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "without colour": lambda image: image.convert("L").convert("RGB"),
}


def drift(subject: Subject, _seed: int) -> dict[str, float]:
    """Twenty splits of the images, none of which has drifted; then images changed, and other images."""
    x = subject.train.values
    alarms, times = 0, []
    for split in range(20):
        order = np.random.default_rng(split).permutation(len(x))
        half = find_drift(x[order[: len(x) // 2]], x[order[len(x) // 2 :]], seed=split)
        alarms += half.drifted
        times.append(half.times)
    found = {"false alarms of 20": float(alarms), "splits, mean": float(np.mean(times))}
    order = np.random.default_rng(0).permutation(len(x))
    later, before = order[: subject.args.arrived], order[subject.args.arrived :]
    pictures = [subject.splits.first.read(int(subject.train.places[row])) for row in later]
    for name, change in DRIFTS.items():
        after = x[later] if name == "as they are" else subject.of([change(picture) for picture in pictures])
        found[name] = find_drift(x[before], after).times
    if subject.args.other is not None:
        other = open_data(subject.args.other, "images", val_fraction=0.0).first
        found["other images"] = find_drift(x, subject.features(other).values).times
    return found


def captions(subject: Subject, seed: int) -> dict[str, float]:
    """One caption in twenty given to another image: precision among as many as were."""
    source = subject.splits.first
    assert isinstance(source, CaptionSource)
    seen = subject.train
    texts = [text for place in seen.places for text in source.captions(int(place))[:1]]
    given = subject.eye.texts(texts)
    rng = np.random.default_rng(seed)
    moved = rng.choice(len(texts), max(2, len(texts) // 20), replace=False)
    given[moved] = given[np.roll(moved, 1)]
    share, loss = caption_fit(seen.values, given, np.arange(len(texts)), subject.eye.scale, seed=seed)
    worst, found = np.argsort(-loss, kind="stable")[: len(moved)], np.flatnonzero(share > BADLY)
    return {
        "pairs": float(len(texts)),
        "precision at k": float(np.isin(worst, moved).mean()),
        "precision": float(np.isin(found, moved).mean()) if len(found) else 0.0,
        "recall": float(np.isin(moved, found).mean()),
        "usual share that fits better": float(np.median(share)),
        "judged": float(knows(share)),
    }


def pairs(args: argparse.Namespace) -> dict[str, float]:
    """All pairs of random vectors of 384 numbers, in a process of its own."""
    found = in_fresh_process(__file__, "--alone", str(args.vectors))
    return {key: float(value) for key, value in found.items()}


def _alone(count: int) -> dict[str, float]:
    import resource

    vectors = np.random.default_rng(0).standard_normal((count, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near_pairs(vectors[:2048], vectors[:2048], 0.3)  # libraries are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    found = near_pairs(vectors, vectors, 0.3)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"vectors": count, "pairs": len(found), "wall seconds": wall, "CPU seconds": cpu, "more GiB": more}


def _measured(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    found = measure()
    flat = {k: v for k, v in found.items() if not isinstance(v, dict)}
    print(table(list(flat), [[f"{v:.3f}" for v in flat.values()]]) if flat else "done", flush=True)
    return {"found": found}


def _say_next(results: dict[str, Any]) -> None:
    curves = [row["found"] for key, row in results.items() if key.startswith("next")]
    counts = list(curves[0]["random"])
    means = {name: np.mean([list(each[name].values()) for each in curves], 0) for name in CHOICES}
    print(table(["labels", *counts], [[name, *(f"{v:.3f}" for v in values)] for name, values in means.items()]))
    for method in ("badge", "coreset"):
        for count, accuracy, labels_needed in needed(curves, method):
            share = labels_needed / count
            print(f"{method}: what {count} drawn labels reach ({accuracy:.3f}) takes {labels_needed:.0f} ({share:.0%})")


def run(argv: Sequence[str]) -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="path", help="labelled images with held-out ones, or captions")
    parser.add_argument("--model", help="as of `visionzoo data doctor`")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int, dest="image_size")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=["labels", "twins", "next", "drift"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of labels, next and captions")
    parser.add_argument("--photographs", type=int, default=250, help="of twins: how many are changed")
    parser.add_argument("--step", type=int, default=50, help="of next: labels at a time")
    parser.add_argument("--most", type=int, default=800, help="of next: labels in the end")
    parser.add_argument("--arrived", type=int, default=200, help="of drift: images that are changed")
    parser.add_argument("--other", help="of drift: a folder of other images")
    parser.add_argument("--vectors", type=int, default=100_000, help="of pairs")
    parser.add_argument("--cache", help="folder of features; by default the user's cache")
    parser.add_argument("--device")
    parser.add_argument("--out", help="JSON file; by default benchmarks/results/doctor-cpu.json")
    args = parser.parse_args(argv)
    subject = Subject(args)
    record = Record("doctor-cpu", {"machine": machine()}, args.out)
    several = {"labels": labels, "next": label_next, "captions": captions}
    once = {"twins": twins, "drift": drift}
    for job in args.jobs:
        print(f"\n{job}", flush=True)
        if job == "pairs":
            record.row(job, partial(_measured, partial(pairs, args)))
        for seed in args.seeds if job in several else []:
            record.row(f"{job}, seed {seed}", partial(_measured, partial(several[job], subject, seed)))
        if job in once:
            record.row(job, partial(_measured, partial(once[job], subject, 0)))
        if job == "next":
            _say_next(record.value["results"])
    record.finish()
    return 0


def main(argv: Sequence[str]) -> int:
    """Returns 0; 2 for the user's error, 130 when interrupted."""
    if list(argv[:1]) == ["--alone"]:
        import json

        print(json.dumps(_alone(int(argv[1]))))
        return 0
    return exit_code(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
