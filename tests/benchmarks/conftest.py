"""What tests of the benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from visionzoo import registry
from visionzoo.registry import BackboneSpec

#: Networks that a benchmark has registered, while tests of other folders run.
_ASIDE: dict[str, BackboneSpec] = {}


@pytest.fixture(autouse=True, scope="module")
def own_networks() -> Iterator[None]:
    """Benchmarks may register networks, once in a process; nobody else's tests see them."""
    registry._SPECS.update(_ASIDE)
    known = set(registry._SPECS) - set(_ASIDE)
    yield
    for name in set(registry._SPECS) - known:
        _ASIDE[name] = registry._SPECS.pop(name)
