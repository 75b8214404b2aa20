"""A model's configuration comes with its weights, from anywhere: it is checked before anything is built from it.

It may say what the builder's signature takes, in plain types, and not where weights are: those of a model are the file
beside its configuration, and loading it opens no other file and no network.
"""

from __future__ import annotations

import importlib
import inspect
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from visionzoo.plain import check_types, shown

Built = TypeVar("Built", bound=nn.Module)
#: Parameters of the builders that name weights.
_SOURCES = frozenset({"weights", "backbone_weights", "image_weights"})
#: What is bounded by itself: blocks are made one by one, and tables of positions grow with the image.
_MOST = {"decoder_depth": 1000, "text_layers": 1000, "image_size": 8192}
#: Values that a network may have beyond the bytes of its weights file: tables that are computed and not stored.
_SLACK = 2**24
#: What draws random values into a tensor.
_DRAWING = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_})
#: torch 2.8 cannot load its compiler inside a device's context, and torchvision, which builders load, loads it. 2.14
#: can; what lies between is not known.
_NEEDS_ITS_COMPILER = tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 14)
#: What builders raise, beside ValueError, for arguments of the right types that make no network.
_UNBUILDABLE = (
    TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError, MemoryError,
)  # fmt: skip


def check_architecture(values: dict[str, Any], builder: Callable[..., Any], origin: str) -> None:
    """Check the keyword arguments of a builder, as a configuration has them.

    Args:
        values: what stands under ``architecture``.
        builder: the function that they are for.
        origin: the file, for messages.

    Raises:
        ValueError: naming the argument that is unknown, of another type, not finite, too large, or a source of weights.
    """
    known = inspect.signature(builder).parameters
    for name, value in values.items():
        if name in _SOURCES:
            raise ValueError(
                f"{origin}: architecture names {name} {shown(value)}, which is not followed: the weights of a model "
                "are the file beside its configuration. A run writes no such line; do not trust this folder"
            )
        if name not in known:
            raise ValueError(f"{origin}: architecture has the unknown argument {name!r}; known are {', '.join(known)}")
    check_types(values, typing.get_type_hints(builder), f"{origin}: architecture.")
    check_most(values, f"{origin}: architecture.")
    if missing := [n for n, p in known.items() if p.default is p.empty and n not in values]:
        raise ValueError(f"{origin}: architecture lacks {', '.join(missing)}")


def check_most(values: dict[str, Any], where: str) -> None:
    """Raises ValueError, naming the first of ``values`` that is above its limit."""
    for name, most in _MOST.items():
        given = values.get(name)
        if any(isinstance(n, int) and n > most for n in (given if isinstance(given, list) else [given])):
            raise ValueError(f"{where}{name} is {shown(given)}; at most {most} is read from a file")


class _Undrawn(TorchFunctionMode):
    """Leave tensors of the meta device without the random values that they cannot hold.

    Drawing them does nothing, but torch loads its compiler for it, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DRAWING or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build_checked(build: Callable[[], Built], weights: Path, origin: str) -> Built:
    """What ``build`` makes, once it is known that ``weights`` can fill it.

    It is built on the meta device first, where it takes no memory, and compared with the size of the file.

    Raises:
        ValueError: for arguments that make no network, or one that is larger than the file.
    """
    if _NEEDS_ITS_COMPILER:
        importlib.import_module("torch._dynamo")
    try:
        with torch.device("meta"), _Undrawn():
            outline = build()
        values = sum(t.numel() for t in [*outline.parameters(), *outline.buffers()])
        stored = weights.stat().st_size if weights.is_file() else math.inf  # a missing file is said by its reader
        if values > stored + _SLACK:
            raise ValueError(
                f"{origin} describes a network of {values:,} values, and {weights.name} beside it has {stored:,} "
                "bytes: they do not belong together"
            )
        return build()
    except _UNBUILDABLE as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise ValueError(
            f"{origin} describes a network that cannot be built: {type(error).__name__}: {first}"
        ) from error
