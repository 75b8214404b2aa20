"""Public functions say what they take and give; ``python tests/docstrings.py`` lists those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from docstrings import SHAPE, public_functions, shares

DOCUMENTED, SHAPED = 0.85, 0.90


def test_the_bar_is_held() -> None:
    documented, shaped = shares(public_functions())
    assert documented >= DOCUMENTED
    assert shaped >= SHAPED


@pytest.mark.parametrize(
    "text",
    ["(B, C, H, W) uint8", "of length (K,)", "(..., D)", "((2 s - 1)^2, H)", "(B, P + N, D)", "(2 h - 1, H')",
     "(B, grid_dim, h, w)", "boxes (N, 4)", "a scalar"],
)  # fmt: skip
def test_shapes_are_seen(text: str) -> None:
    assert SHAPE.search(text)


@pytest.mark.parametrize("text", ["(see above, and below)", "(seed, epoch)", "(Swin, 3.2)", "(arXiv 2111.06377)", "()"])
def test_what_is_no_shape_is_not(text: str) -> None:
    assert not SHAPE.search(text)


def test_public_functions_are_found_and_judged(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text(
        "class Open:\n"
        '    def said(self, x: Tensor) -> None:\n        """(B, D)."""\n'
        '    def vague(self, x: list[Tensor]) -> None:\n        """Some tensors."""\n'
        '    def state(self, x: dict[str, Tensor]) -> None:\n        """A state dict."""\n'
        "    def _own(self) -> None: ...\n"
        "    @property\n    def value(self) -> int: ...\n"
        "    @value.setter\n    def value(self, value: int) -> None: ...\n"
        "class _Closed:\n    def said(self) -> None: ...\n"
    )
    found = public_functions(package)
    assert [f.name for f in found] == [f"package.module.Open.{n}" for n in ("said", "vague", "state", "value")]
    assert [(f.tensors, f.shapes) for f in found[:3]] == [(True, True), (True, False), (False, False)]
    assert shares(found) == (0.75, 0.5)
