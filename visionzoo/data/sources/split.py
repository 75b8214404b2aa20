"""Seeded, stratified choices among samples. Pure functions of targets and seed."""

from __future__ import annotations

import warnings
from typing import Any, Protocol, TypeVar

import numpy as np


class Takes(Protocol):
    """A source that can be cut."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Any:
        """The same kind of source with some of the samples."""
        ...


S = TypeVar("S", bound=Takes)


def _per_class(targets: np.ndarray, seed: int) -> list[np.ndarray]:
    """Shuffled positions of each class, classes in order. Samples without a label are in none."""
    rng = np.random.default_rng(seed)
    if targets.ndim == 2:  # several labels each: no class owns a sample, so the whole set is one stratum
        return [rng.permutation(len(targets))]
    present = np.unique(targets[targets >= 0])
    return [rng.permutation(np.flatnonzero(targets == k)) for k in present]


def stratified_split(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a share of every class.

    Args:
        targets: (N,) int64 class indices, or (N, K) for multi-label data, which are split without strata.
        fraction: share to hold out, in [0, 1]. Strictly between, every class of two samples or more keeps at least one
            on either side; the only sample of a class stays in training.
        seed: of the choice.

    Returns:
        positions kept and positions held out, each sorted.

    Raises:
        ValueError: for a fraction outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"val_fraction={fraction} must be in [0, 1]")
    held = np.zeros(len(targets), dtype=bool)
    for members in _per_class(targets, seed):
        count = round(len(members) * fraction)
        if 0 < fraction < 1:
            count = min(max(count, 1), len(members) - 1)
        held[members[:count]] = True
    if fraction == 1:
        held[:] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def random_split(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out ``round(count * fraction)`` of ``count`` samples; at least one, and never all, unless the share is 0.

    Returns:
        positions kept and positions held out, each sorted.
    """
    held = min(max(round(count * fraction), 1), count - 1) if fraction else 0
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def stratified_limit(targets: np.ndarray, limit: int | float, seed: int) -> np.ndarray:
    """A label budget: choose ``limit`` samples, every class by its share (largest remainders get the rest).

    A smaller budget with the same seed takes, within each class, a prefix of what a larger one takes.

    Args:
        targets: (N,) or (N, K), as in :func:`stratified_split`.
        limit: a whole number of samples, or a float in (0, 1], a share of them.
        seed: of the choice.

    Returns:
        sorted positions. Every class keeps at least one sample if the budget has room for all classes.

    Raises:
        ValueError: for a limit that is neither, or above the number of samples.
    """
    strata = _per_class(targets, seed)
    total = sum(len(members) for members in strata)
    if isinstance(limit, float):
        if not 0 < limit <= 1:
            raise ValueError(f"train_limit={limit} as a share must be in (0, 1]; a count is a whole number")
        limit = max(1, round(limit * total))
    if not 1 <= limit <= total:
        raise ValueError(f"train_limit={limit} must be in 1..{total}, the number of labelled training images")
    sizes = np.array([len(members) for members in strata])
    exact = sizes * (limit / total)
    counts = np.floor(exact).astype(int)
    if limit >= len(strata):
        counts = np.maximum(counts, 1)
    # What is missing goes to the largest remainders; if the minimum of one gave too much, the largest counts give.
    for k in np.argsort(counts - exact, kind="stable"):
        if counts.sum() >= limit:
            break
        counts[k] = min(counts[k] + 1, sizes[k])
    while counts.sum() > limit:
        counts[np.argmax(counts)] -= 1
    return np.sort(np.concatenate([members[:n] for members, n in zip(strata, counts, strict=True)]))


def with_validation(named: dict[str, S], fraction: float | None, seed: int, *, default: float) -> dict[str, S]:
    """Splits of unlabelled data, completed: a missing ``val`` is the test split, or held out of ``train`` at random.

    Args:
        named: sources by split.
        fraction: share of the training images to hold out where there is no ``val``; None takes the test split if there
            is one, otherwise holds out ``default``.
        seed: of the choice.
        default: see above.

    Raises:
        ValueError: for a fraction outside [0, 1].
    """
    if "val" in named:
        if fraction is not None:
            warnings.warn(f"val_fraction={fraction} is not used: there are validation images", stacklevel=3)
        return named
    if "test" in named and fraction is None:
        return {**named, "val": named["test"]}
    if "train" not in named:
        return named
    whole = named["train"]
    share = default if fraction is None else fraction
    kept, held = stratified_split(np.zeros(len(whole), dtype=np.int64), share, seed)
    cut = {name: whole.take(part) for name, part in (("train", kept), ("val", held)) if len(part)}
    return {name: source for name, source in named.items() if name != "train"} | cut


def limited(source: S, limit: int | float | None, seed: int, targets: np.ndarray | None = None) -> S:
    """``limit`` of the samples, see :func:`stratified_limit`; without ``targets`` they are all of one kind.

    Raises:
        ValueError: for a limit out of range.
    """
    if limit is None:
        return source
    strata = np.zeros(len(source), dtype=np.int64) if targets is None else targets
    return source.take(stratified_limit(strata, limit, seed))  # type: ignore[no-any-return]
