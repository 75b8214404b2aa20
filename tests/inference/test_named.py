"""A name without weights is refused by everything that answers, and random ones are said aloud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visionzoo.inference.attention import draw_attention
from visionzoo.inference.embedding import embed_to_parquet
from visionzoo.inference.masks import load_sam
from visionzoo.inference.probe import probe

NANO = "vit_nano_patch4_32"
SIZE: dict[str, Any] = {"image_size": 32}
CALLS: dict[str, Callable[[str, Path, Any], object]] = {
    "embed": lambda m, p, w: embed_to_parquet(p, m, p / "out.parquet", weights=w, **SIZE),
    "probe": lambda m, p, w: probe(m, "digits", weights=w, train_limit=40, cache=p / "cache", **SIZE),
    "attention": lambda m, p, w: draw_attention(p / "a.png", m, p / "out.png", weights=w, **SIZE),
    "masks": lambda m, p, w: load_sam(m, weights=w, **SIZE),
}


@pytest.mark.parametrize("command", CALLS)
def test_random_weights_answer_only_who_asked_for_them(command: str, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"vit_nano_patch4_32 is a name without weights.*--weights random"):
        CALLS[command](NANO, tmp_path, None)
    with pytest.raises(ValueError, match="did you mean vit_nano_patch4_32"):
        CALLS[command]("vit_nano_patch4_33", tmp_path, None)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.warns(UserWarning, match=r"has random weights, as was asked for: its answers mean nothing"):
        CALLS[command](NANO, tmp_path, "random")


def test_where_published_weights_are_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"such as timm:vit_tiny_patch16_224\."):
        load_sam("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="vit_b is a name without weights"):
        load_sam("vit_b")
