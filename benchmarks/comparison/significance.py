"""Which differences between networks are real: every pair on the same held-out images, over all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from comparison.answers import read_answers
from comparison.models import Entry
from comparison.options import PRETRAINED
from comparison.pieces import training_key
from visionzoo.metrics.differences import Difference, Ranking, friedman_nemenyi, holm, paired_difference

ALPHA = 0.05


@dataclass(frozen=True)
class Pair:
    """Two networks by one recipe on one share of the images."""

    one: Entry
    other: Entry
    recipe: str
    fraction: float
    difference: Difference
    adjusted: float  #: p among all pairs of the page

    @property
    def verdict(self) -> str:
        """What may be said."""
        return verdict(self.one.label, self.other.label, self.difference, self.adjusted)


@dataclass(frozen=True)
class Gain:
    """One network pretrained without labels, less the same network from scratch, by the same recipe."""

    entry: Entry
    fraction: float  #: of the images with labels
    difference: Difference
    adjusted: float  #: p among all gains of the page

    @property
    def verdict(self) -> str:
        """What may be said."""
        return verdict("pretrained", "from scratch", self.difference, self.adjusted)


def verdict(one: str, other: str, difference: Difference, p: float) -> str:
    """A sentence: which is better, or how large a difference would have been seen.

    Args:
        one, other: what they are called.
        difference: of one less the other.
        p: adjusted for all tests of the page.
    """
    seeds = min(difference.seeds)
    if seeds == 1:
        return "one seed: what another training would give is not known"
    if p < ALPHA:
        return f"{one if difference.value > 0 else other} is better"
    if difference.p < ALPHA:
        return f"{one if difference.value > 0 else other} seems better; among so many tests it is not sure"
    if difference.resolvable > 1:
        return "no difference seen; there are too few images to show any"
    return f"no difference seen; n = {seeds} would show {100 * difference.resolvable:.1f} points"


#: (recipe, share of the images, network) -> (S, N) bool, whether each training had each held-out image right
Right = dict[tuple[str, float, Entry], np.ndarray]


def right_answers(out: Path, entries: Sequence[Entry], records: Sequence[dict[str, Any]]) -> Right:
    """What every training had right, on the same images.

    Args:
        out: folder of the comparison.
        entries: the networks.
        records: of its pieces. Those whose answers were not kept are left out.

    Raises:
        ValueError: if networks answered other images; the comparison is then broken.
    """
    places: np.ndarray | None = None
    by_name = {e.name: e for e in entries}
    cells: dict[tuple[str, float, Entry], list[np.ndarray]] = {}
    for record in records:
        about = record["about"]
        if record["kind"] != "train" or record["status"] != "done" or about["model"] not in by_name:
            continue
        entry = by_name[about["model"]]
        path = out / "pieces" / f"{training_key(entry, about['recipe'], about['seed'], about['fraction'])}.parquet"
        if not path.is_file():
            continue
        answers = read_answers(path)
        if places is not None and not np.array_equal(places, answers.position):
            raise ValueError(f"{path} has answers for other images than the rest; delete it and its record")
        places = answers.position
        cells.setdefault((about["recipe"], about["fraction"], entry), []).append(answers.right)
    return {key: np.stack(rows) for key, rows in cells.items()}


def compare_pairs(right: Right, entries: Sequence[Entry]) -> list[Pair]:
    """Every pair of networks, by recipe and share."""
    found = []
    for recipe, fraction in sorted({key[:2] for key in right}):
        here = [e for e in entries if (recipe, fraction, e) in right]
        for one, other in combinations(here, 2):
            difference = paired_difference(right[recipe, fraction, one], right[recipe, fraction, other])
            found.append((one, other, recipe, fraction, difference))
    adjusted = holm([difference.p for *_, difference in found])
    return [Pair(*pair, p) for pair, p in zip(found, adjusted, strict=True)]


def pretraining_gains(right: Right, entries: Sequence[Entry]) -> list[Gain]:
    """Every network that was trained by the equal recipe with and without pretraining, by share."""
    both = [
        (entry, fraction)
        for entry in entries
        for fraction in sorted({key[1] for key in right})
        if (PRETRAINED, fraction, entry) in right and ("equal", fraction, entry) in right
    ]
    found = [paired_difference(right[PRETRAINED, f, e], right["equal", f, e]) for e, f in both]
    adjusted = holm([difference.p for difference in found])
    return [Gain(*about, difference, p) for about, difference, p in zip(both, found, adjusted, strict=True)]


def rank(
    entries: Sequence[Entry], records: Sequence[dict[str, Any]], recipe: str
) -> tuple[list[Entry], Ranking] | None:
    """Networks ranked over shares and seeds by one recipe; None for fewer than 3 of them, or 2 blocks."""
    mine = [r for r in records if r["kind"] == "train" and r["status"] == "done" and r["about"]["recipe"] == recipe]
    scores = {(r["about"]["fraction"], r["about"]["seed"], r["about"]["model"]): r["result"]["accuracy"] for r in mine}
    blocks = sorted({key[:2] for key in scores})
    here = [e for e in entries if any((*b, e.name) in scores for b in blocks)]
    whole = [b for b in blocks if all((*b, e.name) in scores for e in here)]
    if len(here) < 3 or len(whole) < 2:
        return None
    return here, friedman_nemenyi(np.array([[scores[*b, e.name] for e in here] for b in whole]), ALPHA)
