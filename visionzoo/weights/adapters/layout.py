"""A foreign weight layout: how to recognise it, and its rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from visionzoo.weights.adapters import rules as language
from visionzoo.weights.adapters.rules import Facts, Rule, StateDict, pattern


def shorten(keys: Collection[str], show: int = 4) -> str:
    """The first few of many keys."""
    names = list(keys)
    return ", ".join(names[:show]) + (f" and {len(names) - show} more" if len(names) > show else "")


# Why an adapter drops a tensor, as reports say it.
BUFFER = "buffers that are computed from the configuration"
MASK_TOKEN = "mask token, used in pretraining only"
DECODER = "decoder of pretraining"
PRETRAIN_HEAD = "head of pretraining"
POOLER = "pooler, which timm's model does not have"


def _nothing(timm: StateDict, facts: Facts) -> StateDict:
    del timm, facts
    return {}


def _unchanged(timm: StateDict, facts: Facts) -> StateDict:
    del facts
    return timm


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One foreign format. Both directions are pure: a dict in, a new dict out."""

    name: str
    about: str  #: whose format it is, for people
    family: str  #: the ``weights_family`` of models that it fits
    rules: tuple[Rule, ...]  #: the first that fits a key counts
    has_all: tuple[str, ...]  #: recognised when all of these keys are there
    has_any: tuple[str, ...] = ()  #: and, unless empty, one of these patterns fits a key
    has_none: tuple[str, ...] = ()  #: and none of these keys is
    base: tuple[
        str, ...
    ] = ()  #: prefixes that everything but the head may have; the first is written when there is a head
    heads: tuple[str, ...] = ()  #: foreign prefixes of the head, which never get ``base``
    ignore: tuple[tuple[str, str], ...] = ()  #: (pattern, reason) of foreign tensors that have no place in timm's model
    prepare: Callable[[StateDict], StateDict] = dict  #: foreign to foreign, before the rules
    refine: Callable[[StateDict, Facts], StateDict] = _unchanged  #: ours to ours, before the rules on the way back
    complete: Callable[[StateDict, Facts], StateDict] = _nothing  #: foreign tensors to add on the way back

    def matches(self, keys: Collection[str]) -> bool:
        """Whether a state dict with these keys is in this layout."""
        bare = {self._bare(k) for k in keys}
        return (
            all(k in bare for k in self.has_all)
            and not any(k in bare for k in self.has_none)
            and (not self.has_any or any(pattern(p).match(k) is not None for p in self.has_any for k in bare))
        )

    def to_timm(self, state: Mapping[str, Tensor]) -> StateDict:
        """This layout to timm's. Unknown keys stay as they are, for a strict load to complain about.

        Raises:
            ValueError: when a tensor is there without those it has to be joined with.
        """
        state = self.prepare({self._bare(k): v for k, v in state.items() if self.ignored(k) is None})
        try:
            result, unknown = language.to_timm(state, self.rules)
        except ValueError as error:
            raise ValueError(f"these weights are in the layout of {self.about}, but incomplete: {error}") from None
        return result | {k: state[k] for k in unknown}

    def from_timm(self, state: Mapping[str, Tensor], facts: Facts | None = None) -> StateDict:
        """timm's layout to this one.

        Args:
            state: canonical keys.
            facts: what the tensors do not say; only layouts that need one complain about its absence.

        Raises:
            ValueError: when this layout has no place for a tensor, or a fact is missing.
        """
        facts = facts or Facts()
        state = self.refine(dict(state), facts)
        result, unknown = language.from_timm(state, self.rules, facts)
        if unknown:
            raise ValueError(f"the layout {self.name!r} ({self.about}) has no place for {shorten(unknown)}")
        result |= self.complete(state, facts)
        if lacking := [k for k in self.has_all if k not in result]:
            raise ValueError(
                f"the layout {self.name!r} ({self.about}) needs {shorten(lacking)}, which this model does not give"
            )
        if self.base and any(k.startswith(self.heads) for k in result):
            result = {k if k.startswith(self.heads) else self.base[0] + k: v for k, v in result.items()}
        return result

    def renamed(self, name: str, about: str, *pairs: tuple[str, str]) -> Layout:
        """This layout under foreign keys in which each first text of ``pairs`` is replaced by the second, in turn."""

        def new(text: str) -> str:
            for old, other in pairs:
                text = text.replace(old, other)
            return text

        return replace(
            self,
            name=name,
            about=about,
            rules=tuple(replace(r, foreign=tuple(map(new, r.foreign))) for r in self.rules),
            has_all=tuple(map(new, self.has_all)),
            has_any=tuple(map(new, self.has_any)),
            has_none=tuple(map(new, self.has_none)),
            ignore=tuple((new(text), reason) for text, reason in self.ignore),
        )

    def ignored(self, key: str) -> str | None:
        """Why :meth:`to_timm` drops this foreign key; None when it does not."""
        bare = self._bare(key)
        return next((reason for text, reason in self.ignore if pattern(text).match(bare) is not None), None)

    def _bare(self, key: str) -> str:
        prefix = next((b for b in self.base if key.startswith(b)), "")
        return key[len(prefix) :]
