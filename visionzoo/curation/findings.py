"""What the doctor found, as tables, words, and a data set without it.

Legend: N images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from visionzoo.curation.drift import Drift
from visionzoo.terminal import visible_name

#: Findings in the order in which they are said: what makes scores wrong comes first.
LISTS = {
    "leak": "the same picture in several splits",
    "unreadable": "cannot be read",
    "wrong label": "probably a wrong label",
    "twin": "the same picture twice",
    "caption": "a caption that does not fit",
    "weak caption": "a caption that fits weakly",
    "far from its class": "far from its class",
    "of another kind": "unlike all others",
    "empty": "empty",
    "dark": "dark",
    "bright": "bright",
    "blurred": "blurred",
    "grey": "without colour",
    "shape": "of odd shape",
    "size": "of odd size",
    "empty mask": "empty masks",
    "mask twice": "masks that are there twice",
    "cut off": "objects cut off by the edge",
    "tiny mask": "masks of a few pixels",
    "mask of everything": "masks of the whole picture",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One image, and what is wrong with it."""

    reason: str  #: one of :data:`LISTS`
    split: str
    place: int  #: position in the split
    image: str  #: what it is called
    text: str
    score: float  #: higher is surer, among those of one reason
    label: str = ""  #: as it is given
    suggestion: str = ""  #: another label
    other: str = ""  #: split and name of the twin
    other_split: str = ""
    other_place: int = -1
    part: int = -1  #: place of the mask or caption in its image, where one of several is wrong


@dataclass(frozen=True, kw_only=True)
class SliceFinding:
    """A part of the images, and how well they are answered."""

    name: str
    images: int
    accuracy: float
    rest: float
    p: float
    weak: bool


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What :func:`visionzoo.data_doctor` found."""

    path: str
    kind: str  #: labels, images, captions or objects
    model: str  #: empty where only pixels were looked at
    images: dict[str, int]  #: by split
    classes: tuple[str, ...]
    findings: tuple[Finding, ...]  #: in the order of :data:`LISTS`, the surest first
    slices: tuple[SliceFinding, ...] = ()
    label_next: tuple[str, ...] = ()  #: images to label, the most telling first
    accuracy: float | None = None  #: of the classifier on frozen features, out of sample
    drift: Drift | None = None
    said: tuple[str, ...] = ()  #: what could not be looked for, and why

    def of(self, reason: str) -> list[Finding]:
        """Those of one list, the surest first."""
        return [f for f in self.findings if f.reason == reason]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def to_text(self, shown: int = 5) -> str:
        """A summary to read; long lists are cut and say so."""
        return "\n".join(self._lines(shown))

    def _lines(self, shown: int) -> Iterator[str]:
        counts = ", ".join(f"{n:,} in {split}" for split, n in self.images.items())
        yield f"{self.path}: {counts}; looked at by {self.model or 'its pixels alone'}"
        if self.accuracy is not None:
            yield f"classifiers on its features are right about {self.accuracy:.1%} of the labels, out of sample"
        yield from (visible_name(f"note: {text}") for text in self.said)
        found = Counter(f.reason for f in self.findings)
        if not found:
            yield "nothing was found"
        for reason, title in LISTS.items():
            if not found[reason]:
                continue
            yield ""
            yield f"{title}: {found[reason]:,}"
            for one in self.of(reason)[:shown]:
                yield visible_name(f"  {one.image}: {one.text}")
            if found[reason] > shown:
                yield f"  ... and {found[reason] - shown:,} more"
        weak = [part for part in self.slices if part.weak]
        if self.slices:
            yield ""
            yield f"weak by more than chance: {len(weak)} of {len(self.slices)} parts"
            for part in weak[:shown]:
                name = visible_name(part.name)
                yield f"  {name}: {part.accuracy:.1%} right of {part.images:,}, {part.rest:.1%} elsewhere"
        if self.label_next:
            yield ""
            yield f"label next: {len(self.label_next):,} images"
            yield from (visible_name(f"  {name}") for name in self.label_next[:shown])
        if self.drift is not None:
            yield ""
            yield drift_text(self.drift)


def drift_text(drift: Drift) -> str:
    """One sentence."""
    word = "drifted" if drift.drifted else "no drift"
    return (
        f"{word}: {drift.times:.1f} standard deviations above what the first set is from itself when it is split "
        f"(p = {drift.p:.3f}; {drift.images[0]:,} and {drift.images[1]:,} images)"
    )
