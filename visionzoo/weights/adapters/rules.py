"""The language that adapters are written in: each rule says once how foreign tensors and timm's correspond, both ways.

A pattern is a key with holes: ``{i}``, ``{j}`` stand for a number, ``{i+1}`` and ``{i*2+1}`` for that number changed,
``{p}`` for ``weight`` or ``bias``, ``{x}`` for anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

Tensors = list[Tensor]
StateDict = dict[str, Tensor]

_HOLE = re.compile(r"\{(\w)(?:\*(\d+))?(?:\+(\d+))?\}")
_KINDS = {"p": "weight|bias", "x": ".+"}


@dataclass(frozen=True)
class Facts:
    """What a model knows and its tensors do not say; some foreign layouts need it to be written."""

    num_heads: int | None = None  #: of the first block
    window_size: int | None = None  #: Swin's window, in tokens
    image_size: tuple[int, int] | None = None  #: (H, W) in pixels
    prefix_positions: int | None = None  #: entries of ``pos_embed`` that belong to class and register tokens


@dataclass(frozen=True)
class Rule:
    """``len(foreign)`` foreign tensors are ``len(timm)`` tensors of ours. It applies where all of them are there."""

    foreign: tuple[str, ...]
    timm: tuple[str, ...]
    to: Callable[[Tensors], Tensors]  #: foreign tensors, in the order of ``foreign``, to ours
    back: Callable[[Tensors, Facts], Tensors]
    fits: Callable[[Tensors], bool] | None = None  #: on the way back: whether our tensors are what this rule means


class Pattern:
    """A compiled pattern."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.holes = [(m[1], int(m[2] or 1), int(m[3] or 0)) for m in _HOLE.finditer(text)]
        parts = _HOLE.split(text)[:: _HOLE.groups + 1]
        regex = re.escape(parts[0])
        for (name, _, _), part in zip(self.holes, parts[1:], strict=True):
            regex += f"({_KINDS.get(name, '[0-9]+')}){re.escape(part)}"
        self.regex = re.compile(regex)

    def match(self, key: str) -> tuple[tuple[str, str], ...] | None:
        """What the holes hold in ``key``, sorted by name; None if it does not fit."""
        found = self.regex.fullmatch(key)
        if found is None:
            return None
        values = {}
        for (name, factor, offset), text in zip(self.holes, found.groups(), strict=True):
            if name not in _KINDS:
                number, rest = divmod(int(text) - offset, factor)
                if rest or number < 0:
                    return None
                text = str(number)
            values[name] = text
        return tuple(sorted(values.items()))

    def fill(self, values: tuple[tuple[str, str], ...]) -> str:
        """The key for these values, the inverse of :meth:`match`."""
        known = dict(values)

        def put(hole: re.Match[str]) -> str:
            value = known[hole[1]]
            return value if hole[1] in _KINDS else str(int(value) * int(hole[2] or 1) + int(hole[3] or 0))

        return _HOLE.sub(put, self.text)


@cache
def pattern(text: str) -> Pattern:
    """The pattern of a text, made once."""
    return Pattern(text)


def move(
    foreign: str,
    timm: str,
    to: Callable[[Tensor], Tensor] | None = None,
    back: Callable[[Tensor], Tensor] | None = None,
) -> Rule:
    """One tensor of any shape, renamed, and reshaped by ``to`` and ``back`` where they are given."""
    return Rule(
        (foreign,),
        (timm,),
        lambda t: [to(t[0]) if to else t[0]],
        lambda t, _facts: [back(t[0]) if back else t[0]],
    )


def join(foreign: Iterable[str], timm: str) -> Rule:
    """Several tensors of equal height stacked along the first axis: queries, keys and values are one matrix in timm."""
    names = tuple(foreign)
    return Rule(names, (timm,), lambda t: [torch.cat(t)], lambda t, _facts: list(t[0].chunk(len(names))))


def _convert(
    state: Mapping[str, Tensor],
    sides: list[tuple[tuple[str, ...], tuple[str, ...]]],
    apply: Callable[[int, Tensors], Tensors | None],
) -> tuple[StateDict, list[str]]:
    """Apply ``sides`` (from, to) one after the other. Returns the result and the keys that none of them takes."""
    rest = dict.fromkeys(state)
    result: StateDict = {}
    partial: dict[str, str] = {}
    for number, (sources, targets) in enumerate(sides):
        groups: dict[tuple[tuple[str, str], ...], dict[int, str]] = {}
        for key in rest:
            for position, source in enumerate(sources):
                values = pattern(source).match(key)
                if values is not None:
                    groups.setdefault(values, {})[position] = key
        for values, found in groups.items():
            names = [pattern(s).fill(values) for s in sources]
            if len(found) < len(sources):
                partial.update({k: ", ".join(n for n in names if n not in state) for k in found.values()})
                continue
            tensors = apply(number, [state[n] for n in names])
            if tensors is None:
                continue
            result.update(zip((pattern(t).fill(values) for t in targets), tensors, strict=True))
            for name in names:
                del rest[name]
    for key in rest:
        if key in partial:
            raise ValueError(f"has {key} but lacks {partial[key]}, which belongs with it")
    return result, list(rest)


def to_timm(state: Mapping[str, Tensor], rules: tuple[Rule, ...]) -> tuple[StateDict, list[str]]:
    """Foreign tensors to ours, and the foreign keys that no rule knows."""
    return _convert(state, [(r.foreign, r.timm) for r in rules], lambda n, t: rules[n].to(t))


def from_timm(state: Mapping[str, Tensor], rules: tuple[Rule, ...], facts: Facts) -> tuple[StateDict, list[str]]:
    """Our tensors to foreign ones, and those of our keys that no rule knows."""

    def apply(number: int, tensors: Tensors) -> Tensors | None:
        rule = rules[number]
        return rule.back(tensors, facts) if rule.fits is None or rule.fits(tensors) else None

    return _convert(state, [(r.timm, r.foreign) for r in rules], apply)
