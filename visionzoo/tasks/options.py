"""The options of a task in its checkpoints: what rebuilds it, and which of them may change when a run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Set from the data, which are compared by what they are.
FROM_DATA = frozenset(
    {"classes", "class_counts", "fixed_images", "zero_shot_classes", "zero_shot_templates", "_instantiator"}
)
#: Where a run starts. One that goes on has its weights, so these may be left out.
STARTS = frozenset({"weights", "image_weights", "backbone_weights", "in_chans_policy"})
#: Of every task: what a checkpoint holds of one optimizer means nothing to another.
ALWAYS_SETTLED = frozenset({"optimizer"})


def plain(value: Any) -> Any:
    """Numbers, text, lists and dicts alone: what is read back from a file without running code."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if k != "_instantiator"}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def without_starts(given: Mapping[str, Any], then: Mapping[str, Any], built: Mapping[str, Any]) -> dict[str, Any]:
    """Options that differ where a run that goes on is built without what it began with, which may be gone.

    Args:
        given: the options at hand.
        then: those of the run, as given.
        built: the same with what they came to; empty where options alone cannot say the network.
    """
    found = {k: v for k, v in built.items() if k in STARTS and k in given and v != given[k] == then.get(k)}
    if found:  # then nothing else says what the weights brought along, such as the backbone
        found |= {k: v for k, v in built.items() if v is not None and k in given and given[k] is None}
    return found


def settled_changes(
    then: Mapping[str, Any], built: Mapping[str, Any], now: Mapping[str, Any], settled: Iterable[str]
) -> list[str]:
    """``"image_size was 32 and is 48"`` for each option that cannot change any more and has.

    Args:
        then: the options of the run, as given.
        built: the same with what they came to, such as the backbone that weights brought along.
        now: the options at hand.
        settled: names of those that cannot change.
    """
    changes = []
    for name in sorted((STARTS | ALWAYS_SETTLED | set(settled)) - FROM_DATA):
        if name not in then or name not in now or now[name] in (then[name], built.get(name)):
            continue
        if name in STARTS and now[name] is None:
            continue
        changes.append(f"{name} was {then[name]} and is {now[name]}")
    return changes + _half_settled(then, now)


def _half_settled(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Options that may change, but not be turned on or off."""
    found = []
    for name, off, ways in (("ema_decay", 0, "off"), ("layer_decay", 1, "both"), ("micro_batch", 0, "both")):
        before, after = then.get(name, off), now.get(name, off)
        if (after == off and before != off) or (ways == "both" and before == off and after != off):
            found.append(f"{name} was {before} and is {after}")
    return found
