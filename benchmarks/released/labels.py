"""Which of a model's 1000 outputs a data set asks for: the published class lists, and how images name their class.

ImageNet-A and ImageNet-R have 200 of the 1000 classes. A model is asked among these alone (arXiv 1907.07174, section
3; arXiv 2006.16241, section 3): scored among all 1000 it would lose for naming a class that no image shows. The lists
are timm's, out of the installed package.

Legend: N images.
"""

from __future__ import annotations

import json
import os
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from visionzoo.data.sources.base import Source

CLASSES = 1000
#: What may be said of the classes of a data set.
RULES = ("auto", "all", "present", "imagenet_a", "imagenet_r", "real")
#: Data sets that have a published list of classes.
PUBLISHED = ("imagenet_a", "imagenet_r")


def _timm_file(name: str) -> str:
    found = pkgutil.get_data("timm.data", os.path.join("_info", name))
    assert found is not None
    return found.decode()


@cache
def synsets() -> tuple[str, ...]:
    """The 1000 WordNet names, in the order of a model's outputs."""
    return tuple(_timm_file("imagenet_synsets.txt").split())


@cache
def published(name: str) -> tuple[int, ...]:
    """The outputs that belong to the classes of ``imagenet_a`` or ``imagenet_r``, rising."""
    return tuple(int(line) for line in _timm_file(f"{name}_indices.txt").split())


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """Every right class of the 50,000 validation images, in order; some have none (ReaL, arXiv 2006.07159)."""
    return tuple(tuple(labels) for labels in json.loads(_timm_file("imagenet_real_labels.json")))


def class_indices(names: Sequence[str]) -> np.ndarray:
    """(len(names),) which output each class of a data set is: by WordNet's name, by number, or 1000 in their order.

    Numbers are the folders of ImageNet-V2: ``10`` is class 10, though it stands before ``2`` among the names.

    Raises:
        ValueError: for other names.
    """
    numbers = {name: i for i, name in enumerate(synsets())}
    if all(name in numbers for name in names):
        return np.array([numbers[name] for name in names])
    if all(re.fullmatch(r"\d{1,4}", name) and int(name) < CLASSES for name in names):
        return np.array([int(name) for name in names])
    if len(names) == CLASSES:
        return np.arange(CLASSES)
    odd = next(name for name in names if name not in numbers)
    raise ValueError(
        f"{odd!r} is no class of ImageNet; classes must be WordNet's names (n01440764), numbers from 0 to 999, or all "
        f"{CLASSES} in ImageNet's order; there are {len(names)}"
    )


@dataclass(frozen=True)
class Question:
    """What a data set asks of a model with 1000 outputs."""

    asked: np.ndarray  #: outputs that may be answered, rising
    right: tuple[frozenset[int], ...]  #: for each of N images the outputs that are right; none: it is left out
    note: str = ""  #: what a reader must know

    @property
    def counted(self) -> np.ndarray:
        """(N,) bool, images that are scored."""
        return np.array([bool(r) for r in self.right])


def question(source: Source, rule: str) -> Question:
    """What is asked of each image.

    Args:
        source: labelled images, of folders, lists or tables.
        rule: ``auto`` takes a published list where the classes are exactly those, ReaL never, and else all 1000;
            ``all`` is all 1000, ``present`` the classes that the data have; or the list's name. ``real`` has its own
            labels, found by the images' published names.

    Raises:
        ValueError: for classes that are not ImageNet's or not those of the list, or names that ReaL does not know.
    """
    if rule == "real":
        return Question(np.arange(CLASSES), tuple(_real(source.sample_id(i)) for i in range(len(source))))
    index = class_indices(source.classes)
    used = np.unique(index[np.unique(source.targets[source.targets >= 0])])
    have, note = set(index.tolist()), ""
    if rule == "auto":
        rule = next((name for name in PUBLISHED if have == set(published(name))), "all")
        if rule == "all" and len(have) < CLASSES:
            note = (
                f"{len(have)} classes, asked among all {CLASSES}; where only these can be shown, give classes=present"
            )
    asked = {"all": range(CLASSES), "present": used}.get(rule)
    if asked is None:
        asked = published(rule)
        if extra := sorted(have - set(asked)):
            raise ValueError(
                f"{rule} has no class {synsets()[extra[0]]}, which the data have ({len(extra)} such classes)"
            )
    right = tuple(frozenset({int(index[t])}) if t >= 0 else frozenset() for t in source.targets.tolist())
    return Question(np.asarray(list(asked)), right, note)


def _real(sample: str) -> frozenset[int]:
    found = re.search(r"ILSVRC2012_val_(\d{8})\.", sample)
    if found is None or not 1 <= int(found[1]) <= len(real_labels()):
        raise ValueError(f"ReaL labels images by their published names (ILSVRC2012_val_00000001.JPEG), not {sample!r}")
    return frozenset(real_labels()[int(found[1]) - 1])
