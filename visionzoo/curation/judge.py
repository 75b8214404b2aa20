"""Findings out of what is known of the images: each in words, with a score.

Legend: N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from visionzoo.curation.examined import Examined
from visionzoo.curation.findings import Finding, SliceFinding
from visionzoo.curation.labels import find_label_issues, find_multi_label_issues, label_quality
from visionzoo.curation.model import Eye
from visionzoo.curation.objects import mask_faults
from visionzoo.curation.odd import Odd
from visionzoo.curation.probabilities import MOST, better_than_chance, out_of_sample, out_of_sample_multi
from visionzoo.curation.slices import weak_slices
from visionzoo.curation.texts import BADLY, WEAKLY, caption_fit, knows
from visionzoo.curation.twins import Twin
from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.captions import CaptionSource
from visionzoo.data.sources.objects import ObjectSource
from visionzoo.inference.progress import track
from visionzoo.inference.stream import Unreadable


def unreadable_finding(split: str, one: Unreadable) -> Finding:
    """An image that cannot be read."""
    return Finding(reason="unreadable", split=split, place=one.position, image=one.name, text=one.reason, score=0.0)


def twin_finding(images: Examined, twin: Twin) -> Finding:
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


def odd_finding(images: Examined, odd: Odd) -> Finding:
    """An image unlike the others."""
    return images.finding(odd.reason, odd.row, odd.text, odd.score)


@dataclass
class LabelFindings:
    """What the labels are worth.

    ``slices`` and ``accuracy``, a share out of sample, are there where the model could judge.
    """

    findings: list[Finding]
    slices: tuple[SliceFinding, ...] = ()
    accuracy: float | None = None


def label_findings(images: Examined, twins: list[Twin], seed: int, said: list[str]) -> LabelFindings:
    """Labels that the model doubts, by a classifier that has not seen them; copies are held out together.

    What could not be judged is added to ``said``.
    """
    assert images.features is not None
    classes = images.splits.classes
    multi = images.splits.multi_label
    rows = np.flatnonzero((images.targets[:, 0] if multi else images.targets) >= 0)
    labels = images.targets[rows]
    features, groups = images.features[rows], _groups(len(images.places), twins)[rows]
    if multi:
        return _multi_label_findings(images, rows, groups, seed, said)
    asked = out_of_sample(features, labels, len(classes), groups, seed)
    if asked is None:
        size = len(labels) * features.shape[1] * len(classes)
        why = "no class has two different images, or one class alone is left without those that are held out"
        if size > MOST:
            why = (
                f"{len(labels):,} images of {len(classes):,} classes by {features.shape[1]:,} features are too many to "
                f"judge each by a classifier that has not seen it ({size:.1e}, at most {MOST:.0e}); look at some "
                "classes at a time"
            )
        said.append(f"wrong labels were not looked for: {why}")
        return LabelFindings([])
    if not better_than_chance(asked, labels):
        said.append(
            f"wrong labels were not judged: the model does not tell the classes apart ({asked.accuracy:.0%} right out "
            f"of sample, and {np.bincount(labels).max() / len(labels):.0%} of the labels are of one class)"
        )
        return LabelFindings([], accuracy=asked.accuracy)
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
    return LabelFindings(findings, slices, asked.accuracy)


def _multi_label_findings(
    images: Examined, rows: np.ndarray, groups: np.ndarray, seed: int, said: list[str]
) -> LabelFindings:
    assert images.features is not None
    features, labels, classes = images.features[rows], images.targets[rows], images.splits.classes
    if len(np.unique(groups)) < 10:
        said.append(f"wrong labels were not looked for: {len(rows)} labelled images are too few")
        return LabelFindings([])
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
    return LabelFindings(findings, accuracy=found.accuracy)


def _groups(count: int, twins: list[Twin]) -> np.ndarray:
    """(N,) number of the group of each image: twins, and twins of twins, are in one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    one, other = [t.one for t in twins], [t.other for t in twins]
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(count, count))
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found


def mask_findings(images: Examined) -> Iterator[Finding]:
    """Masks that are empty, there twice, and the like."""
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


def caption_findings(images: Examined, eye: Eye | None, said: list[str], seed: int) -> list[Finding]:
    """Captions that fit their image worse than those of others do; why none were judged is added to ``said``."""
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
