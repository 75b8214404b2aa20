"""Make a model that comes with the package out of a run::

    python -m visionzoo.inference.embed_model RUN digits --reached "98.3 % of 359 held-out digits" --data.path digits

The weights are halved to float16 where that changes no answer on held-out data; what changes one is refused.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from visionzoo.data.images import open_image
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.shapes import COMBINATIONS
from visionzoo.data.transforms import EvalTransform
from visionzoo.embedded import EMBEDDED, embedded_names
from visionzoo.inference.classifier import ImageClassifier
from visionzoo.inference.sam_predictor import SamPredictor
from visionzoo.inference.score import open_labelled
from visionzoo.inference.zero_shot import ZeroShotClassifier
from visionzoo.limits import in_units
from visionzoo.models.bundle import WEIGHTS_FILE, load_bundle, save_bundle
from visionzoo.models.preprocess import Normalize
from visionzoo.runs.folder import RunFolder
from visionzoo.terminal import say

#: All embedded models together, in bytes.
MOST_BYTES = 15 * 10**6
#: Held-out images that both precisions answer for.
COMPARED = 200


class Origin(NamedTuple):
    """What a card says beside the run's own facts."""

    title: str
    data: str
    licence: str
    commands: tuple[str, ...]


ORIGINS = {
    "digits": Origin(
        "Handwritten digits",
        "scikit-learn's handwritten digits: 1,797 scans of 8 x 8 pixels (UCI, Optical Recognition of Digits)",
        "data CC BY 4.0 (UCI), weights Apache-2.0",
        ("python train.py classify fit --config configs/classify/digits.yaml",),
    ),
    "shapes": Origin(
        "Coloured shapes and their words",
        'the built-in set `shapes`: pictures drawn by this package, with captions such as "a red circle"',
        "data and weights Apache-2.0",
        ("python train.py clip fit --config configs/clip/shapes.yaml --model.text_width 64",),
    ),
    "shapes-mae": Origin(
        "Coloured shapes with patches hidden",
        "the built-in set `shapes`: pictures drawn by this package",
        "data and weights Apache-2.0",
        ("python train.py mae fit --config configs/mae/shapes.yaml",),
    ),
    "nuclei": Origin(
        "Nuclei by a click",
        "BBBC038v1 of the Broad Bioimage Benchmark Collection (2018 Data Science Bowl): microscope images of nuclei",
        "data CC0 1.0, weights Apache-2.0",
        (
            "python train.py segment fit --config configs/segment/nuclei_zoom.yaml --data.path NUCLEI "
            "--run_dir runs/zoom",
            "python train.py segment fit --config configs/segment/nuclei.yaml --data.path NUCLEI "
            "--model.weights runs/zoom",
        ),
    ),
}


def embed_model(run: str | Path, name: str, reached: str, path: str) -> Path:
    """Put the model of a run into the package.

    Args:
        run: run folder.
        name: one of :data:`ORIGINS`.
        reached: the number on its card, with what it was measured on.
        path: held-out data on which the answers in float16 are compared, as ``--data.path``.

    Raises:
        ValueError: for an unknown name, answers that float16 changes, or more than :data:`MOST_BYTES` in all.
    """
    if name not in ORIGINS:
        raise ValueError(f"{name!r} has no entry in ORIGINS; there are {', '.join(ORIGINS)}")
    model, config = load_bundle(run)
    target, temporary = EMBEDDED / name, EMBEDDED / f".{name}.new"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        halves = {k: v.half() if v.dtype == torch.float32 else v for k, v in model.state_dict().items()}
        save_bundle(model, config, temporary, state_dict=halves)
        compared = _compare(config.task, run, temporary, path)
        others = sum((EMBEDDED / n / WEIGHTS_FILE).stat().st_size for n in embedded_names() if n != name)
        size = (temporary / WEIGHTS_FILE).stat().st_size
        if size + others > MOST_BYTES:
            raise ValueError(f"{in_units(size)} beside {in_units(others)}: all must stay below {in_units(MOST_BYTES)}")
        if (answers := RunFolder(run).answers).is_file():  # for the demo, which shows what it takes for what
            shutil.copy(answers, temporary)
        (temporary / "card.md").write_text(_card(name, config.task, model, size, reached, compared), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _card(name: str, task: str, model: nn.Module, size: int, reached: str, compared: str) -> str:
    origin = ORIGINS[name]
    height, width = model.image_size  # type: ignore[misc]
    facts = {
        "task": task,
        "data": origin.data,
        "licence": origin.licence,
        "command": ", then ".join(f"`{command}`" for command in origin.commands),
        "reached": reached,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "input": f"{height}x{width} pixels",
        "file": f"{in_units(size)}, float16; {compared}",
        "load": f'`weights="embedded"` or `embedded:{name}` wherever a run or weights are named',
    }
    return f"# {origin.title}\n\n" + "".join(f"- **{key}**: {value}\n" for key, value in facts.items())


def _compare(task: str, run: str | Path, halved: Path, path: str) -> str:
    """What was compared, in words. Raises ValueError where an answer changes."""
    compare: dict[str, Callable[..., tuple[int, int, str]]] = {
        "classify": _labels, "clip": _words, "mae": _reconstructions, "segment": _masks,
    }  # fmt: skip
    same, total, what = compare[task](run, halved, path)
    if same != total:
        raise ValueError(f"float16 changes {total - same} of {total} {what} on {path}")
    return f"the same {what} as in float32 for all of {total} held-out images"


def _labels(run: str | Path, halved: Path, path: str) -> tuple[int, int, str]:
    images = _held_out(path)
    first, second = (ImageClassifier.load(f, "cpu").probabilities(images).argmax(1) for f in (run, halved))
    return int((first == second).sum()), len(images), "labels"


def _words(run: str | Path, halved: Path, path: str) -> tuple[int, int, str]:
    images, labels = _held_out(path), [" ".join(pair) for pair in COMBINATIONS]
    first, second = (
        ZeroShotClassifier.load(f, labels, "a {}", device="cpu").probabilities(images).argmax(1) for f in (run, halved)
    )
    return int((first == second).sum()), len(images), "labels"


def _reconstructions(run: str | Path, halved: Path, path: str) -> tuple[int, int, str]:
    models: list[Any] = [load_bundle(f)[0] for f in (run, halved)]
    transform, normalize = EvalTransform(models[0].preprocess), Normalize(models[0].preprocess)
    images = normalize(torch.stack([transform(open_image(image)) for image in _held_out(path)]))
    rows, columns = models[0].grid_of(tuple(images.shape[2:]))
    noise = torch.rand(len(images), rows * columns, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = (normalize.invert(model.reconstruct(images, noise).reconstruction).int() for model in models)
    same = (first - second).abs().amax((1, 2, 3)) <= 2
    return int(same.sum()), len(images), "reconstructions (2 of 255 levels)"


def _held_out(path: str) -> list[Any]:
    source = open_labelled(path)
    return [source.read(i) for i in range(min(COMPARED, len(source)))]


def _masks(run: str | Path, halved: Path, path: str) -> tuple[int, int, str]:
    source: Any = open_data(path, "objects").val
    predictors = [SamPredictor.load(f, "cpu") for f in (run, halved)]
    count, same = min(20, len(source)), 0
    for i in range(count):
        picture, objects = source.pair(i)
        rows, columns = np.nonzero(objects.mask(0))
        middle = len(rows) // 2
        click = np.array([[columns[middle] + 0.5, rows[middle] + 0.5]])
        masks = []
        for predictor in predictors:
            predictor.set_image(picture)
            masks.append(predictor.predict(click, np.array([1]), multimask_output=False)[0][0])
        union = np.logical_or(*masks).sum()
        same += bool(not union or np.logical_and(*masks).sum() / union > 0.98)
    return same, count, "masks (IoU above 0.98)"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="put the model of a run into the package")
    parser.add_argument("run")
    parser.add_argument("name", choices=sorted(ORIGINS))
    parser.add_argument("--reached", required=True)
    parser.add_argument("--data.path", dest="path", required=True)
    args = parser.parse_args()
    folder = embed_model(args.run, args.name, args.reached, args.path)
    say(f"{folder}: {in_units((folder / WEIGHTS_FILE).stat().st_size)}")


if __name__ == "__main__":
    main()
