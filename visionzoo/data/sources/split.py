"""Seeded, stratified choices among samples. Pure functions of targets and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from visionzoo.data.sources.base import FilesSource, S, Source, Subset


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


def stratified_limit(targets: np.ndarray, limit: int | float, seed: int) -> np.ndarray:
    """A label budget: choose ``limit`` samples, every class by its share (largest remainders get the rest).

    A smaller budget with the same seed takes, within each class, a prefix of what a larger one takes.

    Args:
        targets: (N,) or (N, K), as in :func:`stratified_split`.
        limit: a whole number of samples (as a float too, above 1), or a float in (0, 1], a share of them.
        seed: of the choice.

    Returns:
        sorted positions. Every class keeps at least one sample if the budget has room for all classes.

    Raises:
        ValueError: for a limit that is neither, or above the number of samples.
    """
    strata = _per_class(targets, seed)
    total = sum(len(members) for members in strata)
    if isinstance(limit, float) and limit > 1 and limit.is_integer():
        limit = int(limit)  # typing keeps one of int | float and float | int, so a command line may read 96 as 96.0
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


def hold_out(named: Mapping[str, S], fraction: float | None, seed: int, *, default: float) -> dict[str, S]:
    """Complete splits that have no ``val``: it is the test split, or a share of ``train``.

    Args:
        named: sources by split.
        fraction: share of the training images to hold out; None takes the test split if there is one, otherwise holds
            out ``default``.
        seed: of the choice, which is stratified where there are classes.
        default: see above.

    Raises:
        ValueError: for a fraction outside [0, 1].
    """
    if "val" in named:
        return dict(named)
    if "train" not in named or ("test" in named and fraction is None):
        return {**named, "val": named["test"]}
    whole = named["train"]
    kept, held = split_by_file(whole, default if fraction is None else fraction, seed)
    cut = {name: whole.take(part) for name, part in (("train", kept), ("val", held)) if len(part)}
    return {name: source for name, source in named.items() if name != "train"} | cut  # type: ignore[return-value]


def split_by_file(source: Source, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """:func:`stratified_split` of a source; of a file that is listed several times all rows are on one side."""
    targets = _strata(source)
    first: dict[str, int] = {}
    same = np.array([first.setdefault(name, i) for i, name in enumerate(_files(source))], dtype=np.int64)
    if len(first) == len(same):
        return stratified_split(targets, fraction, seed)
    once = np.unique(same)
    _, held = stratified_split(targets[once], fraction, seed)
    apart = np.isin(same, once[held])
    return np.flatnonzero(~apart), np.flatnonzero(apart)


def _files(source: Source) -> Sequence[str]:
    """The file of each sample; nothing where they lie in no files of their own."""
    if isinstance(source, FilesSource):
        return [source.paths[i] for i in range(len(source))]
    if isinstance(source, Subset) and (names := _files(source.source)):
        return [names[i] for i in source.indices.tolist()]
    return ()


def limited(source: S, limit: int | float | None, seed: int) -> S:
    """``limit`` of the samples, see :func:`stratified_limit`; without classes they are all of one kind.

    Raises:
        ValueError: for a limit out of range.
    """
    return source if limit is None else source.take(stratified_limit(_strata(source), limit, seed))  # type: ignore[return-value]


def _strata(source: Source) -> np.ndarray:
    """(N,) or (N, K), what a choice among samples is stratified by."""
    return source.targets if source.classes else np.zeros(len(source), dtype=np.int64)
