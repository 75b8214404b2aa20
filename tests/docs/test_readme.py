"""README's examples, as they are typed, without a network; and the commands that it and the docs name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from visionzoo.cli.main import command_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, *languages: str) -> list[str]:
    """The code of a page in some languages."""
    kinds = "|".join(languages)
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```(?:{kinds})\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize(
    ("page", "answers"),
    [
        ("README.md", 2),
        ("docs/classify.md", 1),
        ("docs/match-text.md", 1),
        ("docs/segment.md", 0),
        ("docs/backbones.md", 0),
    ],
)
def test_python_runs_as_typed_and_answers_as_it_says(page: str, answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    found = 0
    for block in blocks(ROOT / page, "python"):
        for line in block.splitlines():
            said = line.partition("# [[")[2]
            if not said:
                exec(line, names)
                continue
            (best, *_), *_ = eval(line, names)
            label, probability = re.match(r'\("(.+?)", ([\d.]+)\)', said).groups()  # type: ignore[union-attr]
            assert best[0] == label
            assert best[1] == pytest.approx(float(probability), abs=0.002)
            found += 1
        if "masks" in names:
            (mask,) = names.pop("masks")
            assert mask.shape == (256, 256)
            assert mask[62, 132]
            assert 30 < mask.sum() < 1500  # a nucleus, not the picture
    assert found == answers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_the_pages_type(page: Path) -> None:
    parser = command_parser(only=None)
    for block in blocks(page, "bash", ""):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.partition(" #")[0].split("&&")[-1].strip()
            if not command.startswith("visionzoo ") or re.search(r"visionzoo (train|push)\b", command):
                continue
            try:
                parser.parse_args(shlex.split(command)[1:])
            except ValueError as error:
                pytest.fail(f"{command}: {error}")
