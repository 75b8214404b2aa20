"""Partial decoding gives the pixels of a whole one, or leaves the file to it."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionzoo.data import images, jpeg
from visionzoo.data.augment import AugmentOptions
from visionzoo.data.images import UnreadableImage, open_crop, open_image, open_region
from visionzoo.data.transforms import TrainTransform
from visionzoo.types import Preprocess


def photo(width: int = 90, height: int = 70, noise: float = 8, scale: float = 17) -> Image.Image:
    """Waves of colour, and some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([128 + 100 * np.sin((x * a + y * b) / scale) for a, b in ((1, 2), (3, 1), (2, 5))], axis=-1)
    return Image.fromarray(np.clip(waves + rng.normal(0, noise, waves.shape), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, **options)
    return out.getvalue()


BOXES = [(0, 0, 90, 70), (10, 3, 40, 31), (0, 0, 1, 1), (89, 69, 90, 70), (5, 60, 80, 69), (30, 0, 90, 17)]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("box", BOXES)
def test_crop_of_a_jpeg_is_that_of_the_whole_image(
    box: tuple[int, int, int, int], subsampling: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(photo(), subsampling=subsampling)
    expected = np.array(open_image(data).crop(box))
    monkeypatch.setattr(images, "open_image", None)  # nothing is decoded whole
    assert np.array_equal(np.array(open_crop(data, lambda size: box)), expected)
    region = open_region(data, lambda size: box, enough=(90, 70))
    assert np.array_equal(region[:, :, :3], expected)


def variants() -> dict[str, bytes]:
    image = photo()
    turned = Image.Exif()
    turned[0x0112] = 6
    png = io.BytesIO()
    image.save(png, "PNG")
    return {
        "progressive": encoded(image, progressive=True),
        "grey": encoded(image.convert("L")),
        "cmyk": encoded(image.convert("CMYK")),
        "turned": encoded(image, exif=turned),
        "trailing bytes": encoded(image) + b"more",
        "png": png.getvalue(),
    }


@pytest.mark.parametrize("name", variants())
def test_anything_else_is_decoded_whole(name: str) -> None:
    data = variants()[name]
    sizes = []

    def choose(size: tuple[int, int]) -> tuple[int, int, int, int]:
        sizes.append(size)
        return (10, 20, 60, 50)

    whole = open_image(data)
    assert np.array_equal(np.array(open_crop(data, choose)), np.array(whole.crop((10, 20, 60, 50))))
    assert np.array_equal(open_region(data, choose, enough=(9, 9)), np.array(whole.crop((10, 20, 60, 50))))
    assert sizes == [whole.size] * 2


def test_every_kind_of_source(tmp_path: Path) -> None:
    image = photo()
    data = encoded(image)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = np.array(open_image(data).crop((1, 2, 30, 40)))
    for source in (data, tmp_path / "a.jpg", str(tmp_path / "a.jpg"), bytearray(data), io.BytesIO(data)):
        assert np.array_equal(np.array(open_crop(source, lambda size: (1, 2, 30, 40))), expected)
    assert np.array_equal(np.array(open_crop(image, lambda size: (1, 2, 30, 40))), np.array(image)[2:40, 1:30])


@pytest.mark.parametrize("kept", [0, 1, 100, 400, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("bottom", [3, 70])
def test_a_cut_file_is_refused_whatever_the_crop(kept: float, bottom: int) -> None:
    data = encoded(photo())
    cut = data[: kept if isinstance(kept, int) else int(kept * len(data))]
    for read in (open_crop, lambda d, c: open_region(d, c, (1, 1))):
        with pytest.raises(UnreadableImage):
            read(cut, lambda size: (0, 0, 2, bottom))  # type: ignore[operator]


def test_a_fault_in_the_choice_of_the_box_is_no_fault_of_the_image() -> None:
    def choose(size: tuple[int, int]) -> tuple[int, int, int, int]:
        raise ValueError(f"no box for {size}")

    for read in (open_crop, lambda d, c: open_region(d, c, (1, 1))):
        with pytest.raises(ValueError, match="no box for") as caught:
            read(encoded(photo()), choose)  # type: ignore[operator]
        assert not isinstance(caught.value, UnreadableImage)


def test_a_cut_file_with_an_end_put_on_is_read_as_pil_reads_it() -> None:
    data = encoded(photo())
    cut = data[: len(data) // 2] + b"\xff\xd9"
    expected = np.array(open_image(cut).crop((0, 0, 90, 60)))
    assert np.array_equal(np.array(open_crop(cut, lambda size: (0, 0, 90, 60))), expected)


def test_an_image_with_the_colour_that_marks_undecoded_rows() -> None:
    flat = Image.new("RGB", (40, 40), jpeg._UNTOUCHED)
    data = encoded(flat, subsampling=0)
    assert np.array_equal(np.array(open_crop(data, lambda size: (0, 0, 40, 9))), np.array(open_image(data))[:9])


def test_memory_is_reused_and_its_content_never_leaks_into_another_image() -> None:
    big, small = encoded(photo(300, 200)), encoded(Image.new("RGB", (20, 10), (200, 100, 50)))
    first = open_crop(big, lambda size: (0, 0, 300, 200))
    before = np.array(first)
    assert np.array_equal(np.array(open_crop(small, lambda size: (0, 0, 20, 10))), np.array(open_image(small)))
    assert np.array_equal(np.array(first), before)  # a crop owns its pixels
    canvas = jpeg._KEPT.at_least("RGB", 1, 1)
    assert canvas is jpeg._KEPT.at_least("RGB", 300, 200)


def test_threads_do_not_share_memory() -> None:
    pictures = [encoded(Image.new("RGB", (64, 64), (40 * k, 10, 200 - 20 * k)), subsampling=0) for k in range(4)]
    expected = [np.array(open_image(data)) for data in pictures]
    wrong = []

    def read(k: int) -> None:
        for _ in range(50):
            if not np.array_equal(open_region(pictures[k], lambda s: (0, 0, 64, 64), (64, 64))[:, :, :3], expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_large_region_is_decoded_at_a_fraction() -> None:
    data = encoded(photo(640, 480))
    region = open_region(data, lambda size: (40, 80, 600, 400), enough=(100, 70))
    assert region.shape[:2] == (80, 140)  # a quarter: an eighth would be too few
    small = open_image(data).crop((40, 80, 600, 400)).resize((140, 80), Image.Resampling.BOX)
    assert np.abs(region[:, :, :3].astype(int) - np.array(small)).mean() < 2


SPEC = Preprocess(image_size=(32, 32), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_view_of_bytes_is_that_of_the_image(decode: Any) -> None:
    """The same for ``exact``; for ``fast`` about the same, as it may be decoded at a fraction."""
    data = encoded(photo(200, 150, noise=0, scale=160))
    transform = TrainTransform(SPEC, AugmentOptions(policy="none", decode=decode, vflip=0.5))
    exact = TrainTransform(SPEC, AugmentOptions(policy="none", vflip=0.5))
    for key in range(20):
        view, expected = transform(data, key), exact(open_image(data), key)
        if decode == "exact":
            assert np.array_equal(view.numpy(), expected.numpy())
        else:
            assert view.shape == expected.shape
            assert np.abs(view.numpy().astype(int) - expected.numpy()).mean() < 3


def test_real_photographs(real_data: Path) -> None:
    for i, path in enumerate(sorted((real_data / "imagenet_samples").iterdir())[:20]):
        whole = open_image(path)
        w, h = whole.size
        box = (i * w // 40, i * h // 50, w - i * w // 60, h - i * h // 60)
        assert np.array_equal(np.array(open_crop(path, lambda size, box=box: box)), np.array(whole.crop(box)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(800, 800), (60, 700), (700, 60), (61, 53), (32, 32)])
def test_fast_views_are_antialiased(size: tuple[int, int], kind: str, interpolation: str) -> None:
    """Of white noise little is left where much is averaged. An area's mean leaves 1.5 times what a triangle does."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    out = io.BytesIO()
    options: dict[str, Any] = {"progressive": {"progressive": True, "quality": 60}, "WEBP": {"lossless": True}}
    noise.save(out, "JPEG" if kind == "progressive" else kind, **options.get(kind, {}))
    spec = Preprocess(image_size=(32, 32), interpolation=interpolation)
    views = {
        decode: TrainTransform(spec, AugmentOptions(policy="none", decode=decode, hflip=0))(out.getvalue(), 3).float()
        for decode in ("exact", "fast")
    }
    assert views["fast"].std() < 1.6 * views["exact"].std()
    assert (views["fast"].mean() - views["exact"].mean()).abs() < 3
