"""timm's description of layer groups, for a backbone inside a larger model."""

from __future__ import annotations

import re
from typing import Any


def inside(matcher: Any, prefix: str) -> Any:
    """A ``group_matcher()`` of a backbone, for names that begin with ``prefix``; whatever stands outside is nearest the
    output, as timm counts a head."""
    if callable(matcher):
        return lambda name: matcher(name.removeprefix(prefix)) if name.startswith(prefix) else float("inf")

    def moved(pattern: str) -> str:
        anywhere = re.sub(r"(?<!\[)\^", "", pattern)
        return rf"{re.escape(prefix)}(?:{anywhere})"

    return {
        group: None if spec is None
        else moved(spec) if isinstance(spec, str)
        else [(moved(pattern), suffix) for pattern, suffix in spec]
        for group, spec in matcher.items()
    }  # fmt: skip
