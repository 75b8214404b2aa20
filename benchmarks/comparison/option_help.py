"""What ``--help`` says of an option: the comment beside its field."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

_COMMENTED = re.compile(r"^    (\w+): .*?  #: (.+)$", re.M)


def comments(kind: type[Any], prefix: str = "") -> dict[str, str]:
    """Dotted names of a dataclass's fields, those of dataclasses inside it too, and the comments ``#:`` beside them."""
    found = {f"{prefix}{name}": text for name, text in _COMMENTED.findall(inspect.getsource(kind))}
    hints = get_type_hints(kind)
    for inner in fields(kind):
        if is_dataclass(hint := hints[inner.name]) and isinstance(hint, type):
            found |= comments(hint, f"{prefix}{inner.name}.")
    return found
