"""Give a built module a second face without moving its parameters.

A classifier must have the keys of its backbone (``blocks.0...``) with the head's beside them, and a timm model
must answer to our contract with its own keys. Wrapping would prefix every key, and state-dict hooks that hide the
prefix break distributed checkpoints. So the object stays the same and its class gains a mixin, as FSDP2 does.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from torch import nn

Mixin = TypeVar("Mixin")


@cache
def _grafted_class(root: Any, mixins: tuple[Any, ...]) -> type[nn.Module]:
    """``root`` with ``mixins`` in front of it, the last one first in the method order."""
    name = "".join([root.__name__, *(m.__name__ for m in mixins)])
    namespace = {"__doc__": mixins[-1].__doc__, "__reduce_ex__": _reduce, "_graft": (root, mixins)}
    return type(name, (*reversed(mixins), root), namespace)


def _rebuild(root: Any, mixins: tuple[Any, ...]) -> nn.Module:
    cls = _grafted_class(root, mixins)
    return cls.__new__(cls)


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    # A class made at run time cannot be found by name, so a spawned process gets its recipe instead.
    del protocol
    return _rebuild, type(self)._graft, self.__dict__  # type: ignore[attr-defined]


def graft(module: nn.Module, mixin: type[Mixin]) -> Mixin:
    """Put ``mixin`` in front of the class of ``module``, in place, and return the same object.

    Keys, parameters, hooks and identity stay; ``isinstance(module, mixin)`` becomes true. ``deepcopy`` and pickling
    work.
    """
    if not isinstance(module, mixin):
        recipe: tuple[Any, tuple[Any, ...]] = getattr(type(module), "_graft", (type(module), ()))
        root, mixins = recipe
        module.__class__ = _grafted_class(root, (*mixins, mixin))
    return module  # type: ignore[return-value]
