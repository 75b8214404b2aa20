"""What happened when weights were loaded, and what is wrong with those that do not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

_SHOW = 12  #: more keys than this are counted by prefix


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What :func:`visionzoo.load_weights` did."""

    source: str
    model: str
    layout: str  #: ``timm`` for canonical keys, otherwise the name of an adapter
    loaded: int  #: tensors of the model that were filled
    total: int  #: tensors of the model
    resampled: tuple[str, ...] = ()  #: one line for each table that was made for another size
    reset: tuple[str, ...] = ()  #: keys that keep the model's own values: the head, or the stem on request
    ignored: dict[str, tuple[str, ...]] = field(default_factory=dict)  #: reason -> stored keys without a place here
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the model's tensors that were filled, in [0, 1]."""
        return self.loaded / self.total if self.total else 1.0

    def __str__(self) -> str:
        text = [
            f"{self.model} loaded {self.loaded} of {self.total} tensors ({self.share:.0%}) from {self.source} "
            f"in the layout {self.layout}."
        ]
        if self.resampled:
            text.append(f"Resampled: {'; '.join(self.resampled)}.")
        if self.reset:
            text.append(f"Not loaded, and left as the model had them: {group_keys(self.reset)}.")
        for reason, keys in self.ignored.items():
            more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
            text.append(f"Ignored {reason}: {', '.join(keys[:2])}{more}.")
        text += [f"{note}." for note in self.notes]
        return " ".join(text)


def group_keys(keys: Collection[str]) -> str:
    """Keys as one line: all of them when few, otherwise counted by prefix, with numbers of blocks folded."""
    if len(keys) <= _SHOW:
        return ", ".join(keys)
    families = Counter(re.sub(r"\.\d+\.", ".*.", k) for k in keys)
    if len(families) > 2 * _SHOW:
        families = Counter(f"{k.split('.', 1)[0]}.*" if "." in k else k for k in keys)
    shown = [f"{name} ({n})" if n > 1 else name for name, n in families.most_common(2 * _SHOW)]
    rest = len(families) - len(shown)
    return ", ".join(shown) + (f" and {rest} more groups" if rest > 0 else "")


def mismatch(model: str, source: str, looks_like: str, groups: Iterable[tuple[str, Collection[str]]]) -> str:
    """The text of the error about weights that do not fit: all wrong keys in groups, and what the weights may be."""
    lines = [f"weights from {source} do not fit {model}; nothing was loaded. They look like {looks_like}."]
    lines += [f"  {title} ({len(keys)}): {group_keys(keys)}" for title, keys in groups if keys]
    return "\n".join(lines)
