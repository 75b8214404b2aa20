"""What tests of the benchmarks share."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import visionzoo.backbones  # noqa: F401 - so that the product's own networks are known before any test
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


FOLDER = Path(__file__).parents[2] / "benchmarks"
#: What it registers, timm's registry too, is registered once in a process.
_ONCE = "comparison.small"


def forget_benchmarks() -> dict[str, ModuleType]:
    """Have the next test import the modules of benchmarks anew.

    Returns:
        others that go by the same names, such as ``peers`` of another folder of tests; they are put aside too.
    """
    ours = {path.stem for path in FOLDER.iterdir()}
    names = [n for n in sys.modules if n.split(".")[0] in ours and n != _ONCE]
    found = {name: sys.modules.pop(name) for name in names}
    return {n: m for n, m in found.items() if not str(getattr(m, "__file__", "")).startswith(str(FOLDER))}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a module of the benchmarks as a script there would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    others = forget_benchmarks()
    yield importlib.import_module
    forget_benchmarks()
    sys.modules.update(others)


@pytest.fixture
def here(load: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every piece is done in this process; the list tells which ones were."""
    pieces, child = load("comparison.pieces"), load("comparison.child")
    done: list[tuple[str, str]] = []

    def start(self: Any, kind: str, spec: Path, result: Path, log: Path) -> int:
        done.append((kind, spec.parent.name))
        with log.open("w") as file, contextlib.redirect_stderr(file):
            return child.main(kind, str(spec), str(result))

    monkeypatch.setattr(pieces.Processes, "__call__", start)
    return done
