"""The images of a folder by what is in them: what is kept, what is encoded again, what is found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_zero_shot import image_features, make_clip

import visionzoo as vz
from visionzoo.inference import search as module
from visionzoo.models.clip import Clip


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_the_best_are_those_of_the_cosines(clip: Clip, photos: Path, cache: Path) -> None:
    search = vz.ImageSearch(clip, cache_dir=cache, batch_size=4).index(photos)
    assert search.paths == [str(photos / n) for n in ("a.png", "b.jpg", "deep/c.webp", "deep/d.bmp", "e.gif", "f.png")]
    queries = ["a red car", "two dogs in the snow {}"]
    with torch.no_grad():
        texts = clip.encode_text(clip.tokenizer(queries), normalize=True)
    cosines = texts @ image_features(clip, photos).T
    for row, matches in zip(cosines, search.find_all(queries, 4), strict=True):
        order = row.argsort(descending=True)[:4]
        assert [m.path for m in matches] == [search.paths[i] for i in order]
        assert [m.score for m in matches] == pytest.approx(row[order].tolist(), abs=1e-5)
    assert search.find(queries[0], 4) == search.find_all(queries, 4)[0]
    assert len(search.find("anything", 100)) == 6
    (own,) = search.find_like(photos / "deep" / "d.bmp", 2)
    assert own[0].path == str(photos / "deep" / "d.bmp")
    assert own[0].score == pytest.approx(1, abs=1e-5)


def test_only_what_is_new_or_changed_is_encoded(clip: Clip, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for i in range(5):
        paint(folder / f"{i}.png", i)
    first = vz.ImageSearch(clip, cache_dir=cache).index(folder)
    assert first.report == (5, 5, 0, [])
    again = vz.ImageSearch(clip, cache_dir=cache).index(folder)
    assert again.report == (5, 0, 0, [])
    assert again.find("a dog") == first.find("a dog")

    paint(folder / "1.png", 100)  # other pixels
    paint(folder / "new" / "6.png", 6)
    os.utime(folder / "3.png", ns=(0, 0))
    (folder / "4.png").unlink()
    changed = vz.ImageSearch(clip, cache_dir=cache).index(folder)
    assert changed.report == (5, 3, 1, [])
    fresh = vz.ImageSearch(clip, cache_dir=tmp_path / "other").index(folder)
    assert changed.paths == fresh.paths
    for a, b in zip(changed.find("a dog"), fresh.find("a dog"), strict=True):
        assert a.path == b.path
        assert a.score == pytest.approx(b.score, abs=1e-6)
    (folder / "0.png").unlink()
    assert vz.ImageSearch(clip, cache_dir=cache).index(folder).report == (4, 0, 1, [])
    assert vz.ImageSearch(clip, cache_dir=cache).index(folder).report == (4, 0, 0, [])


def test_the_cache_belongs_to_model_and_folder(clip: Clip, photos: Path, cache: Path, tmp_path: Path) -> None:
    vz.ImageSearch(clip, cache_dir=cache).index(photos)
    assert vz.ImageSearch(make_clip(seed=1), cache_dir=cache).index(photos).report.encoded == 6
    other = make_clip()
    other.preprocess = vz.Preprocess(image_size=(32, 32), mean=(0.4,) * 3, std=(0.5,) * 3)
    assert vz.ImageSearch(other, cache_dir=cache).index(photos).report.encoded == 6
    copy = tmp_path / "copy"
    copy.mkdir()
    paint(copy / "a.png", 0)
    assert vz.ImageSearch(clip, cache_dir=cache).index(copy).report.images == 1
    link = tmp_path / "link"
    link.symlink_to(photos)
    assert vz.ImageSearch(clip, cache_dir=cache).index(link).report.encoded == 0
    for file in cache.iterdir():
        file.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged .* and is made again"):
        assert vz.ImageSearch(clip, cache_dir=cache).index(photos).report.encoded == 6


def test_an_indexing_that_is_broken_off_goes_on(
    clip: Clip, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    for i in range(6):
        paint(folder / f"{i}.png", i)
    monkeypatch.setattr(module, "ROUND", 2)
    search, calls = vz.ImageSearch(clip, cache_dir=cache), []
    encode = search._stream.forward

    def stop(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(images)

    search._stream.forward = stop
    with pytest.raises(KeyboardInterrupt, match="4 of 6 images are kept"):
        search.index(folder)
    assert vz.ImageSearch(clip, cache_dir=cache).index(folder).report == (6, 2, 0, [])


def test_names_that_are_no_text_and_files_that_are_no_images(clip: Clip, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paint(folder / "a\nb.png", 0)
    odd = os.fsencode(folder) + b"/\xff\xfe.png"
    Image.new("RGB", (8, 8)).save(folder / "plain.png")
    os.rename(folder / "plain.png", odd)
    (folder / "bad.png").write_bytes(b"no image")
    for encoded in (2, 0):
        report = vz.ImageSearch(clip, cache_dir=cache).index(folder).report
        assert report[:3] == (2, encoded, 0)
        assert [os.path.basename(u.name) for u in report.unreadable] == ["bad.png"]
    search = vz.ImageSearch(clip, cache_dir=cache).index(folder)
    assert all(os.path.isfile(match.path) for match in search.find("a dog"))


def test_what_cannot_be_searched(clip: Clip, photos: Path, cache: Path, tmp_path: Path) -> None:
    search = vz.ImageSearch(clip, cache_dir=cache)
    with pytest.raises(ValueError, match="nothing to search"):
        search.find("a dog")
    with pytest.raises(FileNotFoundError, match="no folder"):
        search.index(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        search.index(tmp_path / "empty")
    search.index(photos)
    with pytest.raises(ValueError, match="query 1 is empty"):
        search.find_all(["a dog", "  "])
    with pytest.raises(ValueError, match="top_k=0"):
        search.find("a dog", 0)
    (tmp_path / "x.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x\.png"):
        search.find_like(tmp_path / "x.png")
    with pytest.raises(ValueError, match="needs a model of create_clip, not Linear"):
        vz.ImageSearch(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_the_sheet(clip: Clip, photos: Path, cache: Path, tmp_path: Path) -> None:
    search = vz.ImageSearch(clip, cache_dir=cache).index(photos)
    one = module.search_sheet([("a dog", search.find("a dog"))], tmp_path / "one.png")
    two = module.search_sheet([(q, search.find(q, 3)) for q in ("a dog", "a car")], tmp_path / "two.png")
    with Image.open(one) as a, Image.open(two) as b:
        assert a.width > b.width
        assert b.height > 2 * 176
