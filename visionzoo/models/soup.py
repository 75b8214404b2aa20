"""Model soups (arXiv 2203.05482): one network whose weights are the mean of several that began alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from visionzoo.models.bundle import WEIGHTS_FILE, ModelConfig, read_config
from visionzoo.models.carried import alike
from visionzoo.weights import read_state_dict


@dataclass(frozen=True)
class Soup:
    """What was cooked."""

    weights: dict[str, Tensor]
    config: ModelConfig  #: without a calibration, which would be that of other probabilities
    runs: tuple[Path, ...]  #: that are in it, in the order in which they went in
    score: float | None = None  #: of a greedy one


def check_alike(runs: Sequence[Path]) -> ModelConfig:
    """The configuration of the first.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_config`; for fewer than two runs, or one whose network, labels or
            preprocessing differ from the first's, naming what differs.
    """
    if len(runs) < 2:
        raise ValueError(f"a soup is made of two runs or more, and {len(runs)} was given")
    configs = [read_config(run) for run in runs]
    first = configs[0]
    for run, config in zip(runs[1:], configs[1:], strict=True):
        for name in ("task", "architecture", "preprocess", "labels", "multi_label", "text_prompts"):
            both = getattr(config, name), getattr(first, name)
            if both[0] != both[1] and not (name == "architecture" and alike(*both)):
                raise ValueError(f"{run} differs from {runs[0]} in its {name}; a soup is made of runs of one network")
    return replace(first, calibration=None)


def mean_of(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor, in its own dtype, summed in float64; what holds whole numbers is the first's.

    Raises:
        ValueError: for state dicts whose keys or shapes differ.
    """
    first: Mapping[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    count = 0
    for state in states:
        count += 1
        if not sums:
            first, sums = state, {k: v.double() if v.is_floating_point() else v.clone() for k, v in state.items()}
            continue
        if odd := sorted(first.keys() ^ state.keys()) or [k for k in first if first[k].shape != state[k].shape]:
            raise ValueError(f"these weights are not of one network: they differ in {', '.join(odd[:5])}")
        for key, total in sums.items():
            if total.is_floating_point():
                total += state[key]
    return {k: (v / count).to(first[k].dtype) if v.is_floating_point() else v for k, v in sums.items()}


def uniform_soup(runs: Sequence[Path]) -> Soup:
    """The mean of all runs.

    Raises:
        FileNotFoundError, ValueError: as :func:`check_alike`.
    """
    config = check_alike(runs)
    return Soup(mean_of(map(_weights, runs)), config, tuple(runs))


def greedy_soup(
    runs: Sequence[Path], score: Callable[[Mapping[str, Tensor], ModelConfig], float], *, higher_is_better: bool = True
) -> Soup:
    """The paper's greedy recipe (its algorithm 1): best run first, then each that does not make the mean worse.

    Args:
        runs: in any order.
        score: of weights, on held-out data.
        higher_is_better: whether a larger score is a better one.

    Raises:
        FileNotFoundError, ValueError: as :func:`check_alike`.
    """
    config = check_alike(runs)
    sign = 1.0 if higher_is_better else -1.0
    alone = {run: score(_weights(run), config) for run in runs}
    ranked = sorted(runs, key=lambda run: -sign * alone[run])
    chosen, best, weights = [ranked[0]], alone[ranked[0]], _weights(ranked[0])
    for run in ranked[1:]:
        mixed = mean_of(map(_weights, (*chosen, run)))
        value = score(mixed, config)
        if sign * value >= sign * best:
            chosen, best, weights = [*chosen, run], value, mixed
    return Soup(weights, config, tuple(chosen), best)


def _weights(run: Path) -> dict[str, Tensor]:
    return read_state_dict(run / WEIGHTS_FILE)[0]
