"""Names of classes in words."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image
from timm.data import ImageNetInfo

from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.readable_names import readable_names
from visionzoo.inference.score import class_labels


def test_the_thousand_have_the_published_names_but_for_two_pairs_that_share_one() -> None:
    codes = ImageNetInfo("imagenet-1k").label_names()
    names = readable_names(codes)
    differ = {codes[k]: n for k, n in enumerate(names) if n != IMAGENET_CLASSNAMES[k]}
    assert differ == {"n04008634": "projectile", "n04355933": "sunglass"}
    assert len({n.casefold() for n in names}) == 1000
    assert names[codes.index("n02123045")] == "tabby cat"
    assert readable_names(codes[::-1]) == names[::-1]


def test_codes_beyond_the_thousand_words_and_unknown_codes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert readable_names(["n02062017", "golden_retriever"]) == ("aquatic mammal", "golden retriever")
        assert readable_names(["n1", "n021230456"]) == ("n1", "n021230456")
    with pytest.warns(UserWarning, match="n00000000: codes of WordNet whose names are not known here"):
        assert readable_names(["n00000000", "n02123045"]) == ("n00000000", "tabby cat")


def test_folders_with_codes(tmp_path: Path) -> None:
    for name in ("n02123045", "n01440764"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    source = open_data(str(tmp_path)).items()[0][1]
    assert class_labels(source) == ("tench", "tabby cat")
