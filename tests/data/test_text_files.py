"""Manifests, captions and configurations as people hand them in: read right, or one error with file and line."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionzoo.data.sources.open import open_data

N = 6
FILES = [f"pics/{i}.png" for i in range(N)]
LABELS = ["dog", "cat"] * (N // 2)
Survived = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for i in range(N):
        Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(tmp_path / "pics" / f"{i}.png")
    return tmp_path


def table(separator: str = ",", heading: str = "image,label", labels: list[str] = LABELS) -> str:
    lines = [heading.replace(",", separator), *(f"{a}{separator}{b}" for a, b in zip(FILES, labels, strict=True))]
    return "\n".join(lines) + "\n"


GOOD = {
    "plain.csv": table().encode(),
    "mark.csv": table().encode("utf-8-sig"),
    "utf16.csv": table().encode("utf-16"),
    "utf16_no_mark.csv": table().encode("utf-16-le"),
    "semicolon.csv": table(";").encode(),
    "tab_in_csv.csv": table("\t").encode(),
    "headings.csv": table(heading="Image, LABEL ").encode(),
    "spaces.csv": table(", ").encode(),
    "backslashes.csv": table().replace("/", "\\").encode(),
    "lines_of_windows.csv": table().replace("\n", "\r\n").encode("utf-16"),
    "lines_of_old_macs.csv": table().replace("\n", "\r").encode(),
    "blank_rows.csv": (table() + "\n,\n").encode(),
    "separator_at_the_end.csv": table().replace("\n", ",\n").encode(),
    "utf16.jsonl": "".join(
        json.dumps({"Image": a, "Label": b}) + "\n" for a, b in zip(FILES, LABELS, strict=True)
    ).encode("utf-16"),
    "list.json": json.dumps([{"image": a, "label": b} for a, b in zip(FILES, LABELS, strict=True)], indent=1).encode(),
    "list.jsonl": json.dumps([{"image": a, "label": b} for a, b in zip(FILES, LABELS, strict=True)]).encode(),
}


@pytest.mark.parametrize("name", GOOD)
def test_manifests_as_programs_write_them(survived: Survived, folder: Path, name: str) -> None:
    (folder / name).write_bytes(GOOD[name])
    source = open_data(folder / name, val_fraction=0.0).first
    assert source.classes == ("cat", "dog")
    assert source.targets.tolist() == [1, 0] * (N // 2)
    assert [np.asarray(source.read(i)).max() for i in range(N)] == [40 * i for i in range(N)]
    survived("manifest as another program writes it (encoding, separator, headings, paths): read right")


BAD = {
    "latin1.csv": (table(labels=["chät", *LABELS[1:]]).encode("latin-1"), "line 2 is not UTF-8: byte 0xe4"),
    "latin1.jsonl": (
        '{"image": "a.png", "label": "cat"}\n{"image": "b.png", "label": "chät"}'.encode("latin-1"),
        "line 2 is not UTF-8",
    ),
    "surrogate.jsonl": (b'{"image": "a.png", "label": "cat \\ud83d"}\n', r"line 1: .*half of a character"),
    "surrogate_path.jsonl": (b'{"image": "\\ud83d.png", "label": "cat"}\n', "cannot be the name of a file"),
    "open_quote.csv": (table(labels=['"big dog', *LABELS[1:]]).encode(), "line 2: a quote is opened and not closed"),
    "swallowed.csv": (
        table(labels=[LABELS[0], '"big cat', *LABELS[2:5], 'cat"']).encode(),
        "line 3: a quote is opened here, and what it holds looks like rows",
    ),
    "comma.csv": (table(labels=["dog, wet", *LABELS[1:]]).encode(), "line 2 has 3 fields and the heading 2"),
    "short.csv": ((table() + "pics/0.png\n").encode(), f"line {N + 2} has 1 fields"),
    "twice.csv": (table(heading="image,image").encode(), "the column 'image' 2 times"),
    "object.json": (b'{"images": []}', "holds dict with .*need a list of objects"),
    "numbers.json": (b"[1, 2]", "item 1 is int"),
    "nested.jsonl": (b"[" * 100_000, "nested too deeply"),
    "nested_line.jsonl": (b'{"image": ' + b"[" * 100_000, "line 1 is nested too deeply"),
    "nested.json": (b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("name", BAD)
def test_manifests_that_cannot_be_read_say_where(survived: Survived, folder: Path, name: str) -> None:
    data, message = BAD[name]
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        open_data(folder / name)
    assert "\n" not in str(caught.value)
    survived("manifest or caption file that cannot be read: one line with file and line")


def test_a_quote_in_a_tsv_is_a_character(survived: Survived, folder: Path) -> None:
    captions = ['"Hello" said the dog', '12" of vinyl', '"an open one', "a photo, with a hat", "four", "five"]
    (folder / "raw.tsv").write_text(table("\t", "image,caption", captions))
    assert _captions(folder / "raw.tsv") == captions
    quoted = ['"a photo, with ""a hat"""', '"two\nlines"', *captions[3:], "six"]
    (folder / "quoted.tsv").write_text(table("\t", "image,caption", quoted))
    assert _captions(folder / "quoted.tsv")[:2] == ['a photo, with "a hat"', "two lines"]
    survived("quotes in a tab-separated file that do not add up: read as characters", 3)


CAPTIONS = {
    "comma.csv": ("image,caption", ["a photo, with a hat"] + ["x"] * 5, "utf-8", "line 2 has 3 fields"),
    "latin1.csv": ("image,caption", ["x", "un café", *"xxxx"], "latin-1", "line 3 is not UTF-8: byte 0xe9"),
    "open.csv": ("image,caption", ["x", '"open', *"xxxx"], "utf-8", "line 3: a quote is opened"),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_that_cannot_be_read_say_where(survived: Survived, folder: Path, name: str) -> None:
    heading, captions, encoding, message = CAPTIONS[name]
    (folder / name).write_bytes(table(",", heading, captions).encode(encoding))
    with pytest.raises(ValueError, match=message):
        _captions(folder / name)
    survived("manifest or caption file that cannot be read: one line with file and line")


def test_a_caption_beside_its_image_that_cannot_be_read_is_listed(survived: Survived, folder: Path) -> None:
    for i in range(N):
        (folder / "pics" / f"{i}.txt").write_text(f"number {i}\u2028and on\nagain\n", encoding="utf-16")
    (folder / "pics" / "3.txt").write_bytes("un café\n".encode("latin-1"))
    sets = open_data(str(folder / "pics"), "captions", val_fraction=0.0, templates=())
    assert [name for name, _ in sets.problems] == [str(folder / "pics" / "3.txt")]
    assert "line 1 is not UTF-8" in sets.problems[0][1]
    assert sets.named["train"].captions(2) == ("number 2 and on", "again")
    assert sets.named["train"].captions(3) == ()
    survived("manifest or caption file that cannot be read: one line with file and line")


def test_names_in_either_form_of_unicode(survived: Survived, folder: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    for split, name in (("train", composed), ("val", decomposed)):
        for label in (name, "tea"):
            (folder / "set" / split / label).mkdir(parents=True)
            os.link(folder / "pics" / "0.png", folder / "set" / split / label / f"{decomposed}.png")
    splits = open_data(folder / "set")
    assert splits.classes == (composed, "tea")
    rows = [f"set/train/{composed}/{composed}.png,{decomposed}", f"set/val/tea/{composed}.png,{composed}"]
    (folder / "m.csv").write_text("\n".join(["image,label", *rows, "pics/1.png,tea"]))
    source = open_data(folder / "m.csv", val_fraction=0.0).first
    assert source.classes == (composed, "tea")
    assert [source.read(i).size for i in range(3)] == [(4, 4)] * 3
    survived("names in composed and decomposed Unicode (NFC, NFD): taken as equal", 3)


def _captions(path: Path) -> list[str]:
    source = open_data(str(path), "captions", val_fraction=0.0, templates=()).named["train"]
    return [source.captions(i)[0] for i in range(len(source))]
