"""The site of docs/ has every page and every public name; `.ci/run` builds it strictly."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import visionzoo as vz

ROOT = Path(__file__).parents[2]


def pages(entries: Any) -> list[str]:
    """Every file that a menu names."""
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [page for value in values for page in pages(value)]


def test_every_page_is_in_the_menu_once() -> None:
    menu = pages(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert sorted(menu) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^::: ([\w.]+)\.(\w+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    assert {name: module for module, name in named} == vz._HOME
    assert len(named) == len(vz._HOME)
