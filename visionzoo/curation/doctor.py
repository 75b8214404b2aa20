"""``visionzoo data doctor``: what is wrong with a data set, and what to do about it.

Legend: N images, D width of the features, K classes.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionzoo.curation.choose import CHOICES, Choice, choose_next
from visionzoo.curation.drift import LEAST, Drift, find_drift
from visionzoo.curation.examined import Examined, examine
from visionzoo.curation.findings import LISTS, Findings, SliceFinding
from visionzoo.curation.judge import (
    caption_findings,
    label_findings,
    mask_findings,
    odd_finding,
    twin_finding,
    unreadable_finding,
)
from visionzoo.curation.model import Eye, open_eye
from visionzoo.curation.odd import odd_features, odd_looks
from visionzoo.curation.page import write_doctor_page
from visionzoo.curation.twins import find_twins
from visionzoo.curation.write import write_clean
from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.folder import open_unlabelled
from visionzoo.data.sources.open import kind_of, open_data
from visionzoo.data.sources.reading import CaptionReading, Kind, LabelReading, check_choice
from visionzoo.files import write_json
from visionzoo.inference.frozen import fit_head
from visionzoo.inference.stream import Unreadable

#: The page, the findings and the data without them, in the folder of results.
PAGE, FOUND = "doctor.html", "findings.json"
#: Weight of the classifier's penalty by which images to label next are doubted.
_STRENGTH = 3e-2


def data_doctor(
    path: str | os.PathLike[str],
    *,
    model: str | Path | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    label_next: int = 0,
    unlabelled: str | None = None,
    choice: Choice = "badge",
    against: str | None = None,
    out: str | Path | None = None,
    batch_size: int = 32,
    seed: int = 0,
    cache: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Findings:
    """Look for wrong labels, twins and leaks, odd images, weak slices, captions that do not fit and faults of masks.

    What was computed of each image is kept, so that a look that was broken off goes on.

    Args:
        path: anything that ``--data.path`` of a task takes.
        model: a run of any task, a backbone's name, or a CLIP. None for the backbone that ``fit`` takes; where its
            weights are not at hand only pixels are looked at, and ``said`` says so.
        weights: for a backbone's name.
        image_size: the same, in pixels.
        label_next: how many images without a label to choose for labelling.
        unlabelled: a folder of images without labels to choose from; None for those of ``path``.
        choice: how they are chosen: ``badge``, ``coreset`` or ``random``.
        against: a folder of images that arrived later, to be compared with the training images.
        out: folder for ``doctor.html``, ``findings.json`` and the data set without what was found; None writes nothing.
        batch_size: images sent through the model at a time.
        seed: of folds, clusters, splits and draws.
        cache: folder for features; None for the user's cache.
        device: None for a GPU where there is one, otherwise the CPU.

    Raises:
        FileNotFoundError: for data or a model that are not there.
        ValueError: for data that cannot be opened, a folder that holds something else, or an option out of range.
    """
    path = os.fspath(path)
    check_choice("choice", choice, CHOICES)
    if label_next < 0:
        raise ValueError(f"label_next={label_next} must be at least 0")
    target = _checked_out(out, path)
    kind, splits, said = _opened(path, seed)
    pool = None if unlabelled is None else open_unlabelled(unlabelled)
    later = None if against is None else open_unlabelled(against)
    try:
        eye: Eye | None = open_eye(model, weights, image_size, device)
    except FileNotFoundError as error:
        if model is not None or weights is not None:
            raise
        eye = None
        said.append(f"only pixels were looked at, and no labels: {error}")
    _check_asked(splits, eye, pool, label_next, later)
    images = examine(kind, splits, eye, cache, batch_size)
    found = [unreadable_finding(name, one) for name, several in images.unreadable.items() for one in several]
    twins = find_twins(images.looks, images.features)
    found += [twin_finding(images, twin) for twin in twins]
    odd = odd_looks(images.looks)
    single = bool(splits.classes) and not splits.multi_label
    if images.features is not None:
        odd += odd_features(images.features, images.targets if single else None, splits.classes)
    found += [odd_finding(images, one) for one in odd]
    slices: tuple[SliceFinding, ...] = ()
    accuracy = None
    if images.features is not None and splits.classes:
        labels = label_findings(images, twins, seed, said)
        found += labels.findings
        slices, accuracy = labels.slices, labels.accuracy
    if kind == "objects":
        found += list(mask_findings(images))
    if kind == "captions":
        found += caption_findings(images, eye, said, seed)
    chosen: tuple[str, ...] = ()
    if label_next:
        chosen = _label_next(images, eye, pool, label_next, choice, seed, cache, batch_size, said)
    drift = None if later is None else _drift(images, eye, later, cache, batch_size, seed, said)
    order = list(LISTS)
    found.sort(key=lambda f: (order.index(f.reason), -f.score, f.image))
    answer = Findings(
        path=path,
        kind=kind,
        model="" if eye is None else eye.name,
        images={name: len(source) for name, source in splits.items()},
        classes=splits.classes,
        findings=tuple(found),
        slices=slices,
        label_next=chosen,
        accuracy=accuracy,
        drift=drift,
        said=tuple(said),
    )
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / FOUND, answer.to_dict())
        write_clean(target, splits, kind, answer)
        write_doctor_page(target / PAGE, answer, splits)
    return answer


def _checked_out(out: str | Path | None, path: str) -> Path | None:
    if out is None:
        return None
    target = Path(out)
    if Path(path).resolve().is_relative_to(target.resolve()) and os.path.exists(path):
        raise ValueError(f"--out {target} holds the data themselves; name a new folder")
    if target.exists() and not target.is_dir():
        raise ValueError(f"--out {target} is a file; name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / FOUND).is_file():
        raise ValueError(f"--out {target} holds other files; name a new folder")
    there = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.is_dir())
    if not os.access(there, os.W_OK):
        raise ValueError(f"--out {target}: nothing can be written in {there}; name another folder")
    return target


def _check_asked(
    splits: Splits[Any], eye: Eye | None, pool: Source | None, label_next: int, later: Source | None
) -> None:
    """Refuse, before an hour of looking, what cannot be answered after it."""
    if eye is None and (label_next or later is not None):
        raise ValueError(f"{'--label-next' if label_next else '--against'} needs a model; give --model M")
    sources = [source for _, source in splits.items()] if pool is None else [pool]
    have = sum(not source.has_label(i) for source in sources for i in range(len(source)))
    if label_next > have:
        raise ValueError(
            f"--label-next {label_next}: there are {have} images without a label; give --unlabelled FOLDER, or fewer"
        )
    if later is not None and len(later) < LEAST:
        raise ValueError(f"--against has {len(later)} images; drift needs {LEAST} or more")


def _opened(path: str, seed: int) -> tuple[Kind, Splits[Any], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind = kind_of(path)
        options: dict[str, Any] = {
            "labels": LabelReading(seed=seed),
            "captions": CaptionReading(templates="{}", seed=seed),
        }
        splits = open_data(path, kind, options.get(kind), val_fraction=0.0)
    said = [str(w.message) for w in caught if "val_fraction" not in str(w.message)]
    said += [f"passed over: {name}: {reason}" for name, reason in splits.problems[:20]]
    return kind, splits, said


def _label_next(
    images: Examined, eye: Eye | None, pool: Source | None, count: int, choice: Choice, seed: int,
    cache: str | Path | None, batch: int, said: list[str],
) -> tuple[str, ...]:  # fmt: skip
    assert eye is not None
    assert images.features is not None
    multi = images.splits.multi_label
    known = (images.targets[:, 0] if multi else images.targets) >= 0
    if pool is None:
        rows = np.flatnonzero(~known)
        features = images.features[rows]
        names = [images.source(r).sample_id(int(images.places[r])) for r in rows.tolist()]
    else:
        given = eye.features(pool, cache, batch, "features of unlabelled images")
        features, names = given.values, [pool.sample_id(int(p)) for p in given.places]
        said += _passed_over(given.unreadable, "images to choose from")
    if not names:
        return ()
    count = min(count, len(names))
    labels = images.targets[known]
    probabilities = None
    if not multi and len(np.unique(labels)) > 1:
        head = fit_head(images.features[known], labels, len(images.splits.classes), _STRENGTH)
        probabilities = head.logits(torch.from_numpy(features)).softmax(1).numpy()
    rows = choose_next(
        features, count, probabilities=probabilities, labelled=images.features[known], method=choice, seed=seed
    )
    return tuple(names[r] for r in rows)


def _drift(
    images: Examined, eye: Eye | None, later: Source, cache: str | Path | None, batch: int, seed: int, said: list[str]
) -> Drift | None:
    assert eye is not None
    assert images.features is not None
    before = images.features[images.split_of == images.split_of[0]]
    after = eye.features(later, cache, batch, "features of what arrived")
    said += _passed_over(after.unreadable, "images that arrived")
    if (least := min(len(before), len(after.values))) < LEAST:
        said.append(f"drift was not asked for: it needs {LEAST} images on either side, and one has {least}")
        return None
    return find_drift(before, after.values, seed=seed)


def _passed_over(unreadable: tuple[Unreadable, ...], what: str) -> list[str]:
    if not unreadable:
        return []
    first = unreadable[0]
    return [f"{len(unreadable):,} of the {what} cannot be read, the first is {first.name}: {first.reason}"]
