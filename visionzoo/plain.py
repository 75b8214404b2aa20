"""Values out of a file that anybody may have written: whether they are of the types that code expects.

This module imports nothing from visionzoo.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is of a type; a list stands for a tuple, a finite whole number for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(is_a(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            return False
        each = args[:1] * len(value) if origin is list or args[-1] is Ellipsis else args
        return len(each) == len(value) and all(is_a(v, a) for v, a in zip(value, each, strict=True))
    if origin is dict:
        return isinstance(value, dict) and all(is_a(k, args[0]) and is_a(v, args[1]) for k, v in value.items())
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if hint is float:  # a whole number too large for a float is none
        if is_a(value, int):
            return abs(value) < 2**1023
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, naming the first of ``values`` that is not of the type that ``hints`` has for its name."""
    for name, value in values.items():
        if not is_a(value, hints[name]):
            raise ValueError(f"{where}{name} is {shown(value)}, and must be {in_words(hints[name])}")


def in_words(hint: Any) -> str:
    """A type as a person who edits JSON calls it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(in_words(a) for a in args))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (tuple, list):
        number = "" if origin is list or args[-1] is Ellipsis else f"{len(args)} "
        return f"a list of {number}{_NAMES.get(args[0], 'value')}s"
    if origin is dict:
        return "an object" if args[1] is Any else f"an object of {_NAMES.get(args[1], 'value')}s"
    name = _NAMES.get(hint, str(getattr(hint, "__name__", hint)))
    return name if hint in (bool, type(None)) else f"a {name}"


_NAMES = {
    int: "whole number",
    float: "finite number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
