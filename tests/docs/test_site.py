"""The site of docs/ has every page and every public name; `.ci/run` builds it strictly."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

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
    written = [path.name for path in (ROOT / "docs").glob("*.md")]
    rendered = [f"notebooks/{path.stem}.md" for path in (ROOT / "docs/notebooks").glob("*.ipynb")]
    assert sorted(menu) == sorted(written + rendered)


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^::: ([\w.]+)\.(\w+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    assert {name: module for module, name in named} == vz._HOME
    assert len(named) == len(vz._HOME)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_what_a_page_shows_and_names_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_the_pictures_are_small_and_all_are_shown() -> None:
    images = list((ROOT / "docs/images").iterdir())
    assert sum(path.stat().st_size for path in images) <= 1e6
    text = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    assert [path.name for path in images if f"images/{path.name}" not in text] == []
