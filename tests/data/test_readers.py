"""Readers from outside the package: registered, asked first, checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionzoo.data.check import check_data
from visionzoo.data.classify import ClassifyData
from visionzoo.data.clip import ClipData
from visionzoo.data.images import ImageInput
from visionzoo.data.mae import MaeData
from visionzoo.data.segment import SegmentData
from visionzoo.data.sources import open as opening
from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.captions import CaptionSource, PackedTexts
from visionzoo.data.sources.objects import DenseObjects, ObjectSource
from visionzoo.data.sources.open import READERS, open_data, register_reader
from visionzoo.types import Preprocess

SPEC = Preprocess(image_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)


class Squares(Source):
    """Grey squares; the class says whether they are light."""

    def __init__(self, count: int) -> None:
        self.classes, self.multi_label = ("dark", "light"), False
        self.targets = np.arange(count) % 2

    def sample_id(self, i: int) -> str:
        return f"square:{i}"

    def raw(self, i: int) -> ImageInput:
        return Image.new("RGB", (16, 16), (200 if self.targets[i] else 40,) * 3)


class MaskedSquares(Squares, ObjectSource):
    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.classes, self.targets = (), np.full(count, -1)

    def objects(self, i: int) -> DenseObjects:
        mask = np.zeros((1, 16, 16), dtype=bool)
        mask[:, 4:12, 4:12] = True
        return DenseObjects(mask, ["square"])


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers for paths ``squares:N``, until the end of the test."""
    monkeypatch.setattr(opening, "_REGISTERED", dict.fromkeys(READERS, ()))

    def run(kind: Any, make: Callable[[int], Any], name: str = "squares") -> None:
        register_reader(
            kind,
            name,
            lambda path, options: path.startswith("squares:"),
            lambda path, options: make(int(path.removeprefix("squares:"))),
        )

    return run


def test_a_reader_of_labels_serves_classification_pretraining_and_captions(register: Callable[..., None]) -> None:
    with pytest.raises(FileNotFoundError):
        ClassifyData("squares:20")
    register("labels", Squares)
    labelled = ClassifyData("squares:20", num_workers=0, batch_size=4)
    labelled.preprocess = SPEC
    assert labelled.classes == ("dark", "light")
    assert len(labelled.train_source or ()) == 16, "0.2 of each class is held out, as of any other labelled data"
    batch = next(iter(labelled.val_dataloader()))
    assert batch.labels.tolist() == [int(image.float().mean() > 100) for image in batch.images]
    assert len(MaeData("squares:20").train_source or ()) == 19
    captions = ClipData("squares:20", templates=["a {} square"]).train_source
    assert captions is not None
    assert captions.captions(1) == ("a light square",)
    assert check_data("squares:20").splits["train"].counts == {"dark": 8, "light": 8}
    assert len(ClassifyData("digits", val_path="squares:20", classes=[*"0123456789", "dark", "light"]).splits.val) == 20


def test_readers_of_captions_and_objects(register: Callable[..., None]) -> None:
    def captioned(count: int) -> dict[str, CaptionSource]:
        texts = [(f"square {i}",) for i in range(count)]
        return {
            "train": CaptionSource(Squares(count), PackedTexts(texts)),
            "val": CaptionSource(Squares(2), PackedTexts(texts[:2])),
        }

    register("captions", captioned)
    register("objects", lambda count: Splits(train=MaskedSquares(count), problems=(("squares", "one is missing"),)))
    captions = ClipData("squares:20")
    assert (len(captions.train_source or ()), len(captions.val_source or ())) == (20, 2)
    with pytest.warns(UserWarning, match="one is missing"):
        objects = SegmentData("squares:20")
    assert (len(objects.train_source or ()), len(objects.val_source or ())) == (18, 2)
    assert check_data("squares:20").layout == "images with masks"


def test_a_reader_is_asked_before_those_that_are_built_in(register: Callable[..., None], tmp_path: Path) -> None:
    register_reader("labels", "mine", lambda path, options: path == str(tmp_path), lambda path, options: Squares(6))
    assert open_data(tmp_path, val_fraction=0.0).first.sample_id(3) == "square:3"


def test_registering_twice_is_an_error(register: Callable[..., None]) -> None:
    register("labels", Squares)
    with pytest.raises(ValueError, match="labels named 'squares' is registered already; choose another name"):
        register("labels", Squares)
    with pytest.raises(ValueError, match="named 'parquet' is registered already"):
        register("labels", Squares, name="parquet")
    with pytest.raises(
        ValueError, match="kind='label' of data is unknown; use one of objects, captions, labels, images"
    ):
        register("label", Squares)


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        ("labels", lambda count: [1, 2], r"the reader 'squares' gave \[1, 2\]; need a source"),
        ("labels", lambda count: {"eval": Squares(count)}, "need a source, or several by split: train, val, test"),
        ("captions", Squares, "gave a Squares; captions need a CaptionSource"),
        ("objects", Squares, "gave a Squares; objects need a ObjectSource"),
    ],
)
def test_what_a_reader_gives_is_checked(register: Callable[..., None], kind: Any, make: Any, message: str) -> None:
    register(kind, make)
    with pytest.raises(ValueError, match=message):
        open_data("squares:4", kind)
