"""Whatever PIL opens becomes an upright RGB image; whatever it does not is one clear error."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from visionzoo.data.images import ImageFacts, UnreadableImage, image_extensions, image_facts, open_image

RAMP = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (4, 1))  # (4, 16), left dark, right bright


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda p: p,
        str,
        lambda p: p.read_bytes(),
        lambda p: memoryview(p.read_bytes()),
        lambda p: io.BytesIO(p.read_bytes()),
    ],
)
def test_every_kind_of_input_gives_the_same_pixels(tmp_path: Path, encode, wrap) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(3))
    image = open_image(wrap(path))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(path)))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_every_8_bit_mode_keeps_dark_and_bright(mode: str) -> None:
    grey = Image.fromarray(RAMP)
    if mode == "LAB":
        source = Image.merge("LAB", (grey, *(Image.new("L", grey.size, 128) for _ in "ab")))
    elif mode in ("La", "PA"):
        source = grey.convert("LA").convert(mode)
    else:
        source = grey.convert("RGBA" if mode == "RGBa" else "RGB").convert(mode)
    image = open_image(source)
    values = np.asarray(image.convert("L"), dtype=float)
    assert image.mode == "RGB"
    assert values[:, 0].max() < 40
    assert values[:, -1].min() > 200


def test_grey_is_the_same_grey_in_every_depth() -> None:
    deep = RAMP.astype(np.uint16) * 257
    for source in (
        saved(Image.fromarray(deep), "PNG"),
        saved(Image.fromarray(deep), "TIFF"),
        saved(Image.fromarray(deep), "PPM"),
        saved(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        saved(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"),
        deep,
        RAMP,
        RAMP[:, :, None],
        np.repeat(RAMP[:, :, None], 3, axis=2),
        RAMP / 255,
    ):
        assert np.array_equal(np.asarray(open_image(source))[:, :, 1], RAMP)


def test_32_bit_values_without_a_known_range_are_scaled_by_the_largest() -> None:
    values = np.array([[0.0, np.nan, 1e6], [np.inf, -5.0, 5e5]], dtype=np.float32)
    assert np.asarray(open_image(Image.fromarray(values)))[:, :, 0].tolist() == [[0, 0, 255], [0, 0, 128]]


def test_alpha_is_dropped_as_pil_drops_it() -> None:
    rgba = np.dstack([np.repeat(RAMP[:, :, None], 3, axis=2), np.zeros_like(RAMP)])
    assert np.array_equal(np.asarray(open_image(saved(Image.fromarray(rgba), "PNG")))[:, :, 0], RAMP)


def test_palette_with_transparency_does_not_warn() -> None:
    picture = Image.fromarray(RAMP).convert("RGB").quantize(16)
    data = saved(picture, "PNG", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(data)
    assert np.array_equal(np.asarray(image), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(RAMP), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(expected))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_upright_image_is_not_turned_again(kind: str) -> None:
    """A predictor opens what a reader has opened."""
    exif = Image.Exif()
    exif[0x0112] = 6
    once = open_image(saved(Image.fromarray(RAMP), kind, exif=exif))
    np.testing.assert_array_equal(np.asarray(open_image(once)), np.asarray(once))


def test_eps_starts_no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    asked: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **more: asked.append(args))
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop"
    with pytest.raises(UnreadableImage, match="EPS is not read; save it as PNG or JPEG"):
        open_image(data)
    assert asked == []
    assert not {".eps", ".ps"} & image_extensions()


def test_broken_exif_does_not_cost_the_picture() -> None:
    data = saved(Image.fromarray(RAMP), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage")
    assert open_image(data).size == (16, 4)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    image = open_image(data)
    assert np.asarray(image)[0, 0].tolist() == [255, 0, 0]
    image.load()
    assert image.copy().size == (8, 8)


def test_facts_are_those_before_conversion(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.fromarray(RAMP).convert("CMYK").save(path, exif=exif)
    assert image_facts(path) == ImageFacts(width=4, height=16, mode="CMYK", format="JPEG")
    assert image_facts(RAMP) == ImageFacts(width=16, height=4, mode="L", format="array")


def bad_inputs(folder: Path, encode) -> dict[str, object]:
    jpeg, png = encode(1, "JPEG", (200, 200)), encode(1, "PNG", (200, 200))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.mkfifo(folder / "pipe.png")
    return {
        "zero bytes": folder / "empty.png",
        "not an image": folder / "text.jpg",
        "truncated": folder / "cut.jpg",
        "no such file": folder / "gone.png",
        "symbolic links": folder / "loop.png",
        "not a regular file": folder / "pipe.png",
        "a folder": folder,
        "zero bytes ": b"",
        "truncated ": png[: len(png) // 2],
        "shape (2, 3, 5)": np.zeros((2, 3, 5), np.uint8),
        "need 0..1": np.full((2, 2), 7.5),
        "type int64": np.zeros((2, 2), np.int64),
        "no pixels": Image.new("RGB", (0, 4)),
        "is not a path": 7,
    }


def test_what_cannot_be_read_says_why(tmp_path: Path, encode) -> None:
    for part, source in bad_inputs(tmp_path, encode).items():
        with pytest.raises(UnreadableImage) as caught:
            open_image(source)  # type: ignore[arg-type]
        assert part.strip() in caught.value.reason, (part, caught.value.reason)
        assert "\n" not in caught.value.reason
        assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


def test_a_decompression_bomb_is_refused_and_pils_settings_stay(monkeypatch: pytest.MonkeyPatch, encode) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(UnreadableImage, match="bomb"):
        open_image(encode(1))
    assert Image.MAX_IMAGE_PIXELS == 50


def test_no_file_handle_is_left_open(tmp_path: Path, encode) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(1))
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    film = tmp_path / "b.gif"
    frames[0].save(film, save_all=True, append_images=frames[1:])
    kept = [open_image(p) for p in (path, film)]
    before = len(os.listdir("/proc/self/fd"))
    kept += [open_image(p) for p in (path, film) for _ in range(20)]
    for broken in bad_inputs(tmp_path, encode).values():
        with pytest.raises(UnreadableImage):
            open_image(broken)  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mangled_files_are_read_or_refused_and_nothing_else(data: st.DataObject, encode) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "JPEG2000"]))
    whole = bytearray(encode(1, kind, (16, 16)))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    part = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        image = open_image(part)
    except UnreadableImage:
        return
    assert image.mode == "RGB"
    assert np.asarray(image).ndim == 3


def test_extensions_are_those_with_a_decoder() -> None:
    extensions = image_extensions()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif"} <= extensions
    assert not {".pdf", ".mpg", ".h5"} & extensions
