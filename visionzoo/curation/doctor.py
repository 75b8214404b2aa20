"""``visionzoo data doctor``: what is wrong with a data set, and what to do about it.

Legend: N images, D width of the features, K classes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionzoo.cache import Cache
from visionzoo.curation.choose import CHOICES, Choice, choose_next
from visionzoo.curation.drift import LEAST, Drift, find_drift
from visionzoo.curation.findings import LISTS, Finding, Findings, SliceFinding
from visionzoo.curation.labels import find_label_issues, find_multi_label_issues, label_quality
from visionzoo.curation.looks import Looks, look
from visionzoo.curation.model import Eye, open_eye
from visionzoo.curation.objects import mask_faults
from visionzoo.curation.odd import Odd, odd_features, odd_looks
from visionzoo.curation.page import write_doctor_page
from visionzoo.curation.probabilities import better_than_chance, out_of_sample, out_of_sample_multi
from visionzoo.curation.slices import weak_slices
from visionzoo.curation.texts import BADLY, WEAKLY, caption_fit, knows
from visionzoo.curation.twins import Twin, find_twins
from visionzoo.curation.write import write_clean
from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.captions import CaptionSource
from visionzoo.data.sources.folder import open_unlabelled
from visionzoo.data.sources.objects import ObjectSource
from visionzoo.data.sources.open import kind_of, open_data
from visionzoo.data.sources.reading import CaptionReading, Kind, LabelReading, check_choice
from visionzoo.files import write_json
from visionzoo.inference.frozen import fit_head
from visionzoo.inference.progress import track
from visionzoo.inference.stream import Unreadable

#: The page, the findings and the data without them, in the folder of results.
PAGE, FOUND = "doctor.html", "findings.json"
#: Weight of the classifier's penalty by which images to label next are doubted.
_STRENGTH = 3e-2


@dataclass
class _Images:
    """All images of a data set that could be read, split after split."""

    kind: Kind
    splits: Splits[Any]
    split_of: np.ndarray  #: (N,) number of the split
    places: np.ndarray  #: (N,) position in the split
    targets: np.ndarray  #: (N,) or (N, K)
    looks: Looks
    features: np.ndarray | None
    unreadable: dict[str, tuple[Unreadable, ...]]

    @property
    def names(self) -> list[str]:
        """Of the splits, in order."""
        return [name for name, _ in self.splits.items()]

    def source(self, row: int) -> Source:
        """That of an image."""
        found: Source = self.splits.items()[self.split_of[row]][1]
        return found

    def label(self, row: int) -> str:
        """The label of an image in words; empty where it has none."""
        target = self.targets[row]
        if self.splits.multi_label:
            return "" if target[0] < 0 else "|".join(self.splits.classes[k] for k in np.flatnonzero(target > 0))
        return self.splits.classes[int(target)] if target >= 0 and self.splits.classes else ""

    def finding(self, reason: str, row: int, text: str, score: float, **more: Any) -> Finding:
        """A finding on one image."""
        place = int(self.places[row])
        return Finding(
            reason=reason,
            split=self.names[self.split_of[row]],
            place=place,
            image=self.source(row).sample_id(place),
            text=text,
            score=float(score),
            label=self.label(row),
            **more,
        )


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
    images = _looked_at(kind, splits, eye, cache, batch_size)
    found = [_unreadable(name, one) for name, several in images.unreadable.items() for one in several]
    twins = find_twins(images.looks, images.features)
    found += [_twin(images, twin) for twin in twins]
    odd = odd_looks(images.looks)
    single = bool(splits.classes) and not splits.multi_label
    if images.features is not None:
        odd += odd_features(images.features, images.targets if single else None, splits.classes)
    found += [_odd(images, one) for one in odd]
    slices: tuple[SliceFinding, ...] = ()
    accuracy = None
    if images.features is not None and splits.classes:
        labels = _label_findings(images, twins, seed, said)
        found += labels.findings
        slices, accuracy = labels.slices, labels.accuracy
    if kind == "objects":
        found += list(_mask_findings(images))
    if kind == "captions":
        found += _caption_findings(images, eye, said, seed)
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


def _looked_at(kind: Kind, splits: Splits[Any], eye: Eye | None, cache: str | Path | None, batch: int) -> _Images:
    """Every image, once by its pixels and once by the model; those stay that both could read."""
    store = Cache("features", cache)
    parts = []
    unreadable: dict[str, tuple[Unreadable, ...]] = {}
    for number, (name, source) in enumerate(splits.items()):
        looks, seen = look(source, store, title=f"pixels of {name}")
        unreadable[name] = seen.unreadable
        places, features = seen.places, None
        if eye is not None and len(places):
            given = eye.features(source, cache, batch, f"features of {name}")
            both, here, there = np.intersect1d(places, given.places, return_indices=True)
            looks, places, features = looks.take(here), both, given.values[there]
        parts.append((number, places, source.targets[places], looks, features))
    parts = [part for part in parts if len(part[1])]
    if not parts:
        raise ValueError(
            "none of the images can be read: " + "; ".join(u.reason for u in unreadable[next(iter(unreadable))][:3])
        )
    return _Images(
        kind,
        splits,
        np.concatenate([np.full(len(places), number) for number, places, *_ in parts]),
        np.concatenate([places for _, places, *_ in parts]),
        np.concatenate([targets for _, _, targets, *_ in parts]),
        Looks(*(np.concatenate([getattr(p[3], name) for p in parts]) for name in ("measures", "thumbnails"))),
        None if eye is None else np.concatenate([p[4] for p in parts if p[4] is not None]),
        unreadable,
    )


def _unreadable(split: str, one: Unreadable) -> Finding:
    return Finding(reason="unreadable", split=split, place=one.position, image=one.name, text=one.reason, score=0.0)


def _twin(images: _Images, twin: Twin) -> Finding:
    """Of two splits the later one is what is measured on; the finding is on the other, which can go."""
    one, other = sorted((twin.one, twin.other), key=lambda row: (images.split_of[row], -row))
    across = images.split_of[one] != images.split_of[other]
    split, place = images.names[images.split_of[other]], int(images.places[other])
    name = images.source(other).sample_id(place)
    differ = ""
    if (labels := {images.label(one), images.label(other)}) and len(labels) == 2:
        differ = f", with another label: {images.label(one) or 'none'} and {images.label(other) or 'none'}"
    text = f"{twin.how} as {name}" + (f" of {split}" if across else "") + differ
    more = {"other": name, "other_split": split, "other_place": place}
    return images.finding("leak" if across else "twin", one, text, twin.alike, **more)


def _odd(images: _Images, odd: Odd) -> Finding:
    return images.finding(odd.reason, odd.row, odd.text, odd.score)


@dataclass
class _LabelFindings:
    findings: list[Finding]
    slices: tuple[SliceFinding, ...] = ()
    accuracy: float | None = None


def _label_findings(images: _Images, twins: list[Twin], seed: int, said: list[str]) -> _LabelFindings:
    assert images.features is not None
    classes = images.splits.classes
    multi = images.splits.multi_label
    rows = np.flatnonzero((images.targets[:, 0] if multi else images.targets) >= 0)
    labels = images.targets[rows]
    features, groups = images.features[rows], _groups(len(images.places), twins)[rows]
    if multi:
        if len(np.unique(groups)) < 10:
            said.append(f"wrong labels were not looked for: {len(rows)} labelled images are too few")
            return _LabelFindings([])
        found = out_of_sample_multi(features, labels, groups, seed)
        issues = find_multi_label_issues(found.values, labels)
        findings = []
        for i in np.flatnonzero(issues.any(1)):
            wrong = np.flatnonzero(issues[i])
            gone = [f"{classes[k]} ({found.values[i, k]:.0%})" for k in wrong if labels[i, k]]
            come = [f"{classes[k]} ({found.values[i, k]:.0%})" for k in wrong if not labels[i, k]]
            text = "; ".join(f"{word} {', '.join(names)}" for word, names in (("not", gone), ("also", come)) if names)
            better = "|".join(classes[k] for k in np.flatnonzero((labels[i] > 0) ^ issues[i]))
            score = abs(found.values[i, wrong] - labels[i, wrong]).max()
            findings.append(images.finding("wrong label", rows[i], text, score, suggestion=better))
        return _LabelFindings(findings, accuracy=found.accuracy)
    asked = out_of_sample(features, labels, len(classes), groups, seed)
    if asked is None:
        said.append("wrong labels were not looked for: no class has two different images, so none can be held out")
        return _LabelFindings([])
    if not better_than_chance(asked, labels):
        said.append(
            f"wrong labels were not judged: the model does not tell the classes apart ({asked.accuracy:.0%} right out "
            f"of sample, and {np.bincount(labels).max() / len(labels):.0%} of the labels are of one class)"
        )
        return _LabelFindings([], accuracy=asked.accuracy)
    issues, quality = find_label_issues(asked.values, labels), label_quality(asked.values, labels)
    best = asked.values.argmax(1)
    findings = [
        images.finding(
            "wrong label",
            rows[i],
            f"{classes[best[i]]} {asked.values[i, best[i]]:.0%}, {classes[labels[i]]} {quality[i]:.1%}",
            1 - quality[i],
            suggestion=classes[best[i]],
        )
        for i in np.flatnonzero(issues)
    ]
    parts = weak_slices(best == labels, labels, classes, features, images.looks.take(rows), seed=seed)
    slices = tuple(
        SliceFinding(name=s.name, images=len(s.rows), accuracy=s.accuracy, rest=s.rest, p=s.p, weak=s.weak)
        for s in parts
    )
    return _LabelFindings(findings, slices, asked.accuracy)


def _groups(count: int, twins: list[Twin]) -> np.ndarray:
    """(N,) number of the group of each image: twins, and twins of twins, are in one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    one, other = [t.one for t in twins], [t.other for t in twins]
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(count, count))
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found


def _mask_findings(images: _Images) -> Iterator[Finding]:
    rows = range(len(images.places))
    for row in track(rows, len(images.places), "masks"):
        source = images.source(row)
        assert isinstance(source, ObjectSource)
        try:
            faults = mask_faults(source.objects(int(images.places[row])))
        except UnreadableImage as error:
            yield images.finding("unreadable", row, f"its masks: {error.reason}", 0.0)
            continue
        for fault in faults:
            yield images.finding(fault.reason, row, fault.text, fault.score, part=fault.part)


def _caption_findings(images: _Images, eye: Eye | None, said: list[str], seed: int) -> list[Finding]:
    if eye is None or not eye.reads_texts:
        said.append("captions were not held against their images: that takes a CLIP, --model CLIP")
        return []
    assert images.features is not None
    captions: list[str] = []
    of: list[int] = []
    parts: list[int] = []
    for row in range(len(images.places)):
        source = images.source(row)
        assert isinstance(source, CaptionSource)
        texts = source.captions(int(images.places[row]))
        captions += texts
        of += [row] * len(texts)
        parts += range(len(texts))
    if not captions:
        return []
    share, loss = caption_fit(images.features, eye.texts(captions), np.array(of), eye.scale, seed=seed)
    if not knows(share):
        said.append(
            f"captions were not judged: {eye.name} does not tell these apart (for the usual image "
            f"{np.median(share):.0%} of the others' captions fit better than its own)"
        )
        return []
    found = []
    for i in np.flatnonzero(share > WEAKLY):
        text = f"{captions[i]!r}: {share[i]:.0%} of other captions fit better"
        reason = "caption" if share[i] > BADLY else "weak caption"
        found.append(images.finding(reason, of[i], text, loss[i], part=parts[i]))
    return found


def _label_next(
    images: _Images, eye: Eye | None, pool: Source | None, count: int, choice: Choice, seed: int,
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
    images: _Images, eye: Eye | None, later: Source, cache: str | Path | None, batch: int, seed: int, said: list[str]
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
